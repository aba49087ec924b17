"""OpenVINO beside ONNX Runtime: how near its logits are for every kind of model, and how long both take.

    python benchmarks/engines.py --parity --output FILE.json
    python benchmarks/engines.py --speed BUNDLE... --output FILE.json

Parity: the models of tests/compress/models, exported as FP32, FP16 and INT8, in OpenVINO with f32 and bf16 against
torch; the largest logit error over the standard deviation of the logits, with the gate that holds for the form. Speed:
medians of calls with one row and one thread, the candidates in turn, of every form that lies in a bundle.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from alternately import in_turn

from export.layers import binary_layers
from export.parity import GATES, Gate, compare, looser
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.to_portable import portable_from_onnx
from runtime.bare_model import open_model
from runtime.bundle import open_bundle
from runtime.device import read_environment
from runtime.runners import open_runner
from runtime.runners.choice import EngineChoice

TESTS = Path(__file__).parents[1] / "tests"
ENGINES = {
    "onnxruntime": EngineChoice(),
    "openvino f32": EngineChoice("openvino"),
    "openvino bf16": EngineChoice("openvino", precision="bf16"),
}
FORMS = ("onnx", "fp16", "bf16", "int8", "int8_cpu")
ROWS = 192
LOOSE = Gate(GATES["int8"].max_error_over_std, 0.9, 100.0)  # of random weights, which leave classes all but equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parity", action="store_true", help="of every kind of model: minutes")
    parser.add_argument("--speed", type=Path, nargs="+", default=[], metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"benchmark": "engines", "machine": read_environment().to_json()}
    if options.parity:
        print(f"{'model':<42} {'form':<5} {'onnxruntime':>11} {'openvino f32':>12} {'openvino bf16':>13}")
        record["parity"] = []
        for row in parity():
            record["parity"].append(row)
            errors = [row["errors"].get(name) for name in ENGINES]
            cells = [f"{error:>12.1e}" if error is not None else f"{'-':>12}" for error in errors]
            print(f"{row['model']:<42} {row['form']:<5}{''.join(cells)}  {'; '.join(row['missed'])}", flush=True)
    if options.speed:
        print(f"\n{'bundle':<18} {'form':<9} {'engine':<14} {'p10 us':>9} {'median us':>9} {'p90 us':>9}")
        record["speed"] = []
        for bundle in options.speed:
            for row in speed(bundle, options.rounds):
                record["speed"].append(row)
                print(
                    f"{row['bundle']:<18} {row['form']:<9} {row['engine']:<14} "
                    f"{row['p10']:>9.1f} {row['median']:>9.1f} {row['p90']:>9.1f}"
                )
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def parity() -> Iterator[dict[str, Any]]:
    cases = _cases()
    with tempfile.TemporaryDirectory() as folder:
        cases.tiny_encoders.write(Path(folder))
        for case in cases.CASES:
            exported = cases.export(case, folder)
            inputs = cases.inputs_of(case.signature, ROWS, seed=9)
            with torch.no_grad():
                reference = exported.graph(torch.from_numpy(inputs)).numpy()
            for form, model in _forms(exported, inputs):
                path = Path(folder) / "model.onnx"
                path.write_bytes(model)
                yield {"model": case.name, "form": form, **_compared(path, case, form, inputs, reference)}


def _forms(exported: Any, inputs: np.ndarray) -> Iterator[tuple[str, bytes]]:
    if layers := binary_layers(exported.graph):
        yield "onnx", portable_from_onnx(exported.model, layers=layers)
        return
    yield "onnx", exported.model
    yield "fp16", fp16_from_onnx(exported.model)
    labels = np.zeros(ROWS - 64, np.int64)
    yield "int8", int8_from_onnx(exported.model, inputs[:64], inputs[64:], labels, gate=LOOSE, method="minmax").model


def _compared(path: Path, case: Any, form: str, inputs: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    errors: dict[str, float | None] = {}
    missed = []
    for name, choice in ENGINES.items():
        gate = LOOSE if form == "int8" else GATES["fp32" if form == "onnx" else form]
        gate = looser(gate, GATES["bf16"]) if choice.precision else gate
        model = open_model(path, {"input": (None, *case.signature.shape)})
        with open_runner(model, choice=choice) as runner:
            logits = np.concatenate([runner.infer(inputs[i : i + 64]) for i in range(0, ROWS, 64)])
        result = compare(reference, logits, reference.argmax(axis=1), gate)
        errors[name] = result.max_error_over_std
        missed += [f"{name}: {reason}" for reason in result.reasons]
    return {"errors": errors, "missed": missed}


def speed(path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    bundle = open_bundle(path)
    rows = bundle.samples().inputs[:1]
    runners = {
        (form, name): open_runner(bundle, form, choice=choice)
        for form in FORMS
        if form in bundle.formats
        for name, choice in ENGINES.items()
        if (form, name) != ("bf16", "onnxruntime")  # which has no kernels of it for CPUs
    }
    calls = {" · ".join(key): runner.prepare(rows) for key, runner in runners.items()}
    times = in_turn(calls, rounds, threads=1)
    for form, name in runners:
        taken = np.array(times[f"{form} · {name}"])
        quantiles = {key: float(np.percentile(taken, at)) for key, at in (("p10", 10), ("median", 50), ("p90", 90))}
        yield {"bundle": bundle.name, "form": form, "engine": name, **quantiles}


def _cases() -> ModuleType:
    sys.path.insert(0, str(TESTS / "support"))
    path = TESTS / "compress" / "models" / "test_every_model_exports.py"
    spec = importlib.util.spec_from_file_location("cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
