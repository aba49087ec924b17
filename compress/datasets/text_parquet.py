"""`text_parquet`: any folder of texts and labels in the layout of Hugging Face `datasets`."""

from __future__ import annotations

from pathlib import Path

from compress.datasets.own_texts import OwnTexts
from compress.datasets.root import locate
from compress.datasets.text_folder import TextFolder


class TextParquet(OwnTexts):
    """A folder of `<split>-*-of-*.parquet` files with a text and a label column.

    path: the folder, relative to the data root where one is named. Splits are train, validation and test;
    without test files a fixed stratified fifth of train is test. class_names: else those embedded in the
    files, else the distinct labels of train. features: how a text becomes ids.
    """

    kind = "text_parquet"

    def files(self, root: Path | None) -> TextFolder:
        return TextFolder(
            title="text_parquet",
            folder=locate(self.path, root),
            label_column=self.label_column,
            class_names=self.class_names,
            by_root=not Path(self.path).expanduser().is_absolute(),
            text_column=self.text_column,
            featuriser=self.features.featuriser(),
        )
