"""`text_csv`, `text_jsonl`: texts and labels of one's own, a row or a JSON object each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, ClassVar

from pydantic import Field

from compress.datasets.author_files import Wanted, opened
from compress.datasets.own_texts import OwnTexts
from compress.datasets.parquet_files import SPLITS, ClassLabels
from compress.datasets.root import locate
from compress.datasets.text_files import TextFiles, TextRow
from compress.datasets.text_readers import csv_rows, fields_of, json_rows


@dataclass(frozen=True, kw_only=True)
class TableFiles(TextFiles):
    """A file of each split in one folder, or a single file, which is train.

    file: the single file's name, None for `<split><suffix>`. rows: yields the rows of an open file, given its path.
    """

    form: ClassVar[str] = "text table"

    rows_of: Callable[[IO[bytes], str], Iterator[TextRow]]
    suffixes: tuple[str, ...]
    file: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        there = [split for split in SPLITS if split == "train" or self._wanted(split).find(self.folder) is not None]
        return ("train",) if self.file else tuple(there)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(map(self._wanted, self.splits))

    @property
    def form_in_words(self) -> str:
        return self.title

    def written(self, split: str) -> Iterator[TextRow]:
        path = self.path(self._wanted(split))
        with opened(path) as file:
            yield from self.rows_of(file, str(path))

    def lines(self) -> str:
        if self.file:
            return f"  {self.folder / self.file}"
        files = [f"  {self.folder}/{split}{self.suffixes[0]}" for split in SPLITS]
        return "\n".join([files[0], *(f"{line}   (optional)" for line in files[1:])])

    def _wanted(self, split: str) -> Wanted:
        if self.file:
            return Wanted((self.file,))
        return Wanted(tuple(f"{split}{suffix}{packed}" for suffix in self.suffixes for packed in ("", ".gz")))


class TextTable(OwnTexts):
    """What both kinds of file have in common."""

    suffixes: ClassVar[tuple[str, ...]]

    left_out: tuple[str, ...] = ()

    def rows_of(self, file: IO[bytes], where: str) -> Iterator[TextRow]:
        """Yield the rows of an open file."""
        raise NotImplementedError(f"{type(self).__name__} must define rows_of")

    def files(self, root: Path | None) -> TableFiles:
        path = locate(self.path, root)
        # A name with one of the suffixes is a file's even where nothing is: so the message names it.
        single = not path.is_dir() and (path.is_file() or path.name.removesuffix(".gz").endswith(self.suffixes))
        return TableFiles(
            title=self.kind,
            folder=path.parent if single else path,
            file=path.name if single else None,
            by_root=not Path(self.path).expanduser().is_absolute(),
            featuriser=self.features.featuriser(),
            known=ClassLabels(self.class_names) if self.class_names else None,
            left_out=frozenset(self.left_out),
            rows_of=self.rows_of,
            suffixes=self.suffixes,
        )


class TextCsv(TextTable):
    """CSV files with a header: `train.csv` with `validation.csv` and `test.csv` optional beside it, or a single file.

    path: the folder or the file, relative to the data root where one is named; each may be compressed, as .gz. Without
    test a fixed stratified fifth of train is test. class_names: of the labels 0, 1, ..., or the labels themselves; else
    the distinct labels of train. left_out: labels whose rows are no part of the data. delimiter: one character.
    """

    kind = "text_csv"
    suffixes = (".csv", ".tsv")

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","

    def rows_of(self, file: IO[bytes], where: str) -> Iterator[TextRow]:
        return csv_rows(
            file,
            where,
            fields=lambda header: fields_of(header, where, text=(self.text_column,), label=self.label_column),
            delimiter=self.delimiter,
        )


class TextJsonl(TextTable):
    """Files of a JSON object a line: `train.jsonl`, with `validation` and `test` optional beside it, or a single file.

    path: the folder or the file, relative to the data root where one is named; each may be compressed, as .gz. Without
    test a fixed stratified fifth of train is test. class_names: of the labels 0, 1, ..., or the labels themselves; else
    the distinct labels of train. left_out: labels whose rows are no part of the data. The reviews of McAuley & Leskovec
    (2013) are such files, with `text_column: reviewText` and `label_column: overall`.
    """

    kind = "text_jsonl"
    suffixes = (".jsonl", ".json")

    def rows_of(self, file: IO[bytes], where: str) -> Iterator[TextRow]:
        return json_rows(file, where, text=self.text_column, label=self.label_column)
