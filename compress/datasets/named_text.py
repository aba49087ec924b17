"""`sst2`, `cola`, `rotten_tomatoes`, `imdb`, `amazon_reviews`, `sentiment140`: known sets of texts.

They lie as parquet or as their authors' files in folders of that name under the data root.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from compress.datasets import imdb_files, text_sets
from compress.datasets.base import Declaration, Stored, signature_of_text
from compress.datasets.imdb_files import ImdbArchive, ImdbFiles, ImdbFolder
from compress.datasets.named import NamedSet
from compress.datasets.parquet_files import ClassLabels
from compress.datasets.text_files import TextFiles
from compress.datasets.text_folder import Features, TextFolder
from compress.datasets.text_sets import TextFormat, text_layouts


class NamedText(NamedSet):
    """A set of texts in a column of a known name."""

    own = "text_parquet"
    column: ClassVar[str] = "text"
    formats: ClassVar[tuple[TextFormat, ...]] = ()

    features: Features = Features()

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names),
            class_names=self.class_names,
            signature=signature_of_text(self.features.featuriser()),
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

    def author_files(self, where: Path, layout: str = "") -> tuple[TextFiles, ...]:
        featuriser = self.features.featuriser()
        return text_layouts(self.formats, self.kind, where, self.class_names, featuriser, layout)

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
    formats = (text_sets.SST2,)
    rows: ClassVar = {"train": 67_349, "test": 872}


class Cola(NamedText):
    """English sentences, acceptable grammar or not: 8,551 train rows (Warstadt et al. 2019, from GLUE).

    Test is GLUE's dev set of 1,043 sentences: the labels of its test set are not public.
    """

    kind = "cola"
    origin = "https://gluebenchmark.com/tasks"
    class_names = ("unacceptable", "acceptable")
    column = "sentence"
    formats = (text_sets.COLA,)
    rows: ClassVar = {"train": 8_551, "test": 1_043}


class RottenTomatoes(NamedText):
    """Film review sentences, negative or positive: 8,530 train, 1,066 validation, 1,066 test rows (Pang & Lee 2005)."""

    kind = "rotten_tomatoes"
    origin = "https://www.cs.cornell.edu/people/pabo/movie-review-data/"
    class_names = ("neg", "pos")
    formats = (text_sets.ROTTEN_TOMATOES,)
    rows: ClassVar = {"train": 8_530, "validation": 1_066, "test": 1_066}


class Imdb(NamedText):
    """Whole film reviews, negative or positive: 25,000 train and 25,000 test rows (LMRD, Maas et al. 2011).

    The 50,000 reviews without a label are not read. `<br />`, which the authors left in the texts, is kept.
    """

    kind = "imdb"
    origin = "https://ai.stanford.edu/~amaas/data/sentiment/"
    class_names = ("neg", "pos")
    rows: ClassVar = {"train": 25_000, "test": 25_000}

    def author_files(self, where: Path, layout: str = "") -> tuple[ImdbFiles, ...]:
        return tuple(
            kind(
                title=self.kind,
                folder=where,
                layout=layout,
                featuriser=self.features.featuriser(),
                known=ClassLabels(self.class_names, pa.array(imdb_files.CLASSES)),
            )
            for kind in (ImdbFolder, ImdbArchive)
        )


class AmazonReviews(NamedText):
    """Product reviews, title and text, as Zhang, Zhao & LeCun (2015) drew them from McAuley & Leskovec's (2013).

    labels: `stars` for five classes, 600,000 train and 130,000 test rows of each; `polarity` for two, of 1,800,000 and
    200,000: one and two stars are negative, four and five positive, and there are no reviews of three. For two classes
    with those of three among them, and with stars as hidden labels, join the five by `relabel`.
    """

    kind = "amazon_reviews"
    origin = "https://github.com/zhangxiangxiao/Crepe"

    labels: Literal["stars", "polarity"] = "stars"

    # Of the set that the option chooses; known to the class elsewhere.
    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("1", "2", "3", "4", "5") if self.labels == "stars" else ("negative", "positive")

    @property
    def rows(self) -> dict[str, int]:  # type: ignore[override]
        of_stars, of_polarity = {"train": 3_000_000, "test": 650_000}, {"train": 3_600_000, "test": 400_000}
        return of_stars if self.labels == "stars" else of_polarity

    @property
    def formats(self) -> tuple[TextFormat, ...]:  # type: ignore[override]
        return (text_sets.AMAZON_STARS if self.labels == "stars" else text_sets.AMAZON_POLARITY,)


class Sentiment140(NamedText):
    """Tweets, negative or positive by the smileys cut out of them: 1,600,000 train rows (Go, Bhayani & Huang 2009).

    Test is 359 tweets that were read by people; the 139 neutral ones beside them are left out, for train has none.
    Train lies in the order of its classes: for a part of it take `train_fraction`, not `train_rows`.
    """

    kind = "sentiment140"
    origin = "http://help.sentiment140.com/for-students"
    class_names = ("negative", "positive")
    formats = (text_sets.SENTIMENT140,)
    rows: ClassVar = {"train": 1_600_000, "test": 359}
