"""Makes the forms that a recipe asks for (`compress.formats`) of an exported student: one function a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compress.datasets.base import Split
from compress.formats import (
    Bf16Spec,
    FormatSpec,
    Fp16Spec,
    Int4Spec,
    Int8CpuSpec,
    Int8Spec,
    PackedSpec,
    QonnxSpec,
)
from export.bundle import OnnxForm
from export.older_opset import at_opset
from export.to_bf16 import bf16_from_onnx
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.to_packed import packed_from_onnx
from export.to_qdq import qdq_from_onnx
from export.to_qonnx import qonnx_from_onnx
from export.verify import WANTED_ROWS

JUDGED_ROWS = 1000  # training rows by which layers are kept in float; never test rows, which would be a choice by them


@dataclass(frozen=True, eq=False)
class Source:
    """What forms are made of: the student as FP32 ONNX (grids as float arithmetic), its binary layers, training rows.

    notify: says what came of it. opset: of the files, where it is not that of `export.to_onnx`.
    """

    model: bytes
    layers: Mapping[str, str]
    train: Split
    notify: Callable[[str], None]
    opset: int | None = None

    def written(self, model: bytes) -> bytes:
        """Return a finished model in the opset of the files."""
        return model if self.opset is None else at_opset(model, self.opset)


@dataclass(frozen=True, eq=False)
class Made:
    """A form for the bundle. record: how it was come by, for the run's `record_file`."""

    form: OnnxForm
    record: Mapping[str, Any] | None = None


def record_file(format_name: str) -> str:
    """Return the file of a run that says how a format was come by."""
    return f"quantization.{format_name}.json"


def form_of(spec: FormatSpec, source: Source) -> Made:
    """Return the form that `spec` asks for. Raises ExportError where the student has none, or none in its opset."""
    made = _MAKERS[spec.kind](spec, source)
    return replace(made, form=replace(made.form, model=source.written(made.form.model)))


def _packed(spec: PackedSpec, source: Source) -> Made:
    return Made(OnnxForm("packed", packed_from_onnx(source.model, layers=source.layers)))


def _fp16(spec: Fp16Spec, source: Source) -> Made:
    return Made(OnnxForm("fp16", fp16_from_onnx(source.model)))


def _bf16(spec: Bf16Spec, source: Source) -> Made:
    return Made(OnnxForm("bf16", bf16_from_onnx(source.model)))


def _int8(spec: Int8Spec, source: Source) -> Made:
    """Quantise on training rows, and say what came of it."""
    kind = spec.kind
    calibration, judged = calibration_rows(len(source.train), spec.rows)
    inputs, labels = source.train.inputs, source.train.labels
    source.notify(f"{kind}: calibrating on {len(calibration):,} training rows, judging on {len(judged):,}")
    made = int8_from_onnx(
        source.model,
        np.asarray(inputs[calibration]),
        np.asarray(inputs[judged]),
        labels[judged],
        gate=spec.resolved_gate,
        method=spec.method,
        keep_float=spec.keep_float,
        form="cpu" if isinstance(spec, Int8CpuSpec) else "signed",
    )
    if made.float_layers:
        source.notify(f"{kind}: {len(made.float_layers)} of {len(made.layers)} layers stay float")
    if not made.result.passed:
        source.notify(f"warning: {kind}: no choice of layers meets the gate: {'; '.join(made.result.reasons)}")
    return Made(OnnxForm(kind, made.model, spec.resolved_gate if spec.gate else None), made.to_json())


def _int4(spec: Int4Spec, source: Source) -> Made:
    return Made(OnnxForm("int4", qdq_from_onnx(source.model, int4=True)))


def _qonnx(spec: QonnxSpec, source: Source) -> Made:
    return Made(OnnxForm("qonnx", qonnx_from_onnx(source.model)))


def calibration_rows(count: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of `rows` training rows to calibrate with and of others to judge by, of all where few are left.

    They are the same for every seed of a recipe.
    """
    order = np.random.default_rng(0).permutation(count)
    others = order[rows : rows + JUDGED_ROWS]
    return np.sort(order[:rows]), np.sort(others if len(others) >= WANTED_ROWS else order[:JUDGED_ROWS])


_MAKERS: Mapping[str, Callable[[Any, Source], Made]] = {
    "packed": _packed,
    "fp16": _fp16,
    "bf16": _bf16,
    "int8": _int8,
    "int8_cpu": _int8,
    "int4": _int4,
    "qonnx": _qonnx,
}
