"""Rows of a text and a label out of one file: lines of TSV, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import IO, Any

from compress.datasets.text_files import TextRow
from runtime.errors import DataError

# Which fields of a row are its text, in order, and which is its label.
Fields = tuple[tuple[int, ...], int]


def unusable(problem: str) -> TextRow:
    return TextRow("", "", problem)


def text_row(text: bytes, label: str, encoding: str = "utf-8") -> TextRow:
    """Return the row of a text in bytes, which is bad where they are none of the encoding."""
    try:
        return TextRow(text.decode(encoding), label)
    except UnicodeDecodeError:
        return unusable(f"text is not {encoding.upper()}")


def tsv_rows(
    file: IO[bytes], where: str, *, fields: Fields, columns: int, header: tuple[str, ...] = ()
) -> Iterator[TextRow]:
    """Yield the rows of a file of tab-separated lines in which quotes are signs like any other.

    header: the names in the first line, none where it is a row. Raises DataError for another header.
    """
    (text,), label = fields
    for number, line in enumerate(file, start=1):
        row = line.rstrip(b"\r\n").split(b"\t")
        if number == 1 and header:
            if [field.decode("utf-8", "replace") for field in row] != list(header):
                raise DataError(f"{where}: the first line is {line[:80]!r}, expected {' and '.join(header)}")
        elif len(row) != columns:
            yield unusable(_columns(number, where, len(row), columns))
        else:
            yield text_row(row[text], row[label].decode("utf-8", "replace"))


def csv_rows(
    file: IO[bytes],
    where: str,
    *,
    fields: Callable[[Sequence[str]], Fields] | Fields,
    columns: int | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
) -> Iterator[TextRow]:
    """Yield the rows of a CSV file, in which a quoted field may hold delimiters, line breaks and doubled quotes.

    fields: which fields to take, or a function that tells them from the header; without one there is no header.
    columns: fields a row, None for as many as the header has. The fields of a text are joined by a line break.
    Raises DataError for what is no CSV.
    """
    # What is no text of the encoding is told row by row: a byte of it becomes a lone surrogate here.
    content = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
    lines = csv.reader(content, delimiter=delimiter)
    try:
        if callable(fields):
            header = next(lines, [])
            # A byte order mark is no part of the first name.
            header = [name.removeprefix("\ufeff") for name in header]
            columns, (texts, label) = len(header), fields(header)
        else:
            texts, label = fields
        for row in lines:
            if not row:
                continue  # an empty line, such as editors leave at the end
            if len(row) != columns:
                yield unusable(_columns(lines.line_num, where, len(row), columns))
                continue
            text = row[texts[0]] if len(texts) == 1 else "\n".join([row[index] for index in texts])
            yield _checked(text, row[label], encoding)
    except csv.Error as error:
        raise DataError(f"{where}, line {lines.line_num:,}: {error}", "Check the quotes before that line.") from error
    finally:
        content.detach()  # else it closes the file, which is its opener's to close


def json_rows(file: IO[bytes], where: str, *, text: str, label: str) -> Iterator[TextRow]:
    """Yield the rows of a file with a JSON object a line, of which `text` and `label` are keys.

    A label may be text or a number; 5.0 is the label 5.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError is one, too
            yield unusable(f"line {number:,} of {where} is no JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield unusable(f"line {number:,} of {where} is no JSON object")
        elif absent := [key for key in (text, label) if row.get(key) is None]:
            yield unusable(f"line {number:,} of {where} has no '{absent[0]}', only {', '.join(list(row)[:10])}")
        elif not isinstance(row[text], str):
            yield unusable(f"line {number:,} of {where}: '{text}' is no text")
        else:
            yield _checked(row[text], _written(row[label]), "utf-8")


def fields_of(header: Sequence[str], where: str, *, text: Sequence[str], label: str) -> Fields:
    """Return the places of the named columns. Raises DataError for a column that is not there, or there twice."""
    for column in (*text, label):
        if header.count(column) != 1:
            near = get_close_matches(column, header, n=1, cutoff=0.5)
            raise DataError(
                f"{where}: no column '{column}'; it has {', '.join(header) or 'none'}",
                remedy=(f"Did you mean '{near[0]}'? " if near else "")
                + "Name the columns in the source's options: `text_column`, `label_column`, `delimiter`.",
            )
    return tuple(header.index(column) for column in text), header.index(label)


def _checked(text: str, label: str, encoding: str) -> TextRow:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return unusable(f"text is not {encoding.upper()}")
    return TextRow(text, label)


def _written(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _columns(line: int, where: str, came: int, expected: int | None) -> str:
    return f"line {line:,} of {where} has {came} column(s), expected {expected}"
