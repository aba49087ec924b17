"""Every family of models in every precision: files, parity, and TensorRT-RTX engines for every GPU that it knows.

    python benchmarks/exports.py [--every-form] [--only KIND ...] [--output FILE.json]

The models are those of tests/compress/models/test_every_model_exports.py, the first of each family: random weights with
statistics of their own, on random inputs that differ from row to row. Parity is the largest logit error over the
standard deviation of the FP32 file's logits (of torch's, for FP32) on 256 rows; bfloat16 is computed by the file's
arithmetic in float32. Engines are built and not run: that takes their GPUs. What TensorRT refuses is noted by message.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorrt_rtx
from model_table import tests

from compress.models import ModelSpec
from export.calibration import outputs_of
from export.layers import binary_layers
from export.parity import GATES, Gate, compare
from export.to_bf16 import bf16_from_onnx, widened_from_bf16
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from runtime.engine_build import engine_from_onnx
from runtime.errors import ExportError

GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
PRECISIONS = ("fp32", "fp16", "int8", "bf16")
ROWS, CALIBRATION = 256, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every-form", action="store_true", help="and not one of each family")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="these families")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "tensorrt_rtx": tensorrt_rtx.__version__,
        "models": [],
    }
    for row in families(every=options.every_form, only=options.only):
        record["models"].append(row)
        print(in_words(row), flush=True)
        if options.output:
            options.output.write_text(json.dumps(record, indent=1) + "\n")
    refused = refusals(record["models"])
    record["refusals"] = [{"message": message, "engines": engines} for message, engines in refused.items()]
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    for message, engines in refused.items():
        counted = ", ".join(
            f"{count} of {name}" for name, count in Counter(each.partition(": ")[2] for each in engines).items()
        )
        print(f"refused: {message}: {counted}")
    return 0


def families(*, every: bool, only: list[str] | None) -> Iterator[dict[str, Any]]:
    cases = tests("test_every_model_exports")
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as encoder:
        cases.tiny_encoders.write(Path(encoder))
        for case in cases.CASES:
            spec = case.spec if isinstance(case.spec, ModelSpec) else case.spec(encoder)
            if (spec.kind in seen and not every) or (only and spec.kind not in only):
                continue
            seen.add(spec.kind)
            yield _family(cases, case, spec.kind, encoder)


def _family(cases: ModuleType, case: Any, kind: str, encoder: str) -> dict[str, Any]:
    started = time.perf_counter()
    exported = cases.export(case, encoder)
    seconds = time.perf_counter() - started
    inputs = cases.inputs_of(case.signature, ROWS + CALIBRATION, seed=9)
    rows, calibration = inputs[:ROWS], inputs[ROWS:]
    comparison = cases.parity(exported)
    fp32 = {"size_bytes": len(exported.model), "seconds": seconds, **_parity(comparison)}
    length = case.signature.shape[0] if case.signature.dynamic_length else None
    forms = {"fp32": {**fp32, "engines": _engines(exported.model, length, cases.BATCH_SIZES)}}
    real = not binary_layers(exported.graph) and not case.name.startswith("binary_resnet")
    for precision, convert in _CONVERTERS.items() if real else ():
        started = time.perf_counter()
        model, note = convert(exported.model, calibration)
        seconds = time.perf_counter() - started
        computed = widened_from_bf16(model) if precision == "bf16" else model
        reference, logits = (outputs_of(each, ["logits"], rows)[0] for each in (exported.model, computed))
        compared = compare(
            # Weights that were never trained have no accuracy to lose.
            reference, logits, reference.argmax(axis=1), replace(GATES[precision], metric_drop_points=100.0),
        )  # fmt: skip
        forms[precision] = {
            "size_bytes": len(model),
            "seconds": seconds,
            **note,
            **_parity(compared),
            "engines": _engines(model, length, cases.BATCH_SIZES),
        }
    parameters = sum(each.numel() for each in exported.graph.student.parameters())
    return {"family": kind, "model": case.name, "parameters": parameters, "forms": forms}


def _int8(model: bytes, calibration: np.ndarray) -> tuple[bytes, dict[str, Any]]:
    # On weights that were never trained, accuracy says nothing: the error alone decides.
    made = int8_from_onnx(
        model, calibration, calibration, np.zeros(len(calibration), np.int64), gate=Gate(0.3, 0.0, 100.0)
    )
    return made.model, {"float_layers": len(made.float_layers), "layers": len(made.layers)}


_CONVERTERS: dict[str, Callable[[bytes, np.ndarray], tuple[bytes, dict[str, Any]]]] = {
    "fp16": lambda model, calibration: (fp16_from_onnx(model), {}),
    "int8": _int8,
    "bf16": lambda model, calibration: (bf16_from_onnx(model), {}),
}


def _parity(comparison: Any) -> dict[str, Any]:
    return {
        "max_error_over_std": comparison.max_error_over_std,
        "rms_error_over_std": comparison.rms_error_over_std,
        "top1_agreement": comparison.top1_agreement,
        "missed": list(comparison.reasons),
    }


def _engines(model: bytes, length: int | None, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for gpu in GPUS:
        started = time.perf_counter()
        try:
            engine = engine_from_onnx(model, batch_sizes=batch_sizes, length=length, compute_capability=gpu)
        except ExportError as error:
            found[gpu] = {"refused": error.message.partition("\n")[2].strip()}
            continue
        types = Counter(layer.inputs[0] for layer in engine.layers if layer.inputs)
        found[gpu] = {
            "seconds": time.perf_counter() - started,
            "size_bytes": len(engine.plan),
            "layers_by_type": dict(types),
        }
    return found


def refusals(models: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what was refused, by the part of the message that says why."""
    found: dict[str, list[str]] = {}
    for row in models:
        for precision, form in row["forms"].items():
            for gpu, engine in form["engines"].items():
                if "refused" in engine:
                    reason = re.sub(r"'[^']*'", "'...'", engine["refused"].partition(" In compileGraph")[0])
                    reason = reason.rpartition("] ")[2]
                    found.setdefault(reason, []).append(f"{row['family']}: {precision} for {gpu}")
    return found


def in_words(row: dict[str, Any]) -> str:
    """Return the model's line of the table in README.md."""
    cells = []
    for precision in PRECISIONS:
        form = row["forms"].get(precision)
        if form is None:
            cells.append("")
            continue
        kept = f", {form['float_layers']} of {form['layers']} float" if form.get("float_layers") else ""
        missed = " MISSED" if form["missed"] else ""
        cells.append(f"{form['size_bytes'] / 1e6:.2f} MB, {form['max_error_over_std']:.1e}{missed}{kept}")
    engines = [engine for form in row["forms"].values() for engine in form["engines"].values()]
    built = [engine for engine in engines if "refused" not in engine]
    seconds = statistics.median(engine["seconds"] for engine in built)
    return f"| {row['model']} | {' | '.join(cells)} | {len(built)} of {len(engines)}, {seconds:.1f} s |"


if __name__ == "__main__":
    sys.exit(main())
