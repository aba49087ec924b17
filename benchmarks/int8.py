"""INT8 for CPUs beside FP32, FP16, the INT8 for TensorRT and what onnxruntime makes of the same model, on this machine.

    python benchmarks/int8.py [--rounds 60] [--threads 1] [--output benchmarks/results/int8.json]
    python benchmarks/int8.py --recipe RECIPE [--runs runs] [--data-root data] [--output FILE.json]

Without a recipe: networks of the zoo with random weights, whose time does not depend on what they have learned. With
one: the exported student of a finished run, and how many of all test rows each form gets right. Batch 1, uint8 images
in. All forms of a network run in turn, round by round; a figure is the median, and a ratio one of medians. With one
thread the time is the thread's processor time, which other processes do not add to; with more it is wall time.

- int8: `export.to_int8`, form `signed`, which TensorRT reads. int8_cpu: form `cpu`. Both by `auto`, no layer in float.
- ort u8s8, ort s8s8: `onnxruntime.quantization.quantize_static`, Q/DQ, weights per channel, activations uint8 or int8,
  everything else as it comes, behind its own preparation; the scaling of pixels is left in float, which is to its good.

All are calibrated on the same rows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from alternately import in_turn, summary
from binary_net import deployable, random_images
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.forms import calibration_rows
from compress.models import MODELS, ModelSpec
from compress.pipeline import plans_of
from compress.progress import Notify
from compress.stages import Settings
from compress.variant_run import VariantRun
from export.bundle import MODEL
from export.calibration import outputs_of
from export.graph import InputSignature
from export.parity import Gate, compare
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import Form, int8_from_onnx
from export.to_onnx import onnx_from_graph
from runtime.device import read_environment
from runtime.files import write_json

CALIBRATED, COMPARED = 16, 32  # random images
NO_GATE = Gate(max_error_over_std=1e9, top1_agreement=0.0, metric_drop_points=100.0)
ZOO: Mapping[str, tuple[ModelSpec, InputSignature]] = {
    "small_cnn, 28×28×1": (MODELS["small_cnn"](), InputSignature((28, 28, 1))),
    "wrn 16-1, 32×32": (MODELS["wrn"](depth=16, widen=1), InputSignature((32, 32, 3))),
    "resnet8x4, 32×32": (MODELS["resnet8x4"](), InputSignature((32, 32, 3))),
    "mobilenet_v2 0.5, 32×32": (MODELS["mobilenet_v2"](width=0.5, form="cifar"), InputSignature((32, 32, 3))),
    "mobilenet_v2 0.5, 224×224": (MODELS["mobilenet_v2"](width=0.5), InputSignature((224, 224, 3))),
    "imagenet_resnet 18, 224×224": (MODELS["imagenet_resnet"](depth=18), InputSignature((224, 224, 3))),
}


@dataclass(frozen=True)
class Case:
    """A network in FP32, rows to calibrate with and to compare on, and their labels where it has learned any."""

    name: str
    model: bytes
    rows: np.ndarray
    compared: np.ndarray
    labels: np.ndarray | None = None


class Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.array_split(rows, -(-len(rows) // 32)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def random_networks() -> Iterator[Case]:
    for name, (spec, signature) in ZOO.items():
        model = onnx_from_graph(deployable(spec, signature), signature, metadata={})
        images = random_images(CALIBRATED + COMPARED, signature)
        yield Case(name, model, images[:CALIBRATED], images[CALIBRATED:])


def student_of(recipe: Path, settings: Settings, notify: Notify) -> Case:
    """Return the student that a finished run has exported. Raises SystemExit where there is none."""
    (plan, *_) = plans_of(recipe, settings.data_root)
    run = VariantRun(plan, settings, notify)
    bundle = run.bundle()
    if bundle is None:
        raise SystemExit(f"{run.bundle_path}: no bundle of this recipe; run it first")
    train, test = run.dataset.train, run.dataset.test
    calibrated, _ = calibration_rows(len(train), 512)
    model = (bundle.path / MODEL).read_bytes()
    return Case(plan.name, model, np.asarray(train.inputs[calibrated]), np.asarray(test.inputs[:]), test.labels)


def by_onnxruntime(case: Case, activations: QuantType) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (str(Path(folder) / f"{name}.onnx") for name in ("given", "prepared", "int8"))
        Path(given).write_bytes(case.model)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
        quantize_static(
            prepared,
            quantised,
            Rows(case.rows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes[:first]],
        )
        return Path(quantised).read_bytes()


def forms_of(case: Case) -> dict[str, bytes]:
    def ours(form: Form) -> bytes:
        labels = np.zeros(len(case.rows), np.int64)
        return int8_from_onnx(case.model, case.rows, case.rows, labels, gate=NO_GATE, form=form).model

    return {
        "fp32": case.model,
        "fp16": fp16_from_onnx(case.model),
        "int8": ours("signed"),
        "int8_cpu": ours("cpu"),
        "ort u8s8": by_onnxruntime(case, QuantType.QUInt8),
        "ort s8s8": by_onnxruntime(case, QuantType.QInt8),
    }


def session_of(model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    forms = forms_of(case)
    image = case.compared[:1]
    sessions = {name: session_of(model, threads) for name, model in forms.items()}
    calls = {name: lambda session=each: session.run(None, {"input": image}) for name, each in sessions.items()}
    timing = summary(in_turn(calls, rounds, threads=threads), threads=threads, of=("fp32",))
    print(f"\n{case.name}")
    (reference,) = outputs_of(case.model, ["logits"], case.compared)
    labels = reference.argmax(axis=1) if case.labels is None else case.labels
    results = {}
    for name, model in forms.items():
        (logits,) = outputs_of(model, ["logits"], case.compared)
        comparison = compare(reference, logits, labels, NO_GATE)
        results[name] = {
            "bytes": len(model),
            "max_error_over_std": comparison.max_error_over_std,
            "top1_agreement": comparison.top1_agreement,
            **({} if case.labels is None else {"correct": int((logits.argmax(axis=1) == labels).sum())}),
        }
        right = "" if case.labels is None else f"   {results[name]['correct']:,} of {len(labels):,} right"
        print(
            f"  {name:9s} {timing['microseconds'][name]:9.1f} µs   FP32 / this {timing['fp32_over'][name]:5.2f}   "
            f"{len(model):>11,} bytes   error / std {comparison.max_error_over_std:.3f}{right}",
            flush=True,
        )
    return {"network": case.name, "rows": len(case.compared), "timing": timing, "forms": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(3)
    settings = Settings(runs=options.runs, data_root=options.data_root)
    cases = [student_of(options.recipe, settings, print)] if options.recipe else random_networks()
    networks = [measure(case, options.threads, options.rounds) for case in cases]
    if options.output:
        machine = {**read_environment().to_json(), "onnxruntime": onnxruntime.__version__}
        write_json(options.output, {"benchmark": "int8", "machine": machine, "networks": networks})


if __name__ == "__main__":
    main()
