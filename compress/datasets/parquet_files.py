"""Parquet files of one data set: shards, columns, labels and class names. Knows nothing of recipes."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compress.datasets.base import Int64Array
from runtime.errors import DataError
from runtime.files import sha256_of_file

SPLITS = ("train", "validation", "test")
BATCH_ROWS = 1024

_SHARD = re.compile(r"(?P<split>\w+)-(?P<index>\d+)-of-(?P<count>\d+)\.parquet")


@dataclass(frozen=True)
class Shards:
    """The files of one split, in order. Rows count through all of them."""

    split: str
    paths: tuple[Path, ...]

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        return tuple(sha256_of_file(path) for path in self.paths)

    @cached_property
    def rows(self) -> int:
        total = 0
        for path in self.paths:
            with _open(path) as file:
                total += file.metadata.num_rows
        return total

    @cached_property
    def schema(self) -> pa.Schema:
        with _open(self.paths[0]) as file:
            return file.schema_arrow

    def batches(self, column: str) -> Iterator[pa.Array]:
        """Yield one column, a few rows at a time. Raises DataError for a missing column or damaged pages."""
        for path in self.paths:
            with _open(path) as file:
                _require_column(file.schema_arrow, column, path)
                with _damage_named(path):
                    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                        yield batch.column(0)

    def images(self, column: str) -> Iterator[bytes | None]:
        """Yield the encoded image of each row: plain binary, or the field `bytes` of a struct."""
        for batch in self.batches(column):
            kind = batch.type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                batch = batch.field("bytes")  # null where the struct is: parquet stores nothing below a null
            if not _is_binary(batch.type):
                raise DataError(
                    f"{self.paths[0]}: column '{column}' is {kind}, expected encoded images: "
                    f"binary, or a struct with the binary field 'bytes'"
                )
            yield from batch.to_pylist()

    def texts(self, column: str) -> Iterator[str | bytes | None]:
        """Yield the text of each row: None where it is null, its bytes where they are not UTF-8."""
        for batch in self.batches(column):
            kind = batch.type
            if pa.types.is_dictionary(kind):
                batch = batch.dictionary_decode()
            if not (pa.types.is_string(batch.type) or pa.types.is_large_string(batch.type)):
                raise DataError(f"{self.paths[0]}: column '{column}' is {kind}, expected text")
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                yield from map(_decoded, batch.cast(pa.large_binary()).to_pylist())

    def labels(self, column: str) -> pa.Array:
        """Return the label column as int64 or string."""
        chunks = [self._plain(batch, column) for batch in self.batches(column)]
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.int64())

    def _plain(self, batch: pa.Array, column: str) -> pa.Array:
        if pa.types.is_dictionary(batch.type):
            batch = batch.dictionary_decode()
        kind = batch.type
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            # Not safe: a uint64 beyond int64 becomes negative, and so is reported as a label out of range.
            return batch.cast(pa.int64(), safe=False)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return batch.cast(pa.string())
        raise DataError(f"{self.paths[0]}: column '{column}' is {kind}, expected labels: whole numbers or text")


def find_shards(folder: Path) -> dict[str, Shards]:
    """Return the splits in `folder`, files `<split>-<i>-of-<n>.parquet`.

    Raises DataError when one of the n is missing.
    """
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = _SHARD.fullmatch(path.name)
        if match is None or match["split"] not in SPLITS:
            continue
        split, count = match["split"], int(match["count"])
        if counts.setdefault(split, count) != count:
            raise DataError(
                f"{folder}: split {split} is there in {counts[split]} and in {count} parts",
                remedy="Keep the files of one of the two.",
            )
        found.setdefault(split, {})[int(match["index"])] = path
    for split, paths in found.items():
        if missing := sorted(set(range(counts[split])) - set(paths)):
            names = ", ".join(f"{split}-{index:05d}-of-{counts[split]:05d}.parquet" for index in missing[:20])
            raise DataError(f"{folder}: split {split} has {len(paths)} of {counts[split]} parts", f"Add {names}.")
    return {
        split: Shards(split, tuple(found[split][i] for i in sorted(found[split]))) for split in SPLITS if split in found
    }


def shard_split(path: Path) -> str | None:
    """Return the split that a file belongs to by its name, None for other files."""
    match = _SHARD.fullmatch(path.name)
    return match["split"] if match is not None and match["split"] in SPLITS else None


def embedded_class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the ClassLabel names that Hugging Face `datasets` writes into the schema, None without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """Which stored value is which class.

    names: of the classes. values: the stored value of each class, int64 or string, None for "its index, or
    its name".
    """

    names: tuple[str, ...]
    values: pa.Array | None = None

    @classmethod
    def of_values(cls, column: pa.Array) -> ClassLabels:
        """Return one class for each distinct value, in sorted order. Negative numbers mean "no label"."""
        distinct = pc.unique(column.drop_null())
        if pa.types.is_integer(distinct.type):
            distinct = distinct.filter(pc.greater_equal(distinct, 0))
        values = distinct.take(pc.sort_indices(distinct))
        return cls(tuple(map(str, values.to_pylist())), values)

    def encode(self, column: pa.Array) -> tuple[Int64Array, dict[int, str]]:
        """Return the class of each row (N,), -1 where it has none, and what is wrong with those rows."""
        values = self.values
        if values is None:
            named = pa.types.is_string(column.type)
            values = pa.array(self.names if named else range(len(self.names)), column.type)
        if values.type != column.type:
            raise DataError(f"labels are {column.type} here and {values.type} in the train split")
        codes = pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        bad = {int(row): self._reason(column[int(row)].as_py()) for row in np.flatnonzero(codes < 0)}
        return codes, bad

    def _reason(self, value: Any) -> str:
        if value is None:
            return "label is null"
        if self.values is None and not isinstance(value, str):
            return f"label is {value}, expected 0 to {len(self.names) - 1}"
        return f"label is {value!r}, which is none of the {len(self.names)} classes"


def _decoded(text: bytes | None) -> str | bytes | None:
    try:
        return text if text is None else text.decode("utf-8")
    except UnicodeDecodeError:
        return text


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _require_column(schema: pa.Schema, column: str, path: Path) -> None:
    if schema.names.count(column) == 1:
        return
    near = get_close_matches(column, schema.names, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise DataError(
        f"{path}: no column '{column}'; it has {', '.join(schema.names) or 'none'}",
        remedy=f"{hint}Name the columns in the source's options: `image_column` or `text_column`, `label_column`.",
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    with _damage_named(path):
        file = pq.ParquetFile(path)
    with file:
        yield file


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise DataError(
            f"{path} ({size:,} bytes) is not a whole parquet file: {str(error).splitlines()[0]}",
            remedy="It may be truncated or still downloading: copy it again and compare the sizes.",
        ) from error
