"""`edgefold verify A --against B`: two forms or two ONNX files on the same inputs, and the first node that departs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.bisect import Bisection, bisect
from export.parity import GATES, Comparison, Gate, compare, gate_of
from export.trace import argument_of
from runtime.bundle import MANIFEST, Bundle, open_bundle
from runtime.custom_ops import library_path
from runtime.errors import BundleError, ExportError, UsageError
from runtime.manifest import FormatFile
from runtime.onnx_file import onnx_header_from_bytes, refuse_external_data
from runtime.rows import Rows, read_rows

DRAWN_ROWS = 256

_CUSTOM_DOMAIN = "edgefold"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two models. gate: what it may differ by where it is judged; None where its precision has to tell."""

    name: str
    path: Path
    model: bytes
    library: Path | None
    form: FormatFile | None = None

    @property
    def precision(self) -> str:
        return self.form.precision if self.form else precision_of(self.model)

    @property
    def gate(self) -> Gate:
        return Gate(**self.form.gate) if self.form and self.form.gate else gate_of(self.precision)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a comparison came to. origin: of the rows, in words."""

    side: Side
    reference: Side
    origin: str
    gate: Gate
    comparison: Comparison
    bisection: Bisection

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "against",
            "model": self.side.name,
            "reference": self.reference.name,
            "inputs": self.origin,
            "precision": self.side.precision,
            "gate": vars(self.gate),
            "comparison": self.comparison.to_json(),
            "passed": self.comparison.passed,
            "bisection": self.bisection.to_json(),
        }


def verify_against(
    target: Path,
    against: str,
    *,
    format: str | None = None,
    data: Path | None = None,
    bundle: Path | None = None,
    tolerance: float | None = None,
) -> Verdict:
    """Judge `target` by the gate of its precision, and find where it and its reference part.

    target: an ONNX file and `against` another one, or a bundle with `format` and `against` another of its formats or a
    file. Rows are those of `data`, else the samples of the bundle that is named or that a file lies in, else drawn.
    tolerance: what a value on the way may differ by, in its standard deviations; as for the logits unless given.
    Raises UsageError, BundleError, ExportError, EngineError.
    """
    home = _bundle_at(target) or (open_bundle(bundle) if bundle else None)
    side = _side(target, format, home)
    reference = _side_by_name(against, home)
    if home is None:
        home = _bundle_at(Path(against))
    rows, origin = _rows(data, home, side)
    found = bisect(
        side.model,
        reference.model,
        rows.inputs,
        tolerance=side.gate.max_error_over_std if tolerance is None else tolerance,
        names=(side.name, reference.name),
        libraries=(side.library, reference.library),
    )
    came, expected = found.outputs, found.reference_outputs
    if came.ndim != 2:
        raise ExportError(f"{side.name} gives {list(came.shape)}; expected logits (N, C)")
    labels = rows.labels[: len(came)]
    return Verdict(side, reference, origin, side.gate, compare(expected, came, labels, side.gate), found)


def precision_of(model: bytes) -> str:
    """Return the precision whose gate judges an ONNX file that no manifest describes, by what is in it."""
    graph = onnx.load_model_from_string(model).graph
    if any(node.domain == _CUSTOM_DOMAIN for node in graph.node):
        return "packed"
    if any(node.op_type in ("QuantizeLinear", "QLinearConv", "QLinearMatMul") for node in graph.node):
        return "int8"
    kinds = {each.data_type for each in graph.initializer}
    return next((name for name, kind in _NARROW.items() if kind in kinds and name in GATES), "fp32")


_NARROW = {"bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}


def _bundle_at(target: Path) -> Bundle | None:
    """Return the bundle that is `target`, or that an ONNX file lies in."""
    folder = target if target.is_dir() else target.parent
    return open_bundle(folder) if target.is_dir() or (folder / MANIFEST).is_file() else None


def _side(target: Path, format: str | None, home: Bundle | None) -> Side:
    if not target.is_dir():
        if format is not None:
            raise UsageError(f"--format {format}: {target} is one file", "Name a bundle, or leave --format out.")
        return _side_of_file(target)
    assert home is not None  # a folder is a bundle, or was refused
    if format is None:
        raise UsageError(f"{target}: a bundle, so --format has to say what to compare", _formats(home))
    return _side_of_format(home, format)


def _side_by_name(against: str, home: Bundle | None) -> Side:
    """Return the format of that name, or the file."""
    if home is not None and against in home.formats:
        return _side_of_format(home, against)
    if not Path(against).is_file():
        remedy = _formats(home) if home else "Name an ONNX file."
        raise UsageError(f"--against {against}: no such file{' or format' if home else ''}", remedy)
    return _side_of_file(Path(against))


def _formats(bundle: Bundle) -> str:
    return f"It has {', '.join(bundle.formats)}."


def _side_of_format(bundle: Bundle, format: str) -> Side:
    form = bundle.format(format)
    return _checked(format, bundle.file_of(format), bundle.read_bytes(form.file), form)


def _side_of_file(path: Path) -> Side:
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    home = _bundle_at(path)
    form = next((each for each in home.formats.values() if each.file == path.name), None) if home else None
    return _checked(str(path), path, model, form)


def _checked(name: str, path: Path, model: bytes, form: FormatFile | None) -> Side:
    """Refuse what is no ONNX file, or wants weights from elsewhere, before an engine sees it."""
    header = onnx_header_from_bytes(model, str(path))
    refuse_external_data(header, path)
    return Side(name, path, model, library_path() if _CUSTOM_DOMAIN in header.opsets else None, form)


def _rows(data: Path | None, home: Bundle | None, side: Side) -> tuple[Rows, str]:
    if data is not None:
        return read_rows(data), str(data)
    if home is not None:
        return home.samples(), f"samples of {home.name}"
    dtype, shape = argument_of(side.model, side.name)
    if dtype not in ("uint8", "float32") or not all(isinstance(size, int) for size in shape):
        raise UsageError(
            f"{side.name} takes {dtype} {list(shape)}: no rows can be drawn for it", "Give --data rows.npz."
        )
    generator = np.random.default_rng(0)
    size = (DRAWN_ROWS, *(int(each) for each in shape))
    inputs = generator.integers(0, 256, size) if dtype == "uint8" else generator.normal(size=size)
    # Without labels accuracy has no meaning; a class apart from all others never is the prediction.
    return Rows(inputs.astype(dtype), np.full(DRAWN_ROWS, -1), np.arange(DRAWN_ROWS)), "drawn at random"
