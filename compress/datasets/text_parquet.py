"""`text_parquet`: any folder of texts and labels in the layout of Hugging Face `datasets`."""

from __future__ import annotations

from pathlib import Path

from compress.datasets.base import Declaration, Stored
from compress.datasets.parquet import ClassNames, Name
from compress.datasets.root import locate
from compress.datasets.text_folder import Features, TextFolder
from compress.kinds import Spec


class TextParquet(Spec):
    """A folder of `<split>-*-of-*.parquet` files with a text and a label column.

    path: the folder, relative to the data root where one is named. Splits are train, validation and test;
    without test files a fixed stratified fifth of train is test. class_names: else those embedded in the
    files, else the distinct labels of train. features: how a text becomes ids.
    """

    kind = "text_parquet"

    path: Name
    text_column: Name = "text"
    label_column: Name = "label"
    class_names: ClassNames | None = None
    features: Features = Features()

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names) if self.class_names else None,
            class_names=self.class_names,
            signature=self.features.signature(),
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
            normalization=None,
            fingerprint=folder.fingerprint(),
            splits=folder.read(cache, allowed_bad_rows),
            featuriser=folder.featuriser,
        )

    def _folder(self, root: Path | None) -> TextFolder:
        return TextFolder(
            title="text_parquet",
            folder=locate(self.path, root),
            label_column=self.label_column,
            class_names=self.class_names,
            by_root=not Path(self.path).expanduser().is_absolute(),
            text_column=self.text_column,
            featuriser=self.features.featuriser(),
        )
