"""The published text sets in their authors' files: unpacked, or in the archive that was downloaded."""

from __future__ import annotations

import contextlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, ClassVar

import pyarrow as pa

from compress.datasets.author_files import Wanted, damage_named, opened
from compress.datasets.parquet_files import ClassLabels
from compress.datasets.text_files import TextFiles, TextRow
from compress.datasets.text_readers import csv_rows, text_row, tsv_rows
from runtime.errors import DataError
from runtime.text import HashedNgrams

# Opens one of a format's files by its name; yields it, and what to call it in messages.
Opener = Callable[[str], AbstractContextManager[tuple[IO[bytes], str]]]


@dataclass(frozen=True)
class TextFormat:
    """How a set is published.

    folder: what the archive unpacks to, "" for files that lie beside it. files: their names, of each split or of all.
    archives: names under which the archive is found. rows: yields the rows of a split. labels: each class as written.
    """

    folder: str
    files: tuple[str, ...]
    archives: tuple[str, ...]
    splits: tuple[str, ...]
    rows: Callable[[Opener, str], Iterator[TextRow]]
    labels: tuple[str, ...]
    left_out: frozenset[str] = frozenset()

    def inside(self, name: str) -> str:
        """Return a file's path from where the archive was unpacked."""
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True, kw_only=True)
class FormatFiles(TextFiles):
    """What the unpacked files and the archive share."""

    format: TextFormat

    @property
    def splits(self) -> tuple[str, ...]:
        return self.format.splits

    def written(self, split: str) -> Iterator[TextRow]:
        return self.format.rows(self.open, split)

    def open(self, name: str) -> AbstractContextManager[tuple[IO[bytes], str]]:
        """Open one of the format's files."""
        raise NotImplementedError(f"{type(self).__name__} must define open")


@dataclass(frozen=True, kw_only=True)
class FormatFolder(FormatFiles):
    """The unpacked files, in the folder that the archive makes or in the set's own."""

    form: ClassVar[str] = "text files"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(map(self._wanted, self.format.files))

    @property
    def form_in_words(self) -> str:
        return f"the layout of {self.format.folder or self.format.files[0]}"

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], str]]:
        path = self.path(self._wanted(name))
        with opened(path) as file:
            yield file, str(path)

    def _wanted(self, name: str) -> Wanted:
        paths = (self.format.inside(name), name) if self.format.folder else (name,)
        return Wanted(tuple(f"{path}{suffix}" for path in paths for suffix in ("", ".gz")))


@dataclass(frozen=True, kw_only=True)
class FormatArchive(FormatFiles):
    """The archive as it was downloaded; nothing of it is written to disk."""

    form: ClassVar[str] = "text archive"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (Wanted(self.format.archives),)

    @property
    def form_in_words(self) -> str:
        return f"the archive {self.format.archives[0]}"

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], str]]:
        path = self.path(self.wanted[0])
        with member_of(path, self.format.inside(name)) as file:
            yield file, f"{path}: {name}"


def text_layouts(
    formats: tuple[TextFormat, ...],
    title: str,
    folder: Path,
    class_names: tuple[str, ...],
    featuriser: HashedNgrams,
    layout: str,
) -> tuple[FormatFiles, ...]:
    """Return the ways in which a set may lie, those that are read first before the others."""
    return tuple(
        kind(
            title=title,
            folder=folder,
            layout=layout,
            featuriser=featuriser,
            known=ClassLabels(class_names, pa.array(form.labels)),
            left_out=form.left_out,
            format=form,
        )
        for form in formats
        for kind in (FormatFolder, FormatArchive)
    )


