"""A folder of parquet files of encoded images: what `parquet` and the named sets share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Int64Array, unit_normalization
from compress.datasets.cache import cache_key, cached_images
from compress.datasets.decode import ImageOptions, Shape, common_shape, decode_images
from compress.datasets.labelled_parquet import LabelledParquet
from compress.datasets.parquet_files import Shards
from export.graph import InputSignature


@dataclass(frozen=True)
class ParquetFolder(LabelledParquet):
    """shape: what is known before the files are opened; then the files must agree."""

    image_column: str = "image"
    shape: Shape | None = None
    options: ImageOptions = field(default_factory=ImageOptions)

    def input_column_in_words(self) -> str:
        return f"'{self.image_column}' (encoded image: binary, or a struct with the field bytes)"

    def inspect(self) -> Declaration:
        """Return what the files say at a glance: the first images, the label column, the row counts."""
        names = self.labels.names
        return Declaration(
            len(names),
            names,
            InputSignature(shape=self.image_shape),
            unit_normalization(self.image_shape[2]),
            self.rows,
        )

    @cached_property
    def image_shape(self) -> Shape:
        known = self.shape or self.options.shape()
        return known or common_shape(self.shards["train"].images(self.image_column), self.options, str(self.folder))

    def stored(self, shards: Shards, labels: Int64Array, bad: dict[int, str], cache: Path | None) -> StoredRows:
        encoded = shards.images(self.image_column)
        # The first row is asked for here, so that a missing column is reported even when the images are
        # cached.
        encoded = chain([next(encoded)], encoded)
        shape = self.image_shape
        key = cache_key(shards.hashes, self.options, shape, image_column=self.image_column)
        decode = partial(decode_images, encoded, len(labels), shape, self.options)
        images = cached_images(cache, key, len(labels), shape, decode)
        return StoredRows(images.pixels, labels, {**bad, **images.bad})
