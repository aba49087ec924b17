"""Writes the folder that goes to the device; `runtime.bundle` reads it."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from onnx import ModelProto, helper, load_model_from_string

from export.graph import INPUT_NAME, InputSignature
from export.parity import Gate
from export.to_onnx import axes_of, input_axes
from runtime.bundle import MANIFEST, open_bundle, write_checksums
from runtime.errors import BundleError, ExportError
from runtime.featuriser import Featuriser
from runtime.files import folder_atomically, json_text, write_atomically
from runtime.manifest import FORMAT_VERSION, EngineRequest
from runtime.table import HashedColumns
from runtime.tokens import FILE as TOKENIZER
from runtime.tokens import Tokens

MODEL = "model.onnx"
SAMPLES = "samples.npz"
LABELS = "labels.txt"
CARD = "MODEL_CARD.md"

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip entry can have
_NPZ_CHUNK = 1 << 26  # bytes that are written at a time


class RowArray(Protocol):
    """An array, or what gives some of its rows at a time as one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class OnnxForm:
    """Another form of the bundle's model as a serialised ONNX file, a format named after its precision.

    gate: what takes the place of its precision's gate.
    """

    precision: str
    model: bytes
    gate: Gate | None = None

    @property
    def file(self) -> str:
        return f"model.{self.precision}.onnx"


def write_bundle(
    folder: Path,
    *,
    name: str,
    stage: str,
    recipe_key: str,
    classes: int,
    subclasses: int,
    class_names: Sequence[str],
    signature: InputSignature,
    text: Featuriser | None = None,
    table: HashedColumns | None = None,
    onnx: bytes,
    precision: str = "fp32",
    forms: Sequence[OnnxForm] = (),
    inputs: np.ndarray,
    labels: np.ndarray,
    row_ids: np.ndarray,
    logits: np.ndarray,
    metrics: Mapping[str, float],
    batch_sizes: Sequence[int],
    engines: Sequence[EngineRequest] = (),
    card: str = "",
) -> None:
    """Write a bundle to `folder`, replacing what is there; the same content gives the same bytes.

    onnx: the serialised model of `export.to_onnx`, format `onnx`, precision fp32; of a binary student the one of
    `export.to_portable`, of a quantised one that of `export.to_qdq`, whose `precision` is int8. forms: those of
    `export.to_packed`, `to_fp16`, `to_int8`, ..., beside it.
    inputs (N, *signature.shape), labels and row_ids (N,), logits (N, C): real rows with the logits of torch.
    batch_sizes: the profile that the formats are verified at. text: what makes the ids of a text, for a signature of
    ids; it travels along, so that the device makes the same ones. table: the same for a signature with numbers.
    engines: those to be built of the formats (`export.engines`), now or on the device.
    card: what people are told of the model, as Markdown.
    Raises ExportError, leaving `folder` as it was, where the parts do not belong together.
    """
    _check_names_and_metrics(class_names, metrics)
    _check_text(signature, text)
    _check_table(signature, table)
    model = _parsed_model(onnx, signature)
    formats = {"onnx": _onnx_entry(model, MODEL, len(onnx), precision)}
    files = {MODEL: onnx}
    for form in forms:
        other = _parsed_model(form.model, signature)
        _check_alike(model, other, form.precision)
        formats[form.precision] = _onnx_entry(other, form.file, len(form.model), form.precision, form.gate)
        files[form.file] = form.model
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "stage": stage,
        "recipe_key": recipe_key,
        "classes": classes,
        "subclasses": subclasses,
        "class_names": list(class_names),
        "input": _input_entry(signature),
        "outputs": _output_entries(model),
        "batch_sizes": [int(size) for size in batch_sizes],
        "formats": formats,
        **({"engines": [each.to_json() for each in engines]} if engines else {}),
        "samples": SAMPLES,
        "labels": LABELS,
        "metrics": dict(metrics),
        **({"text": text.to_json()} if text else {}),
        **({"table": table.to_json()} if table else {}),
    }
    samples = {
        "inputs": inputs,
        "labels": np.asarray(labels, dtype=np.int64),
        "row_ids": np.asarray(row_ids, dtype=np.int64),
        "logits": np.asarray(logits, dtype=np.float32),
    }
    with folder_atomically(Path(folder)) as beside:
        for file, content in files.items():
            write_atomically(beside / file, content)
        write_atomically(beside / SAMPLES, npz_bytes(samples))
        write_atomically(beside / LABELS, "".join(f"{each}\n" for each in class_names))
        if card:
            write_atomically(beside / CARD, card)
        if isinstance(text, Tokens) and text.definition is not None:
            write_atomically(beside / TOKENIZER, text.definition)
        write_atomically(beside / MANIFEST, json_text(manifest))
        write_checksums(beside)
        _require_readable(beside, Path(folder))


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return `arrays` as an .npz file that depends on nothing but them."""
    buffer = io.BytesIO()
    write_npz(buffer, arrays)
    return buffer.getvalue()


def write_npz(file: IO[bytes], arrays: Mapping[str, RowArray]) -> None:
    """Write `arrays` as an .npz file that depends on nothing but them, some rows at a time.

    numpy.savez leaves dates and attributes to the interpreter's zipfile; here they are fixed. Stored, not
    deflated: compressed bytes differ between versions of zlib.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"{name} holds objects, and they would be pickled (allow_pickle=False)")
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_EPOCH)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=array.nbytes > zipfile.ZIP64_LIMIT // 2) as content:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(content, {**header, "shape": array.shape})
                rows = max(1, _NPZ_CHUNK * len(array) // max(array.nbytes, 1))
                for first in range(0, len(array), rows):
                    content.write(np.ascontiguousarray(array[first : first + rows]).tobytes())


def _input_entry(signature: InputSignature) -> dict[str, Any]:
    return {
        "name": INPUT_NAME,
        "dtype": signature.dtype,
        "shape": list(signature.shape),
        "layout": signature.layout,
        **({"dynamic": "L"} if signature.dynamic_length else {}),
    }


def _output_entries(model: ModelProto) -> list[dict[str, Any]]:
    """Describe the model's outputs as the model itself has them, without the batch axis."""
    return [
        {
            "name": output.name,
            "dtype": np.dtype(helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)).name,
            "shape": [axis.dim_value for axis in output.type.tensor_type.shape.dim[1:]],
        }
        for output in model.graph.output
    ]