@contextlib.contextmanager
def member_of(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open one file of a tar, packed or not, or of a zip. Raises DataError where it is not there or damaged."""
    with damage_named(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if name not in archive.namelist():
                    raise _not_in(path, name)
                with archive.open(name) as file:
                    yield file
            return
        with tarfile.open(path) as packed:
            for member in packed:
                if member.name.removeprefix("./") == name and (content := packed.extractfile(member)) is not None:
                    yield content
                    return
        raise _not_in(path, name)


def _not_in(path: Path, name: str) -> DataError:
    return DataError(f"{path} holds no {name}", remedy="Check that it is the archive that is meant, and whole.")


def in_turn(*classes: list[TextRow]) -> Iterator[TextRow]:
    """Yield the first row of each class, then the second: so the first rows of train are a fair part of it."""
    return (row for rows in zip_longest(*classes) for row in rows if row is not None)


# GLUE (Wang et al. 2019): tab-separated, quotes are literal. Its test files have no labels, so dev is test.

_GLUE = {"train": "train.tsv", "test": "dev.tsv"}


def _sst2(open_file: Opener, split: str) -> Iterator[TextRow]:
    with open_file(_GLUE[split]) as (file, where):
        yield from tsv_rows(file, where, fields=((0,), 1), columns=2, header=("sentence", "label"))


def _cola(open_file: Opener, split: str) -> Iterator[TextRow]:
    # Source, label, the authors' own mark, sentence.
    with open_file(_GLUE[split]) as (file, where):
        yield from tsv_rows(file, where, fields=((3,), 1), columns=4)


SST2 = TextFormat("SST-2", tuple(_GLUE.values()), ("SST-2.zip",), ("train", "test"), _sst2, ("0", "1"))
COLA = TextFormat("CoLA", tuple(_GLUE.values()), ("CoLA.zip",), ("train", "test"), _cola, ("0", "1"))


# Sentence polarity data set v1.0 (Pang & Lee 2005): a sentence a line, a file a class.

_POLARITY = {"neg": "rt-polarity.neg", "pos": "rt-polarity.pos"}


def _rotten_tomatoes(open_file: Opener, split: str) -> Iterator[TextRow]:
    """Yield 80, 10 or 10 % of each class, in file order: 4,265, 533 and 533 of 5,331, as the parquet set is cut."""

    def part_of(label: str) -> list[TextRow]:
        with open_file(_POLARITY[label]) as (file, _):
            lines = file.read().splitlines()
        eight, nine = ((len(lines) * tenths + 5) // 10 for tenths in (8, 9))
        part = {"train": slice(eight), "validation": slice(eight, nine), "test": slice(nine, None)}[split]
        # Not latin-1: what it takes for control signs are dashes and dots of Windows, as in the parquet set.
        return [text_row(line.strip(), label, "cp1252") for line in lines[part]]

    yield from in_turn(*map(part_of, _POLARITY))


ROTTEN_TOMATOES = TextFormat(
    folder="rt-polaritydata",
    files=tuple(_POLARITY.values()),
    archives=("rt-polaritydata.tar.gz",),
    splits=("train", "validation", "test"),
    rows=_rotten_tomatoes,
    labels=("neg", "pos"),
)


# Sentiment140 (Go, Bhayani & Huang 2009): polarity, id, date, query, user, text; all of them quoted.

_TWEETS = {"train": "training.1600000.processed.noemoticon.csv", "test": "testdata.manual.2009.06.14.csv"}


def _sentiment140(open_file: Opener, split: str) -> Iterator[TextRow]:
    with open_file(_TWEETS[split]) as (file, where):
        yield from csv_rows(file, where, fields=((5,), 0), columns=6, encoding="latin-1")


SENTIMENT140 = TextFormat(
    folder="",
    files=tuple(_TWEETS.values()),
    archives=("trainingandtestdata.zip",),
    splits=("train", "test"),
    rows=_sentiment140,
    labels=("0", "4"),
    left_out=frozenset({"2"}),
)


# Amazon reviews (Zhang, Zhao & LeCun 2015): class, title, text; all of them quoted.


def _amazon(open_file: Opener, split: str) -> Iterator[TextRow]:
    with open_file(f"{split}.csv") as (file, where):
        for row in csv_rows(file, where, fields=((1, 2), 0), columns=3):
            # The authors write a line break inside a text as a backslash and an n.
            yield row._replace(text=row.text.replace("\\n", "\n")) if "\\n" in row.text else row


def _amazon_format(name: str, classes: int) -> TextFormat:
    return TextFormat(
        folder=name,
        files=("train.csv", "test.csv"),
        archives=(f"{name}.tar.gz", f"{name}.tgz"),
        splits=("train", "test"),
        rows=_amazon,
        labels=tuple(str(label + 1) for label in range(classes)),
    )


AMAZON_STARS = _amazon_format("amazon_review_full_csv", 5)
AMAZON_POLARITY = _amazon_format("amazon_review_polarity_csv", 2)
