"""`criteo`: the click log of the Display Advertising Challenge, its authors' file in a folder of that name."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from compress.datasets.author_files import AuthorFiles, Wanted
from compress.datasets.bad_rows import StoredRows, usable_rows
from compress.datasets.base import Declaration, Split, Stored, signature_of_table
from compress.datasets.cache import streamed_rows
from compress.datasets.click_log import MEMBER, SPLITS, ClickLog, blocks
from compress.datasets.named import NamedSet
from runtime.fields import Block, rows_of
from runtime.table import LARGEST, SMALLEST, VERSION, HashedColumns

log = logging.getLogger(__name__)

# A file whose size says that it has less than this share of the published rows is taken for one cut short.
_WHOLE = 0.8
_LAST_BYTES = 1 << 16
_ARCHIVES = ("dac.tar.gz", "criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz")


@dataclass(frozen=True)
class CriteoFile(AuthorFiles):
    """The labelled rows: `train.txt`, compressed by gzip or not, or the archive that holds it.

    The archive's `test.txt` has no labels and is not used. Options as in `Criteo`.
    """

    form: ClassVar[str] = "click log"

    columns: HashedColumns = field(default_factory=HashedColumns)
    first_rows: int | None = None
    balance: bool = True
    seed: int = 0
    held_out: float = 0.05
    class_names: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (Wanted((MEMBER, f"{MEMBER}.gz", *_ARCHIVES)),)

    @property
    def form_in_words(self) -> str:
        return "the click log"

    def lines(self) -> str:
        return f"{super().lines()}   or {MEMBER}.gz, or the archive {_ARCHIVES[0]}"

    @cached_property
    def log(self) -> ClickLog:
        path = self.path(self.wanted[0])
        return ClickLog(path, self.columns, self.first_rows, self.balance, self.seed, self.held_out)

    @cached_property
    def rows(self) -> dict[str, int]:
        return self.log.counts()

    def fingerprint(self) -> str:
        """Return the sha256 hex of the lines that are read: the same whether they are compressed or not."""
        return hashlib.sha256(f"{self.form} {VERSION}\n{self.log.labels.sha256}\n".encode()).hexdigest()

    def inspect(self) -> Declaration:
        return Declaration(
            len(self.class_names), self.class_names, signature_of_table(self.columns), None, dict(self.rows)
        )

    def read(self, cache: Path | None, allowed_bad_rows: int) -> dict[str, Split]:
        shapes = {split: (rows, self.columns.length) for split, rows in self.rows.items()}
        inputs, bad = streamed_rows(
            cache, self._cache_key(), shapes, np.int32, lambda append: self.log.write(append, allowed_bad_rows)
        )
        labels = self.log.labels_by_split()
        stored = {split: StoredRows(inputs[split], labels[split], bad[split]) for split in SPLITS}
        return usable_rows(f"{self.title} ({self.folder})", stored, allowed_bad_rows)

    def glance(self, published: Mapping[str, int]) -> Sequence[str]:
        """Return what the file's size, its first lines and, where it is not compressed, its last line show."""
        path = self.path(self.wanted[0])
        first = next(islice(blocks(path), 1), b"")
        problems = self._problems(first, "")
        if path.name == MEMBER and first:
            about = path.stat().st_size * first.count(b"\n") // len(first)
            if about < _WHOLE * published["train"]:
                problems.append(f"about {about:,} rows by its size, the published set has {published['train']:,}")
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LAST_BYTES))
                problems += self._problems(file.read().rpartition(b"\n")[2], "last ")
        return problems

    def _problems(self, text: bytes, which: str) -> list[str]:
        """Return what is wrong with the first bad line of `text`."""
        block = Block(text if text.endswith(b"\n") or not text else text + b"\n", 1 + self.columns.length)
        found = {line: self.columns.other_count(count, label="a label, ") for line, count in block.unlike.items()}
        _, bad = rows_of(block, block.fields[:, 1:], self.columns)
        found |= {int(block.lines[row]): reason for row, reason in bad.items()}
        return [f"{which}line {line + 1}: {found[line]}" for line in sorted(found)[:1]]

    def _cache_key(self) -> str:
        description = {
            "columns": self.columns.to_json(),
            "lines": self.log.labels.sha256,
            "options": {**asdict(self.log), "path": None},
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


class Criteo(NamedSet):
    """Clicks on advertisements: 13 counts and 26 categories a row, 45,840,617 labelled rows of a week.

    buckets: ids that the categories are hashed to, all columns together. first_rows: how many rows of the file are
    read, None for all. balance: drop non-clicks (three quarters of the rows), until there are about as many as clicks;
    seed: decides which. held_out: share of the rows that are test, and as many validation, by a hash of the row's
    number that no seed changes; the challenge's own test rows have no labels.
    """

    kind = "criteo"
    origin = "https://www.kaggle.com/c/criteo-display-ad-challenge"
    class_names = ("no click", "click")
    rows: ClassVar = {"train": 45_840_617}
    in_parquet = False

    buckets: Annotated[int, Field(ge=SMALLEST["buckets"], le=LARGEST["buckets"])] = HashedColumns.buckets
    first_rows: Annotated[int, Field(ge=1)] | None = None
    balance: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05

    def columns(self) -> HashedColumns:
        return HashedColumns(buckets=self.buckets)

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names), class_names=self.class_names, signature=signature_of_table(self.columns())
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self.folder(root).inspect()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        files = self.file(self.where(root))
        lines = files.log.labels.lines
        if self.first_rows is None and lines != self.rows["train"]:
            log.warning("%s has %d rows, the published set %d", files.log.path, lines, self.rows["train"])
        return Stored(
            name=self.kind,
            class_names=self.class_names,
            normalization=None,
            fingerprint=files.fingerprint(),
            splits=files.read(cache, allowed_bad_rows),
            columns=self.columns(),
        )

    def author_files(self, where: Path, layout: str = "") -> tuple[CriteoFile, ...]:
        return (self.file(where, layout),)

    def file(self, where: Path, layout: str = "") -> CriteoFile:
        return CriteoFile(
            self.kind,
            where,
            layout,
            columns=self.columns(),
            first_rows=self.first_rows,
            balance=self.balance,
            seed=self.seed,
            held_out=self.held_out,
            class_names=self.class_names,
        )

    def layout(self, folder: Path) -> str:
        return f"{self.file(folder).lines()}\nIt is published at {self.origin}."
