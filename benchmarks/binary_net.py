"""A binary ResNet-18 in its deployed forms, beside the real-valued one in FP32 and INT8, on this machine.

    python benchmarks/binary_net.py [--rounds 60] [--threads 1 2] [--output benchmarks/results/binary_net.json]

Networks have random weights and a few batches' statistics; their time does not depend on what they have learned. Batch
1, uint8 images in, ten logits out. All forms of a network run in turn, round by round; a figure is the median, and a
ratio one of medians. With one thread the time is the thread's processor time, which other processes do not add to; with
more it is wall time.

- fp32: the real-valued ResNet-18 of the same shape. int8: the same as Q/DQ, weights per channel, activations uint8,
  calibrated on random images, by `onnxruntime.quantization`.
- simulated: what torch exports of the binary one, signs and ±1 weights as floats. portable: `export.to_portable`, the
  bundle's `onnx`. packed: `export.to_packed`, with the operators of `runtime/ops`.

Portable and packed are compared with torch before they are measured, and must give the same classes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from alternately import in_turn, summary
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.models import MODELS, ModelSpec
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.layers import binary_layers
from export.to_onnx import onnx_from_graph
from export.to_packed import packed_from_onnx
from export.to_portable import portable_from_onnx
from runtime.custom_ops import instruction_set, library_path
from runtime.device import read_environment
from runtime.files import write_json

CLASSES = 10
COMPARED = 8  # images on which the forms are compared with torch
CALIBRATED = 16


@dataclass(frozen=True)
class Case:
    """Images of size × size; the real-valued network, and the binary one with its stem."""

    name: str
    size: int
    real: ModelSpec
    binary: ModelSpec


CASES = (
    Case(
        "32×32",
        32,
        MODELS["imagenet_resnet"](depth=18, stem="cifar"),
        MODELS["binary_resnet"](depth=18, stem="conv3"),
    ),
    Case("224×224, 7×7 stem", 224, MODELS["imagenet_resnet"](depth=18), MODELS["binary_resnet"](depth=18)),
    Case(
        "224×224, light stem",
        224,
        MODELS["imagenet_resnet"](depth=18),
        MODELS["binary_resnet"](depth=18, stem="depthwise"),
    ),
)


def deployable(spec: ModelSpec, signature: InputSignature) -> DeployableGraph:
    """Return a network with random weights whose batch norms have seen a few batches of noise."""
    torch.manual_seed(0)
    model = spec.build(signature=signature, outputs=CLASSES).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, signature.channels, signature.height, signature.width))
    preprocess = Preprocess(
        signature, Normalization(1 / 255, (0.5,) * signature.channels, (0.25,) * signature.channels)
    )
    return DeployableGraph(preprocess, model, CLASSES).eval()


def random_images(rows: int, signature: InputSignature, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *signature.shape), dtype=np.uint8)


class RandomImages(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, signature: InputSignature) -> None:
        self.images: Iterator[np.ndarray] = iter(random_images(CALIBRATED, signature, seed=1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image[None]}


def int8(model: bytes, signature: InputSignature) -> bytes:
    """Return the model as Q/DQ, all of it but the preprocessing of pixels."""
    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (str(Path(folder) / f"{name}.onnx") for name in ("given", "prepared", "int8"))
        Path(given).write_bytes(model)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
        quantize_static(
            prepared,
            quantised,
            RandomImages(signature),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes[:first]],
        )
        return Path(quantised).read_bytes()


def forms_of(case: Case) -> dict[str, bytes]:
    """Return the file of every form. Raises SystemExit where a binary form is not what torch computes."""
    signature = InputSignature((case.size, case.size, 3))
    real = onnx_from_graph(deployable(case.real, signature), signature, metadata={})
    graph = deployable(case.binary, signature)
    simulated, layers = onnx_from_graph(graph, signature, metadata={}), binary_layers(graph)
    forms = {
        "fp32": real,
        "int8": int8(real, signature),
        "simulated": simulated,
        "portable": portable_from_onnx(simulated, layers=layers),
        "packed": packed_from_onnx(simulated, layers=layers),
    }
    images = random_images(COMPARED, signature)
    with torch.no_grad():
        expected = graph(torch.from_numpy(images)).numpy()
    for name in ("portable", "packed"):
        logits = session_of(forms[name], 1).run(None, {"input": images})[0]
        error = float(np.abs(logits - expected).max() / expected.std())
        if error > 1e-4 or (logits.argmax(1) != expected.argmax(1)).any():
            raise SystemExit(f"{case.name}: {name} differs from torch by {error:.2g} standard deviations")
    return forms


def session_of(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def call_of(model: bytes, threads: int, image: np.ndarray) -> Callable[[], object]:
    session = session_of(model, threads)
    return lambda: session.run(None, {"input": image})


def measure(case: Case, threads: tuple[int, ...], rounds: int) -> dict[str, Any]:
    forms = forms_of(case)
    sizes = {name: len(model) for name, model in forms.items()}
    image = random_images(1, InputSignature((case.size, case.size, 3)), seed=2)
    print(f"\n{case.name}: ResNet-18")
    timings = []
    for count in threads:
        calls = {name: call_of(model, count, image) for name, model in forms.items()}
        timing = summary(in_turn(calls, rounds, threads=count), threads=count)
        timings.append(timing)
        for name, each in timing["microseconds"].items():
            print(
                f"  {count} thread(s)  {name:9s} {each:9.0f} µs   FP32 / this {timing['fp32_over'][name]:6.2f}   "
                f"INT8 / this {timing['int8_over'][name]:6.2f}   {sizes[name]:>11,} bytes, "
                f"{sizes['fp32'] / sizes[name]:.1f} × smaller than FP32",
                flush=True,
            )
    return {"network": case.name, "size_bytes": sizes, "timings": timings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        **read_environment().to_json(),
        "onnxruntime": onnxruntime.__version__,
        "torch": str(torch.__version__),
        "kernels": instruction_set(),
    }
    networks = [measure(case, tuple(options.threads), options.rounds) for case in CASES]
    if options.output:
        write_json(options.output, {"benchmark": "binary_net", "machine": machine, "networks": networks})


if __name__ == "__main__":
    main()
