"""Rows of a text and a label from their authors' own files: what the readers of all those formats share."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from compress.datasets.author_files import AuthorFiles
from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Int32Array, Int64Array, signature_of_text
from compress.datasets.cache import cached_rows
from compress.datasets.parquet_files import ClassLabels
from runtime.errors import DataError
from runtime.text import VERSION, HashedNgrams

_CHUNK = 1024
_WHOLE = re.compile(r"-?[0-9]{1,18}")  # what int64 holds


class TextRow(NamedTuple):
    """A row as written. problem: why it cannot be used; then text and label are arbitrary."""

    text: str
    label: str
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class TextFiles(AuthorFiles):
    """Files that are read row by row; what a row is, is a subclass's to say.

    The rows are gone through twice, once for the labels and once for the ids, so that of a split there is never more in
    memory than its labels and its ids. The texts of train are not kept: nothing shows them.

    known: the classes and how their labels are written, None for the distinct labels of train. left_out: labels whose
    rows are none of the set.
    """

    featuriser: HashedNgrams
    known: ClassLabels | None = None
    left_out: frozenset[str] = frozenset()

    @property
    def splits(self) -> tuple[str, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define splits")

    def written(self, split: str) -> Iterator[TextRow]:
        """Yield the rows of a split in their order, those to be left out among them."""
        raise NotImplementedError(f"{type(self).__name__} must define written")

    @cached_property
    def labels(self) -> ClassLabels:
        """Return the classes: those known, else the distinct labels of train."""
        return self.known or ClassLabels.of_values(label_column(self._scanned["train"].labels))

    def counted(self) -> dict[str, int]:
        return {split: len(scan.codes) for split, scan in self._scanned.items()}

    def examined(self) -> dict[str, tuple[int, int]]:
        return {split: (len(scan.codes), len(self._classes(scan)[1])) for split, scan in self._scanned.items()}

    def inspect(self) -> Declaration:
        names = self.labels.names
        return Declaration(len(names), names, signature_of_text(self.featuriser), None, self.rows)

    def fingerprint(self) -> str:
        # The featuriser's options are part of a stage's settings, its version is not.
        return hashlib.sha256(f"text {VERSION}\n{super().fingerprint()}\n".encode()).hexdigest()

    def stored(self, cache: Path | None) -> dict[str, StoredRows]:
        return {split: self._rows_of(split, scan, cache) for split, scan in self._scanned.items()}

    def _rows_of(self, split: str, scan: Scan, cache: Path | None) -> StoredRows:
        labels, bad = self._classes(scan)
        if not len(labels):
            raise DataError(f"{self.title} ({self.folder}): split {split} has no rows")
        shape = (len(labels), self.featuriser.length)
        inputs, _ = cached_rows(
            cache, self._cache_key(split), shape, np.int32, lambda: (self._encode(split, shape), {})
        )
        texts = None if scan.texts is None else np.array(scan.texts, dtype=np.object_)
        return StoredRows(inputs, labels, bad, texts)

    @cached_property
    def _scanned(self) -> dict[str, Scan]:
        return {split: scan_rows(self._kept(split), with_texts=split != "train") for split in self.splits}

    def _classes(self, scan: Scan) -> tuple[Int64Array, dict[int, str]]:
        """Return the class of each row (N,) and what is wrong with the bad ones."""
        classes, unknown = self.labels.encode(label_column(scan.labels, self.labels.values))
        codes = np.array(scan.codes, dtype=np.int64)
        # The last place is for the rows without a label: their code is -1.
        rows = np.append(classes, -1)[codes]
        bad = {int(row): unknown[code] for row in np.flatnonzero(rows < 0) if (code := int(codes[row])) in unknown}
        return rows, {**bad, **scan.bad}

    def _encode(self, split: str, shape: tuple[int, int]) -> Int32Array:
        inputs = np.zeros(shape, dtype=np.int32)
        texts = (row.text for row in self._kept(split))
        for first in range(0, shape[0], _CHUNK):
            chunk = list(islice(texts, _CHUNK))
            inputs[first : first + len(chunk)] = self.featuriser.encode(chunk)
        return inputs

    def _kept(self, split: str) -> Iterator[TextRow]:
        return (row for row in self.written(split) if row.label not in self.left_out or row.problem)

    def _cache_key(self, split: str) -> str:
        description = {
            "featuriser": self.featuriser.to_json(),
            "files": [self.fingerprint_of(wanted) for wanted in self.wanted],
            "form": self.form_in_words,
            "left_out": sorted(self.left_out),
            "split": split,
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Scan:
    """What the first pass over a split leaves.

    codes: (N,) which of `labels` each row has, -1 at the bad rows. labels: the distinct labels as written, in the order
    in which they come. bad: what is wrong with a row, by row id. texts: None where they are not kept.
    """

    codes: array[int]
    labels: list[str]
    bad: dict[int, str]
    texts: list[str] | None


def scan_rows(rows: Iterable[TextRow], *, with_texts: bool) -> Scan:
    """Go through the rows of a split."""
    codes, bad = array("i"), {}
    labels: dict[str, int] = {}
    texts: list[str] | None = [] if with_texts else None
    for number, (text, label, problem) in enumerate(rows):
        if problem:
            bad[number] = problem
        codes.append(-1 if problem else labels.setdefault(label, len(labels)))
        if texts is not None:
            texts.append(text)
    return Scan(codes, list(labels), bad, texts)


def label_column(labels: Sequence[str], values: pa.Array | None = None) -> pa.Array:
    """Return labels as int64 where all of them are whole numbers, else as strings.

    values: the labels of the classes; where these are strings, so are all.
    """
    as_text = values is not None and pa.types.is_string(values.type)
    if not as_text and all(_WHOLE.fullmatch(label) for label in labels):
        return pa.array([int(label) for label in labels], pa.int64())
    return pa.array(labels, pa.string())
