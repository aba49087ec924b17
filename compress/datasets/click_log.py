"""Criteo's click log, a line a row, read twice and never held: first its labels, then the rows that are kept.

Which rows are kept, and of which split they are, is decided row by row from hashes of the row's number. So it needs no
list of rows, and does not hang on how the file is cut into blocks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt

from compress.datasets.author_files import damage_named, opened
from compress.datasets.bad_rows import SHOWN
from compress.datasets.base import Int32Array, Int64Array
from compress.datasets.cache import Append, Bad
from runtime.errors import DataError
from runtime.fields import NEWLINE, Block, mix64, rows_of
from runtime.table import HashedColumns

SPLITS = ("train", "validation", "test")
MEMBER = "train.txt"  # the labelled rows in the authors' archive

_DROPPED = len(SPLITS)  # in place of a split's index
_BLOCK_BYTES = 1 << 20  # fits a processor's cache with all that is made of it
_LINE_BYTES = 1 << 24
_BLOCK_LINES = 1 << 16
# Keep these draws apart from each other. The splits have no seed, so that test never moves with a recipe.
_DROP_STREAM, _SPLIT_STREAM = 0x5B1F_0D03, 0x5B1F_0D04

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Labels:
    """What a first reading finds. sha256: hex, of the lines. lines: their number. clicks: of these.

    packed: whether each line begins with a 1, a bit a line, the highest bit of a byte first.
    """

    sha256: str
    lines: int
    clicks: int
    packed: bytes

    def of(self, first: int, count: int) -> Flags:
        """Return whether each of `count` lines from `first` on is a click."""
        start = first // 8
        packed = np.frombuffer(self.packed, np.uint8)[start : -(-(first + count) // 8)]
        return np.unpackbits(packed)[first - 8 * start :][:count].astype(bool)


@dataclass(frozen=True)
class ClickLog:
    """The rows of one file.

    first_rows: how many of its lines are read, None for all. balance: whether non-clicks are dropped until there are
    about as many as clicks; seed: decides which. held_out: share of the rows that are test, and share of validation.
    """

    path: Path
    columns: HashedColumns
    first_rows: int | None
    balance: bool
    seed: int
    held_out: float

    @functools.cached_property
    def labels(self) -> Labels:
        """Return the labels, from one reading of the file in a process as long as it stays the same."""
        state = self.path.stat()
        return _labels(self.path, self.first_rows, state.st_size, state.st_mtime_ns)

    def labels_by_split(self) -> dict[str, Int64Array]:
        """Return the labels (N,) of each split's rows, as the file has them."""
        found: dict[str, list[Flags]] = {split: [] for split in SPLITS}
        for clicks, places in self._labels_and_places():
            for place, split in enumerate(SPLITS):
                found[split].append(clicks[places == place])
        return {split: np.concatenate([np.zeros(0, bool), *parts]).astype(np.int64) for split, parts in found.items()}

    def counts(self) -> dict[str, int]:
        """Return the rows of each split, those included that will turn out to be unusable."""
        counts = np.zeros(_DROPPED + 1, dtype=np.int64)
        for _, places in self._labels_and_places():
            counts += np.bincount(places, minlength=len(counts))
        return {split: int(counts[place]) for place, split in enumerate(SPLITS)}

    def write(self, append: Append[np.int32], allowed_bad_rows: int) -> Bad:
        """Append int32 rows (n, length) to the splits, block by block; return what is wrong with unusable ones.

        Those are all 0. Raises DataError as soon as there are so many more than allowed that a message names no more,
        and where the lines are not those of the first reading.
        """
        digest = hashlib.sha256()
        bad: Bad = {split: {} for split in SPLITS}
        reasons: list[str] = []
        written = dict.fromkeys(SPLITS, 0)
        first = 0
        for text in blocks(self.path, self.first_rows):
            block = Block(text, 1 + self.columns.length)
            digest.update(text)
            if first + block.count > self.labels.lines:
                raise self._changed()
            places = self._places(first, self.labels.of(first, block.count))
            kept = np.flatnonzero(places != _DROPPED)
            places = places[kept]
            rows, wrong = self._rows(block, kept)
            for row in sorted(wrong):
                split = SPLITS[places[row]]
                reasons.append(f"line {first + int(kept[row]) + 1}: {wrong[row]}")
                bad[split][written[split] + int((places[:row] == places[row]).sum())] = reasons[-1]
            self._refuse_many(reasons, allowed_bad_rows)
            for place, split in enumerate(SPLITS):
                chosen = rows[places == place]
                append(split, chosen)
                written[split] += len(chosen)
            first += block.count
        if digest.hexdigest() != self.labels.sha256:
            raise self._changed()
        return bad

    def _rows(self, block: Block, kept: npt.NDArray[np.intp]) -> tuple[Int32Array, dict[int, str]]:
        """Return int32 rows (n, length) of the lines `kept` of a block, and what is wrong with them by position."""
        where = np.full(block.count, -1)
        where[block.lines] = np.arange(len(block.lines))
        whole = np.flatnonzero(where[kept] >= 0)
        fields = block.fields[where[kept[whole]]]
        rows = np.zeros((len(kept), self.columns.length), dtype=np.int32)
        rows[whole], found = rows_of(block, fields[:, 1:], self.columns)
        wrong = {int(whole[row]): reason for row, reason in found.items()}
        label = block.bytes[fields[:, 0] + 1]
        no_label = (fields[:, 1] - fields[:, 0] != 2) | ((label != ord("0")) & (label != ord("1")))
        for row in np.flatnonzero(no_label):
            text = block.text(int(fields[row, 0]) + 1, int(fields[row, 1]))
            wrong[int(whole[row])] = f"label is {text[:40]!r}, expected 0 or 1"
        for row in np.flatnonzero(where[kept] < 0):
            wrong[int(row)] = self.columns.other_count(block.unlike[int(kept[row])], label="a label, ")
        rows[list(wrong)] = 0
        return rows, wrong

    def _labels_and_places(self) -> Iterator[tuple[Flags, npt.NDArray[np.uint8]]]:
        for first in range(0, self.labels.lines, _BLOCK_LINES):
            clicks = self.labels.of(first, min(_BLOCK_LINES, self.labels.lines - first))
            yield clicks, self._places(first, clicks)

    def _places(self, first: int, clicks: Flags) -> npt.NDArray[np.uint8]:
        """Return the index of the split of lines from `first` on, `_DROPPED` for those that are dropped."""
        lines = np.arange(first, first + len(clicks), dtype=np.uint64)
        share = _uniform(lines, _SPLIT_STREAM)
        places = np.zeros(len(clicks), dtype=np.uint8)
        places[share < 2 * self.held_out] = SPLITS.index("validation")
        places[share < self.held_out] = SPLITS.index("test")
        others = self.labels.lines - self.labels.clicks
        if self.balance and others > self.labels.clicks:
            kept = _uniform(lines, _DROP_STREAM + (self.seed << 32)) < self.labels.clicks / others
            places[~clicks & ~kept] = _DROPPED
        return places

    def _changed(self) -> DataError:
        return DataError(
            f"{self.path} has changed while it was read",
            remedy="It may still be downloading: try again when it is whole.",
        )

    def _refuse_many(self, reasons: Sequence[str], allowed: int) -> None:
        if len(reasons) > allowed + SHOWN:
            raise DataError(
                f"{self.path}: more than {len(reasons) - 1:,} unusable rows, {allowed:,} allowed: "
                + "; ".join(reasons[:3]),
                remedy="Check that this is the file meant.",
            )


