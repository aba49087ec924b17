"""Rows to run: real inputs with their labels and stable row ids, from an `.npz` file.

Nothing is unpickled: an array of Python objects is refused.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from runtime.errors import DataError
from runtime.tokens import without_tail

if TYPE_CHECKING:
    from runtime.bundle import Bundle

_NAMED_AT_MOST = 10
# Bytes from which on an array of a file stays there: a device's memory may not hold all test rows.
MAPPED_FROM = 1 << 30


@dataclass(frozen=True, eq=False)
class Rows:
    """`inputs` (N, *shape); `labels`, `row_ids` int64 (N,); `logits` float32 (N, C) where they are known."""

    inputs: np.ndarray
    labels: np.ndarray
    row_ids: np.ndarray
    logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> Rows:
        """Return the first `count` rows."""
        logits = None if self.logits is None else self.logits[:count]
        return replace(
            self,
            inputs=self.inputs[:count],
            labels=self.labels[:count],
            row_ids=self.row_ids[:count],
            logits=logits,
        )


def read_rows(path: str | Path, *, numbered: bool = True) -> Rows:
    """Read an `.npz` with inputs, labels and row_ids. Raises DataError if it is damaged or incomplete.

    numbered: whether row_ids must be there; without them a row's id is its position.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return rows_from_npz(file, str(path), path=path, numbered=numbered)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", remedy=_HOW_TO_WRITE) from error


def rows_from_npz(
    file: IO[bytes], origin: str, *, with_logits: bool = False, path: Path | None = None, numbered: bool = True
) -> Rows:
    """Read rows from an open `.npz`; `origin` is what error messages call it. Raises DataError.

    path: of the file, where large arrays may stay in it (their checksum is then not looked at).
    """
    names = ("inputs", "labels", "row_ids", "logits") if with_logits else ("inputs", "labels", "row_ids")
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{origin}: one array, expected an .npz with {', '.join(names)}", remedy=_HOW_TO_WRITE)
        with archive:
            arrays = {name: _read(archive, name, path) for name in names if name in archive.files}
    except (
        ValueError,
        EOFError,
        OSError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise DataError(f"{origin}: not a whole .npz file ({error})", remedy=_HOW_TO_WRITE) from error
    if not numbered and "inputs" in arrays:
        arrays.setdefault("row_ids", np.arange(len(np.atleast_1d(arrays["inputs"]))))
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{origin}: {', '.join(missing)} missing", remedy=_HOW_TO_WRITE)
    return Rows(arrays["inputs"], arrays["labels"], arrays["row_ids"], arrays.get("logits"))


def _read(archive: np.lib.npyio.NpzFile, name: str, path: Path | None) -> np.ndarray:
    entry = archive.zip.getinfo(f"{name}.npy")  # type: ignore[union-attr]  # None only once it is closed
    if path is None or entry.file_size < MAPPED_FROM or entry.compress_type != zipfile.ZIP_STORED:
        return archive[name]
    return _mapped(path, entry)


def _mapped(path: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """Return a stored array where it lies in the file, so that only what is used is read."""
    try:
        with open(path, "rb") as file:
            file.seek(entry.header_offset)
            lengths = struct.unpack("<2H", file.read(30)[26:])  # of the name and of the extra field that follow
            file.seek(sum(lengths), os.SEEK_CUR)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its header is not of version 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    except Exception as error:  # numpy reads the header with Python's parser and raises what that does
        raise ValueError(f"{entry.filename}: {error}") from error


def check_rows(rows: Rows, bundle: Bundle, origin: str) -> None:
    """Raise DataError, naming the row ids at fault, unless `rows` fit the model of `bundle`."""
    spec = bundle.input
    count = len(rows.inputs) if rows.inputs.ndim else 0
    if not (rows.inputs.ndim and spec.takes(rows.inputs.shape[1:])):
        raise DataError(f"{origin}: inputs has shape {list(rows.inputs.shape)}, expected {spec.in_words()}")
    _check_array(f"{origin}: inputs", rows.inputs, spec.dtype, rows.inputs.shape)
    if count == 0:
        raise DataError(f"{origin}: no rows, expected at least one")
    _check_array(f"{origin}: labels", rows.labels, "int64", (count,))
    _check_array(f"{origin}: row_ids", rows.row_ids, "int64", (count,))
    outside = (rows.labels < 0) | (rows.labels >= bundle.classes)
    if outside.any():
        raise DataError(
            f"{origin}: labels outside 0 to {bundle.classes - 1} at row ids {named(rows.row_ids[outside])}",
            remedy=f"Labels are indices into the bundle's class names ({bundle.classes} of them).",
        )
    ids, counts = np.unique(rows.row_ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{origin}: row ids that occur more than once: {named(ids[counts > 1])}")
    if bundle.text is not None:
        wrong = ((rows.inputs < 0) | (rows.inputs >= bundle.text.vocabulary)).any(axis=1)
        if wrong.any():
            raise DataError(
                f"{origin}: ids outside 0 to {bundle.text.vocabulary - 1} at row ids {named(rows.row_ids[wrong])}",
                remedy="Make the ids with the bundle's own featuriser: open_bundle(path).text.encode(texts).",
            )
    if bundle.table is not None:
        ids = rows.inputs[:, bundle.table.numbers :]
        wrong = ((ids < 0) | (ids >= bundle.table.buckets)).any(axis=1)
        if wrong.any():
            raise DataError(
                f"{origin}: ids outside 0 to {bundle.table.buckets - 1} at row ids {named(rows.row_ids[wrong])}",
                remedy="Make the rows with the bundle's own featuriser: open_bundle(path).table.encode(lines).",
            )
    if rows.logits is not None:
        _check_array(f"{origin}: logits", rows.logits, "float32", (count, bundle.classes))
        wrong = ~np.isfinite(rows.logits).all(axis=1)
        if wrong.any():
            raise DataError(f"{origin}: logits that are not finite at row ids {named(rows.row_ids[wrong])}")
    if rows.inputs.dtype.kind == "f":
        wrong = ~np.isfinite(rows.inputs).reshape(count, -1).all(axis=1)
        if wrong.any():
            raise DataError(f"{origin}: inputs that are not finite at row ids {named(rows.row_ids[wrong])}")


def shortened(inputs: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Return inputs (N, length) up to their longest text where the model takes any length, else as they are."""
    if bundle.text is None or not any(bundle.input.free):
        return inputs
    return without_tail(inputs, bundle.text.padding)


def named(row_ids: Iterable[int] | np.ndarray) -> str:
    """Write row ids for a message: the first ten, then how many more."""
    ids = [int(each) for each in row_ids]
    more = f" and {len(ids) - _NAMED_AT_MOST} more" if len(ids) > _NAMED_AT_MOST else ""
    return ", ".join(map(str, ids[:_NAMED_AT_MOST])) + more


def _check_array(what: str, array: np.ndarray, dtype: str, shape: tuple[int | str, ...]) -> None:
    """`"N"` in `shape` stands for any length."""
    fits = array.ndim == len(shape) and all(want in ("N", came) for want, came in zip(shape, array.shape, strict=True))
    if not fits:
        raise DataError(f"{what} has shape {list(array.shape)}, expected [{', '.join(map(str, shape))}]")
    if array.dtype != np.dtype(dtype):
        raise DataError(f"{what} has dtype {array.dtype}, expected {dtype}")


_HOW_TO_WRITE = (
    "Write the rows with numpy.savez(path, inputs=..., labels=..., row_ids=...): "
    "inputs (N, ...) as the model takes them, labels and row_ids int64 (N,)."
)
