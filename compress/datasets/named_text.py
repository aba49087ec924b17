"""`sst2`, `cola`, `rotten_tomatoes`: known text sets, as parquet folders of that name under the data root."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compress.datasets.base import Declaration, Stored
from compress.datasets.named import NamedSet
from compress.datasets.text_folder import Features, TextFolder


class NamedText(NamedSet):
    """A set of texts in a column of a known name."""

    own = "text_parquet"
    column: ClassVar[str]

    features: Features = Features()

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names),
            class_names=self.class_names,
            signature=self.features.signature(),
            rows=dict(self.rows),
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self.folder(root).inspect()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        folder = self.folder(root)
        self.check(folder)
        return Stored(
            name=self.kind,
            class_names=self.class_names,
            normalization=None,
            fingerprint=folder.fingerprint(),
            splits=folder.read(cache, allowed_bad_rows),
            featuriser=self.features.featuriser(),
        )

    def parquet(self, where: Path) -> TextFolder:
        return TextFolder(
            title=self.kind,
            folder=where,
            class_names=self.class_names,
            required=tuple(self.rows),
            layout=self.layout(where),
            text_column=self.column,
            featuriser=self.features.featuriser(),
        )

    def input_in_words(self) -> str:
        return f"'{self.column}' (text)"


class Sst2(NamedText):
    """Film review sentences and phrases, negative or positive: 67,349 train rows (Socher et al. 2013, from GLUE).

    Test is GLUE's dev set of 872 sentences: the labels of its test set are not public.
    """

    kind = "sst2"
    origin = "https://gluebenchmark.com/tasks"
    class_names = ("negative", "positive")
    column = "sentence"
    rows: ClassVar = {"train": 67_349, "test": 872}


class Cola(NamedText):
    """English sentences, acceptable grammar or not: 8,551 train rows (Warstadt et al. 2019, from GLUE).

    Test is GLUE's dev set of 1,043 sentences: the labels of its test set are not public.
    """

    kind = "cola"
    origin = "https://gluebenchmark.com/tasks"
    class_names = ("unacceptable", "acceptable")
    column = "sentence"
    rows: ClassVar = {"train": 8_551, "test": 1_043}


class RottenTomatoes(NamedText):
    """Film review sentences, negative or positive: 8,530 train, 1,066 validation, 1,066 test rows (Pang & Lee 2005)."""

    kind = "rotten_tomatoes"
    origin = "https://www.cs.cornell.edu/people/pabo/movie-review-data/"
    class_names = ("neg", "pos")
    column = "text"
    rows: ClassVar = {"train": 8_530, "validation": 1_066, "test": 1_066}
