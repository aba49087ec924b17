"""A folder of parquet files as a data set: what `parquet` and the named sets share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from compress.datasets.bad_rows import StoredRows, usable_rows
from compress.datasets.base import Declaration, Split, unit_normalization
from compress.datasets.cache import cache_key, cached_images
from compress.datasets.decode import ImageOptions, Shape, common_shape, decode_images
from compress.datasets.holdout import with_test, with_test_rows
from compress.datasets.parquet_files import SPLITS, ClassLabels, Shards, embedded_class_names, find_shards
from compress.datasets.root import missing
from export.graph import InputSignature
from runtime.errors import DataError


@dataclass(frozen=True)
class ParquetFolder:
    """Where the files lie and how they are to be read.

    class_names, shape: what is known before the files are opened; then the files must agree.
    required: splits that must be there. by_root: whether the data root says where the folder is.
    layout: the files that belong there, for the message when they are missing.
    """

    title: str
    folder: Path
    image_column: str = "image"
    label_column: str = "label"
    class_names: tuple[str, ...] | None = None
    shape: Shape | None = None
    options: ImageOptions = field(default_factory=ImageOptions)
    required: tuple[str, ...] = ("train",)
    by_root: bool = True
    layout: str = ""

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

    def fingerprint(self) -> str:
        """Return the sha256 hex of the splits' files in order. Opens nothing but bytes."""
        digest = hashlib.sha256(b"parquet 1\n")
        for split, shards in self.shards.items():
            for file_hash in shards.hashes:
                digest.update(f"{split} {file_hash}\n".encode())
        return digest.hexdigest()

    def inspect(self) -> Declaration:
        """Return what the files say at a glance: the first images, the label column, the row counts."""
        shape = self.image_shape()
        rows = {split: shards.rows for split, shards in self.shards.items()}
        names = self.labels.names
        return Declaration(
            len(names), names, InputSignature(shape=shape), unit_normalization(shape[2]), with_test_rows(rows)
        )

    def read(self, cache: Path | None, allowed_bad_rows: int) -> dict[str, Split]:
        """Return train and test, and validation where it is stored. Without test, a fifth of train."""
        shape = self.image_shape()
        stored = {split: self._rows(shards, shape, cache) for split, shards in self.shards.items()}
        return with_test(usable_rows(f"{self.title} ({self.folder})", stored, allowed_bad_rows), str(self.folder))

    def image_shape(self) -> Shape:
        if self.shape is not None:
            return self.shape
        known = self.options.shape()
        return known or common_shape(self.shards["train"].images(self.image_column), self.options, str(self.folder))

    @cached_property
    def labels(self) -> ClassLabels:
        """Return the classes: declared, else embedded in the files, else the distinct labels of train."""
        train = self.shards["train"]
        embedded = embedded_class_names(train.schema, self.label_column)
        if self.class_names is not None:
            return ClassLabels(self.class_names)
        return ClassLabels(embedded) if embedded else ClassLabels.of_values(train.labels(self.label_column))

    def _rows(self, shards: Shards, shape: Shape, cache: Path | None) -> StoredRows:
        labels, bad_labels = self.labels.encode(shards.labels(self.label_column))
        if not len(labels):
            raise DataError(f"{shards.paths[0]}: split {shards.split} has no rows")
        encoded = shards.images(self.image_column)
        # The first row is asked for here, so that a missing column is reported even when the images are
        # cached.
        encoded = chain([next(encoded)], encoded)
        key = cache_key(shards.hashes, self.options, shape, image_column=self.image_column)
        decode = partial(decode_images, encoded, len(labels), shape, self.options)
        images = cached_images(cache, key, len(labels), shape, decode)
        return StoredRows(images.pixels, labels, {**bad_labels, **images.bad})

    def _missing(self, problem: str) -> DataError:
        layout = self.layout or "\n".join(
            f"  {self.folder}/{split}-00000-of-00001.parquet" + ("" if split in self.required else "   (optional)")
            for split in SPLITS
        ) + (
            f"\nColumns: '{self.image_column}' (encoded image: binary, or a struct with the field bytes) and "
            f"'{self.label_column}' (whole number or text)."
        )
        return missing(self.title, self.folder, problem, layout, named_by_root=self.by_root)
