"""Texts of one's own: what the sources share that read them, whatever the files are."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from compress.datasets.base import Declaration, Split, Stored
from compress.datasets.parquet import ClassNames, Name
from compress.datasets.parquet_files import ClassLabels
from compress.datasets.text_folder import Features
from compress.kinds import Spec


class TextSetFiles(Protocol):
    """Files on disk that hold splits of texts."""

    @property
    def labels(self) -> ClassLabels: ...

    def inspect(self) -> Declaration: ...

    def fingerprint(self) -> str: ...

    def read(self, cache: Path | None, allowed_bad_rows: int) -> dict[str, Split]: ...


class OwnTexts(Spec):
    """A text and a label column in files below `path`, relative to the data root where one is named."""

    path: Name
    text_column: Name = "text"
    label_column: Name = "label"
    class_names: ClassNames | None = None
    features: Features = Features()

    def files(self, root: Path | None) -> TextSetFiles:
        """Return the files that `path` names."""
        raise NotImplementedError(f"{type(self).__name__} must define files")

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names) if self.class_names else None,
            class_names=self.class_names,
            signature=self.features.signature(),
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self.files(root).inspect()

    def fingerprint(self, root: Path | None) -> str:
        return self.files(root).fingerprint()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        files = self.files(root)
        return Stored(
            name=Path(self.path).name.split(".")[0],
            class_names=files.labels.names,
            normalization=None,
            fingerprint=files.fingerprint(),
            splits=files.read(cache, allowed_bad_rows),
            featuriser=self.features.featuriser(),
        )