def blocks(path: Path, lines: int | None = None) -> Iterator[bytes]:
    """Yield the first `lines` lines of a file, about a megabyte of whole lines at a time, each ended by a newline.

    The file may be compressed, or an archive that holds `train.txt`. Raises DataError where it is damaged.
    """
    rest = b""
    with _content(path) as file:
        while chunk := file.read(_BLOCK_BYTES):
            cut = chunk.rfind(NEWLINE) + 1
            if not cut:
                rest += chunk
                if len(rest) > _LINE_BYTES:
                    raise DataError(f"{path}: a line of more than {_LINE_BYTES:,} bytes", "It is no table of fields.")
                continue
            text, rest = rest + chunk[:cut], chunk[cut:]
            if lines is not None and (ends := text.count(b"\n")) >= lines:
                yield text if ends == lines else text[: _end_of_line(text, lines)]
                return
            lines = None if lines is None else lines - ends
            yield text
    if rest:
        yield rest + b"\n"


def _end_of_line(text: bytes, line: int) -> int:
    return int(np.flatnonzero(np.frombuffer(text, np.uint8) == NEWLINE)[line - 1]) + 1


@contextlib.contextmanager
def _content(path: Path) -> Iterator[IO[bytes]]:
    if not path.name.endswith(".tar.gz"):
        with opened(path) as file:
            yield file
        return
    with damage_named(path), tarfile.open(path, "r|gz", bufsize=_BLOCK_BYTES) as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).name == MEMBER:
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                yield content
                return
        raise DataError(f"{path} holds no {MEMBER}", remedy="Check that this is the file meant.")


@functools.lru_cache(maxsize=4)
def _labels(path: Path, lines: int | None, size: int, modified_ns: int) -> Labels:
    digest = hashlib.sha256()
    packed = bytearray()
    carried = np.zeros(0, dtype=bool)  # fewer than eight
    clicks = count = 0
    for text in blocks(path, lines):
        digest.update(text)
        signs = np.frombuffer(text, np.uint8)
        starts = np.flatnonzero(signs == NEWLINE) + 1
        clicked = signs[np.concatenate([[0], starts[:-1]])] == ord("1")
        clicks, count = clicks + int(clicked.sum()), count + len(clicked)
        carried = np.concatenate([carried, clicked])
        whole = len(carried) // 8 * 8
        packed += np.packbits(carried[:whole]).tobytes()
        carried = carried[whole:]
    return Labels(digest.hexdigest(), count, clicks, bytes(packed + np.packbits(carried).tobytes()))


def _uniform(lines: npt.NDArray[np.uint64], stream: int) -> npt.NDArray[np.float64]:
    """Return a number from 0 to 1 for each line, the same for ever."""
    key = mix64(np.array([stream], dtype=np.uint64))
    return (mix64(lines ^ key) >> np.uint64(11)).astype(np.float64) / 2**53
