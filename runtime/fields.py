"""Fields of whole lines, read a block at a time: eight bytes of each at once in a machine word, without Python strings.

`runtime.table` says what the fields are, and what is made of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.table import LARGEST_NUMBER, MISSING, HashedColumns

TAB, NEWLINE = 9, 10
_WORD = 8  # bytes of a word; so many stand on both sides of a block, so that a word at its edge can be read

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class Block:
    """Whole lines in memory, each ended by a newline, and where the fields of those of the right width are.

    count: number of lines. lines: int64 (n,), which of them have `width` fields; unlike: the number of fields of each
    other line. fields: int64 (n, width + 1), the separator before a line's first field (the end of the line before)
    and the one behind each field.
    """

    def __init__(self, text: bytes, width: int) -> None:
        self._padded = bytes(_WORD) + text + bytes(_WORD)
        # The bytes, and the word that starts at each. A word's lowest byte is its first character, on every machine.
        self.bytes = np.frombuffer(self._padded, dtype=np.uint8)
        self.words = np.ndarray((len(self._padded) - _WORD + 1,), dtype="<u8", buffer=self._padded, strides=(1,))
        separators = np.flatnonzero((self.bytes == TAB) | (self.bytes == NEWLINE))
        last = np.flatnonzero(self.bytes[separators] == NEWLINE)  # each line's last separator, by its place among all
        counts = np.diff(last, prepend=-1)
        self.count = len(counts)
        self.lines = np.flatnonzero(counts == width)
        self.unlike = {int(line): int(counts[line]) for line in np.flatnonzero(counts != width)}
        places = (last[self.lines] - width)[:, np.newaxis] + np.arange(1, width + 1)
        self.fields = np.empty((len(self.lines), width + 1), dtype=np.int64)
        self.fields[:, 0] = np.concatenate([[_WORD - 1], separators[last]])[self.lines]
        self.fields[:, 1:] = separators[places]

    def text(self, start: int, end: int) -> str:
        return self._padded[start:end].decode("utf-8", "backslashreplace")


def rows_of(block: Block, fields: Int64Array, columns: HashedColumns) -> tuple[Int32Array, dict[int, str]]:
    """Return int32 (N, length), the rows that `columns` makes of lines, and what is wrong with unusable ones.

    fields: (N, length + 1), of `block.fields` the lines and columns that are wanted. A bad row is all 0; it is known by
    its position in N.
    """
    starts, ends = fields[:, :-1] + 1, fields[:, 1:]
    cut = columns.numbers
    numbers, bad_numbers = _numbers(block, starts[:, :cut], ends[:, :cut])
    values, missing, bad_values = _hexadecimal(block, starts[:, cut:], ends[:, cut:])
    rows = np.concatenate([numbers, _ids(values, missing, columns)], axis=1)
    bad = np.concatenate([bad_numbers, bad_values], axis=1)  # (N, length)
    wrong = np.flatnonzero(bad.any(axis=1))
    rows[wrong] = 0
    return rows, {int(row): _reason(block, fields[row], int(bad[row].argmax()), cut) for row in wrong}


def mix64(x: UInt64Array) -> UInt64Array:
    """Return 64 well-mixed bits of each x, one to one: a step of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _each(byte: int) -> np.uint64:
    """Return a word of eight times the same byte."""
    return np.uint64(byte * 0x0101010101010101)


def _numbers(block: Block, starts: Int64Array, ends: Int64Array) -> tuple[Int32Array, Flags]:
    """Return int32 whole numbers (N, columns), `MISSING` for empty fields, and which fields are neither."""
    negative = block.bytes[starts] == ord("-")
    digits = ends - starts - negative
    # The word that ends with the field. What stands before its digits becomes leading zeros.
    shift = (8 * (_WORD - np.clip(digits, 1, _WORD))).astype(np.uint64)
    x = ((block.words[ends - _WORD] ^ _each(ord("0"))) >> shift) << shift
    bad = (((x + _each(6)) | x) & _each(0xF0)) != 0  # a byte above 9
    # Neighbours become one number: eight digits four pairs, these two fours, these one eight. The first is the highest.
    x = (x * np.uint64(10) + (x >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    x = (x * np.uint64(100) + (x >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    x = (x * np.uint64(10_000) + (x >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    values = x.astype(np.int64)
    np.negative(values, where=negative, out=values)
    for place in zip(*np.nonzero(digits > _WORD), strict=True):  # rare: from a hundred million on
        values[place], bad[place] = _long_number(block.text(starts[place], ends[place]))
    empty = ends == starts
    values[empty] = MISSING
    return values.astype(np.int32), (bad | (digits < 1)) & ~empty


def _long_number(text: str) -> tuple[int, bool]:
    """Return the number that `text` writes out, and whether it is none, or too large."""
    digits = text.removeprefix("-")
    plain = digits.isascii() and digits.isdecimal() and len(digits) <= 20
    value = int(text) if plain else 0
    return (value, False) if plain and abs(value) <= LARGEST_NUMBER else (0, True)


def _hexadecimal(block: Block, starts: Int64Array, ends: Int64Array) -> tuple[UInt64Array, Flags, Flags]:
    """Return the uint64 values (N, columns) of eight digits, which fields are empty (0), and which are neither."""
    word = block.words[starts]
    missing = ends == starts
    x = (word & _each(0x0F)) + ((word >> np.uint64(6)) & _each(1)) * np.uint64(9)  # each byte the value of its digit
    # Written again, so that what is no digit shows: letters lie 39 characters further on than their values.
    written = x + _each(ord("0")) + (((x + _each(6)) >> np.uint64(4)) & _each(1)) * np.uint64(39)
    bad = ((written != word) | ((x & _each(0xF0)) != 0) | (ends - starts != _WORD)) & ~missing
    # Neighbours become one number, as in `_numbers`.
    x = ((x << np.uint64(4)) + (x >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    x = ((x << np.uint64(8)) + (x >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    x = ((x << np.uint64(16)) + (x >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    x[missing] = 0
    return x, missing, bad


def _ids(values: UInt64Array, missing: Flags, columns: HashedColumns) -> Int32Array:
    column = np.arange(columns.categories, dtype=np.uint64) << np.uint64(33)
    mixed = mix64(column | (missing.astype(np.uint64) << np.uint64(32)) | values)
    return (((mixed >> np.uint64(32)) * np.uint64(columns.buckets)) >> np.uint64(32)).astype(np.int32)


def _reason(block: Block, fields: Int64Array, column: int, numbers: int) -> str:
    text = block.text(int(fields[column]) + 1, int(fields[column + 1]))
    text = repr(text if len(text) <= 40 else f"{text[:37]}...")
    if column < numbers:
        most = f"{LARGEST_NUMBER:,}"
        return f"number {column + 1} is {text}, expected a whole number from -{most} to {most}, or nothing"
    return f"category {column - numbers + 1} is {text}, expected eight hexadecimal digits in lower case, or nothing"