def _onnx_entry(
    model: ModelProto, file: str, size_bytes: int, precision: str, gate: Gate | None = None
) -> dict[str, Any]:
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    return {
        "file": file,
        "size_bytes": size_bytes,
        "precision": precision,
        "opset": opset,
        "ir_version": model.ir_version,
        **({"gate": dataclasses.asdict(gate)} if gate else {}),
    }


def _check_alike(model: ModelProto, other: ModelProto, form: str) -> None:
    """Refuse another form of a model that gives something else."""
    outputs, came = _output_entries(model), _output_entries(other)
    if outputs != came:
        raise ExportError(f"the {form} model gives {came}; expected {outputs}, as the other form does")


def _parsed_model(data: bytes, signature: InputSignature) -> ModelProto:
    """Parse a serialised model. Raises ExportError where it is none or takes another input."""
    try:
        model = load_model_from_string(data)
    except Exception as error:  # protobuf's own type, which differs between its implementations
        raise ExportError(f"the model of {len(data)} bytes is not ONNX ({error})") from error
    inputs = {each.name: axes_of(each) for each in model.graph.input}
    expected = input_axes(signature)[1:]
    if {name: axes[1:] for name, axes in inputs.items()} != {INPUT_NAME: expected}:
        came = ", ".join(f"{name} {axes}" for name, axes in inputs.items())
        raise ExportError(f"the model takes {came}; expected {INPUT_NAME} (N, *{expected})")
    return model


def _check_names_and_metrics(class_names: Sequence[str], metrics: Mapping[str, float]) -> None:
    for each in class_names:
        if len(each.splitlines()) != 1:
            raise ExportError(f"class name {each!r} does not fit on one line of {LABELS}")
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise ExportError(f"metric {key} is {value}; expected a finite number")


def _check_text(signature: InputSignature, text: Featuriser | None) -> None:
    made = (text.length, text.vocabulary, text.padding, text.dynamic_length) if text else None
    taken = (signature.shape[0], signature.ids, signature.padding, signature.dynamic_length)
    if made != (taken if signature.ids is not None and not signature.numbers else None):
        raise ExportError(f"the input is {signature}; the featuriser of texts is {text}: expected the one that fits it")


def _check_table(signature: InputSignature, table: HashedColumns | None) -> None:
    made = (table.numbers, table.length, table.buckets) if table else None
    taken = (signature.numbers, signature.shape[0], signature.ids) if signature.numbers else None
    if made != taken:
        raise ExportError(f"the input is {signature}; the featuriser of rows is {table}: expected the one that fits it")


def _require_readable(beside: Path, folder: Path) -> None:
    """Read the bundle as a device would before it takes its place: the reader's rules are the only ones."""
    try:
        open_bundle(beside).samples()
    except BundleError as error:
        message = error.message.replace(str(beside), str(folder))
        raise ExportError(f"the bundle would not open: {message}") from error
