"""`parquet`: any folder of encoded images and labels in the layout of Hugging Face `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from compress.datasets.base import Declaration, Stored, unit_normalization
from compress.datasets.decode import ImageOptions
from compress.datasets.parquet_folder import ParquetFolder
from compress.datasets.root import locate
from export.graph import InputSignature

Name = Annotated[str, Field(min_length=1)]


def _two_or_more_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2 or len(set(names)) < len(names):
        raise PydanticCustomError("class_names", "expected two or more names, each of them once")
    return names


ClassNames = Annotated[tuple[Name, ...], AfterValidator(_two_or_more_distinct)]


class Parquet(ImageOptions):
    """A folder of `<split>-*-of-*.parquet` files with an image and a label column.

    path: the folder, relative to the data root where one is named. Splits are train, validation and test;
    without test files a fixed stratified fifth of train is test. class_names: else those embedded in the
    files, else the distinct labels of train.
    """

    kind = "parquet"

    path: Name
    image_column: Name = "image"
    label_column: Name = "label"
    class_names: ClassNames | None = None

    def declare(self) -> Declaration:
        shape = self.shape()
        return Declaration(
            classes=len(self.class_names) if self.class_names else None,
            class_names=self.class_names,
            signature=InputSignature(shape=shape) if shape else None,
            normalization=unit_normalization(shape[2]) if shape else None,
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self._folder(root).inspect()

    def fingerprint(self, root: Path | None) -> str:
        return self._folder(root).fingerprint()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        folder = self._folder(root)
        return Stored(
            name=Path(self.path).name,
            class_names=folder.labels.names,
            normalization=unit_normalization(folder.image_shape[2]),
            fingerprint=folder.fingerprint(),
            splits=folder.read(cache, allowed_bad_rows),
        )

    def _folder(self, root: Path | None) -> ParquetFolder:
        return ParquetFolder(
            title="parquet",
            folder=locate(self.path, root),
            image_column=self.image_column,
            label_column=self.label_column,
            class_names=self.class_names,
            options=self,
            by_root=not Path(self.path).expanduser().is_absolute(),
        )
