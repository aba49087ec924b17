"""A table's row as numbers: whole numbers and hashed categories, made by the same code at training and on a device.

A row is a line of fields with a tab between each two: first the whole numbers, in decimal, then the categories, 32 bits
each as eight hexadecimal digits in lower case, as Criteo publishes its click logs. An empty field is missing. A number
stays what it is, and `MISSING` where it is missing; what is made of it (a logarithm) is part of the model's graph. A
category is hashed together with its column, so that equal values of different columns differ, and so is a missing one:

    id = (mix64(column << 33 | missing << 32 | value) >> 32) * buckets >> 32

with 64 well-mixed bits of `runtime.fields.mix64`, which reads the fields.

Any change of this that gives a line another row needs another VERSION.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from runtime.description import options_from_json
from runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KIND = "hashed_columns"
VERSION = 1
MISSING = -(2**31)  # a missing number; present ones are larger
LARGEST_NUMBER = 2**31 - 1

# Bounds of the options: ids are int32, and no number in a file may ask for any amount of memory.
LARGEST = {"numbers": 4096, "categories": 4096, "buckets": 1 << 24}
SMALLEST = {"numbers": 1, "categories": 1, "buckets": 2}


@dataclass(frozen=True)
class HashedColumns:
    """Turns lines of fields into rows of numbers and ids.

    numbers: fields that are whole numbers. categories: fields behind them. buckets: number of distinct ids, which all
    columns share. Raises UsageError for an option that is out of its range.
    """

    numbers: int = 13
    categories: int = 26
    buckets: int = 1_000_000

    def __post_init__(self) -> None:
        for name, least in SMALLEST.items():
            value, most = getattr(self, name), LARGEST[name]
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name} is {value!r}, expected a whole number from {least:,} to {most:,}")

    @property
    def length(self) -> int:
        """Return the fields of a line, and the values of a row."""
        return self.numbers + self.categories

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return int32 (N, length): the row of each line, which may have its label in front.

        Raises UsageError for a text that is no such line, with its number, counted from 1.
        """
        from runtime.fields import Block, rows_of  # here: reading a manifest needs no numpy

        lines = [self._without_label(text, number) for number, text in enumerate(texts, 1)]
        block = Block("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"), self.length)
        rows, bad = rows_of(block, block.fields, self)
        for row, reason in bad.items():
            raise UsageError(f"line {row + 1}: {reason}")
        return rows

    def _without_label(self, text: str, number: int) -> str:
        line = text.rstrip("\r\n")
        count = line.count("\t") + 1
        if count not in (self.length, self.length + 1) or "\n" in line:
            remedy = "Give each row as a line of the data set's file, with its label or without."
            raise UsageError(f"line {number}: {self.other_count(count)}", remedy)
        return line if count == self.length else line.partition("\t")[2]

    def other_count(self, count: int, *, label: str = "") -> str:
        """Return what is wrong with a line of `count` fields, for a message; label: what stands before the numbers."""
        expected = f"{label}{self.numbers} numbers and {self.categories} categories"
        return f"{count} field{'' if count == 1 else 's'}, expected {expected}, with a tab between each two"

    def to_json(self) -> dict[str, Any]:
        return {"kind": KIND, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> HashedColumns:
        """Return what `to_json` gave. Raises UsageError where it is not that, or of another version."""
        names = ("numbers", "categories", "buckets")
        return cls(**options_from_json(value, kind=KIND, version=VERSION, names=names))

    def __str__(self) -> str:
        return f"{self.numbers} numbers and {self.categories} categories a row, hashed to {self.buckets:,} buckets"
