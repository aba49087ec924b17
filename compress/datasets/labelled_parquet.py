"""A folder of parquet files with an input and a label column: what images and text share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compress.datasets.bad_rows import StoredRows, usable_rows
from compress.datasets.base import Declaration, Int64Array, Split
from compress.datasets.holdout import with_test, with_test_rows
from compress.datasets.parquet_files import SPLITS, ClassLabels, Shards, embedded_class_names, find_shards, shard_split
from compress.datasets.root import missing
from runtime.errors import DataError


@dataclass(frozen=True)
class LabelledParquet:
    """Where the files lie and how they are to be read; what an input is, is a subclass's to say.

    class_names: what is known before the files are opened; then the files must agree.
    required: splits that must be there. by_root: whether the data root says where the folder is.
    layout: the files that belong there, for the message when they are missing.
    """

    title: str
    folder: Path
    label_column: str = "label"
    class_names: tuple[str, ...] | None = None
    required: tuple[str, ...] = ("train",)
    by_root: bool = True
    layout: str = ""

    def input_column_in_words(self) -> str:
        """Return the name of the input column and what it holds, for the message when files are missing."""
        raise NotImplementedError(f"{type(self).__name__} must define input_column_in_words")

    def stored(self, shards: Shards, labels: Int64Array, bad: dict[int, str], cache: Path | None) -> StoredRows:
        """Return a split's rows, given its labels and what is wrong with them."""
        raise NotImplementedError(f"{type(self).__name__} must define stored")

    def inspect(self) -> Declaration:
        """Return what the files say at a glance."""
        raise NotImplementedError(f"{type(self).__name__} must define inspect")

    @cached_property
    def shards(self) -> Mapping[str, Shards]:
        if not self.folder.is_dir():
            raise self._missing("the folder does not exist")
        shards = find_shards(self.folder)
        for split in self.required:
            if split not in shards:
                there = ", ".join(path.name for path in sorted(self.folder.iterdir())[:10]) or "nothing"
                raise self._missing(f"no {split}-*-of-*.parquet; it holds {there}")
        return shards

    @property
    def is_there(self) -> bool:
        """Whether the folder holds a split's parquet files, whole or in part."""
        return any(shard_split(path) for path in self.folder.glob("*.parquet"))

    @property
    def is_complete(self) -> bool:
        """Whether the folder holds parquet files of every split that must be there."""
        return set(self.required) <= {shard_split(path) for path in self.folder.glob("*.parquet")}

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split, as `read` will cut them."""
        return with_test_rows({split: shards.rows for split, shards in self.shards.items()})

    def fingerprint(self) -> str:
        """Return the sha256 hex of the splits' files in order. Opens nothing but bytes."""
        digest = hashlib.sha256(b"parquet 1\n")
        for split, shards in self.shards.items():
            for file_hash in shards.hashes:
                digest.update(f"{split} {file_hash}\n".encode())
        return digest.hexdigest()

    def read(self, cache: Path | None, allowed_bad_rows: int) -> dict[str, Split]:
        """Return train and test, and validation where it is stored. Without test, a fifth of train."""
        stored = {split: self._rows(shards, cache) for split, shards in self.shards.items()}
        return with_test(usable_rows(f"{self.title} ({self.folder})", stored, allowed_bad_rows), str(self.folder))

    @cached_property
    def labels(self) -> ClassLabels:
        """Return the classes: declared, else embedded in the files, else the distinct labels of train."""
        train = self.shards["train"]
        embedded = embedded_class_names(train.schema, self.label_column)
        if self.class_names is not None:
            return ClassLabels(self.class_names)
        return ClassLabels(embedded) if embedded else ClassLabels.of_values(train.labels(self.label_column))

    def _rows(self, shards: Shards, cache: Path | None) -> StoredRows:
        labels, bad = self.labels.encode(shards.labels(self.label_column))
        if not len(labels):
            raise DataError(f"{shards.paths[0]}: split {shards.split} has no rows")
        return self.stored(shards, labels, bad, cache)

    def _missing(self, problem: str) -> DataError:
        layout = self.layout or "\n".join(
            f"  {self.folder}/{split}-00000-of-00001.parquet" + ("" if split in self.required else "   (optional)")
            for split in SPLITS
        ) + (f"\nColumns: {self.input_column_in_words()} and '{self.label_column}' (whole number or text).")
        return missing(self.title, self.folder, problem, layout, named_by_root=self.by_root)
