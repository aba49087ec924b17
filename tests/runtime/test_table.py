"""Lines of fields to rows: the same ones for ever, and for any line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundle import open_bundle
from runtime.errors import BundleError, UsageError
from runtime.fields import Block, mix64, rows_of
from runtime.table import MISSING, VERSION, HashedColumns
from runtime.text import HashedNgrams

SMALL = HashedColumns(numbers=2, categories=3, buckets=1000)
MASK = (1 << 64) - 1


def naive_mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def naive_row(columns: HashedColumns, line: str) -> list[int]:
    """The definition, written the long way round."""
    fields = line.split("\t")
    row = [int(field) if field else MISSING for field in fields[: columns.numbers]]
    for column, field in enumerate(fields[columns.numbers :]):
        key = column << 33 | (not field) << 32 | int(field or "0", 16)
        row.append((naive_mix(key) >> 32) * columns.buckets >> 32)
    return row


def test_golden_row() -> None:
    # Written down once. A bundle on a device and the model inside it depend on them: another hash is another VERSION.
    assert VERSION == 1
    line = "1\t-2\t\t68fd1e64\t\t00000000"
    assert HashedColumns(3, 3).encode([line]).tolist() == [GOLDEN]


GOLDEN = [1, -2, MISSING, 298074, 311241, 568903]


def test_splitmix64_has_its_published_values() -> None:
    # The first outputs for the seed 1234567, as its reference implementation prints them.
    steps = np.uint64(1234567) + np.arange(2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(steps).tolist() == [6457827717110365317, 3203168211198807973]


NUMBER = st.one_of(st.just(""), st.integers(-(2**31) + 1, 2**31 - 1).map(str), st.integers(-9, 99).map(str))
CATEGORY = st.one_of(st.just(""), st.integers(0, 2**32 - 1).map("{:08x}".format))


@given(st.lists(st.tuples(NUMBER, NUMBER, CATEGORY, CATEGORY, CATEGORY).map("\t".join), max_size=20))
def test_any_lines_are_what_the_definition_says(lines: list[str]) -> None:
    rows = SMALL.encode(lines)
    assert (rows.dtype, rows.shape) == (np.int32, (len(lines), 5))
    assert rows.tolist() == [naive_row(SMALL, line) for line in lines]


def test_a_label_in_front_and_a_line_end_change_nothing() -> None:
    line = "5\t6\t0000000a\t\tffffffff"
    assert SMALL.encode([f"1\t{line}", f"{line}\r\n", f"\t{line}\n"]).tolist() == [naive_row(SMALL, line)] * 3


def test_equal_values_of_different_columns_and_missing_ones_differ() -> None:
    wide = HashedColumns(1, 26)
    for value in ("00000000", "", "deadbeef"):
        ids = wide.encode(["7" + f"\t{value}" * 26])[0, 1:]
        assert len(set(ids.tolist())) == 26
    zero, empty = wide.encode(["7" + "\t00000000" * 26, "7" + "\t" * 26])[:, 1:]
    assert not (zero == empty).any()


def test_buckets_are_filled_evenly() -> None:
    # Small values in a row, as counters would give them: chi-square of 20,000 over 100 buckets has mean 99, sd 14.
    lines = [f"1\t{value:08x}" for value in range(20_000)]
    counts = np.bincount(HashedColumns(1, 1, 100).encode(lines)[:, 1], minlength=100)
    assert len(counts) == 100
    assert ((counts - 200) ** 2 / 200).sum() < 99 + 5 * 14


@pytest.mark.parametrize(
    "number",
    ["x", "1x", "x1", "+1", "-", "--1", "1.5", " 1", "2147483648", "-2147483648", "99999999999999999999999", "1²"],
)
def test_what_is_no_number_is_refused(number: str) -> None:
    with pytest.raises(UsageError, match=r"line 2: number 2 is '.*', expected a whole number from -2,147,483,647 to"):
        SMALL.encode(["1\t2\t\t\t", f"1\t{number}\t\t\t"])


@pytest.mark.parametrize(
    "category",
    [
        "g0000000",
        "0000000G",
        "ABCDEF01",
        "1234567",
        "123456789",
        "0x123456",
        "-1234567",
        "é000000",
        "::::::::",
        "@0000000",
    ],
)
def test_what_is_no_category_is_refused(category: str) -> None:
    with pytest.raises(
        UsageError, match=r"line 1: category 3 is '.*', expected eight hexadecimal digits in lower case"
    ):
        SMALL.encode([f"1\t2\t\t00000000\t{category}"])


def test_every_character_that_is_no_digit_is_told() -> None:
    for code in range(1, 256):
        if (sign := chr(code)) in "\t\n\r":
            continue
        for place in (0, 7):
            text = ("0" * place + sign + "0" * (7 - place))[:8]
            line = f"1\t1\t\t\t{text}"
            if sign in "0123456789abcdef":
                assert SMALL.encode([line]).tolist() == [naive_row(SMALL, line)]
            else:
                with pytest.raises(UsageError, match="category 3"):
                    SMALL.encode([line])


@pytest.mark.parametrize("line", ["", "1\t2\t\t", "1\t2\t\t\t\t\t", "1\t2\n3\t\t\t"])
def test_another_number_of_fields_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: .* field.*, expected 2 numbers and 3 categories"):
        SMALL.encode([line])


def test_a_block_tells_lines_of_another_width_and_keeps_the_others() -> None:
    block = Block(b"1\t2\n3\n4\t5\n\n6\t7\t8\n9\t\n", 2)
    assert (block.count, block.lines.tolist(), block.unlike) == (6, [0, 2, 5], {1: 1, 3: 1, 4: 3})
    texts = [[block.text(a + 1, b) for a, b in itertools.pairwise(row)] for row in block.fields.tolist()]
    assert texts == [["1", "2"], ["4", "5"], ["9", ""]]


def test_bad_rows_are_zero_and_leave_the_others() -> None:
    block = Block(b"1\t0000000a\nx\t0000000b\n3\t0000000c\n", 2)
    columns = HashedColumns(1, 1)
    rows, bad = rows_of(block, block.fields[[1, 2]], columns)
    assert rows.tolist() == [[0, 0], naive_row(columns, "3\t0000000c")]
    assert list(bad) == [0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": {**SMALL.to_json(), "version": 9}}, "manifest.json: table: kind is 'hashed_columns', version 9"),
        ({"table": {**SMALL.to_json(), "numbers": 3}}, r"expected int32 of shape \[6\] as table.numbers and"),
        ({"table": SMALL.to_json(), "text": HashedNgrams(length=5).to_json()}, "text and table are both given"),
    ],
)
def test_a_bundle_whose_featuriser_does_not_fit_is_refused(
    write_bundle: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    taken = {"name": "input", "dtype": "int32", "shape": [5], "layout": "NL"}
    with pytest.raises(BundleError, match=said):
        open_bundle(write_bundle(tmp_path / "bundle", input=taken, **changes))


def test_json_gives_it_back() -> None:
    assert HashedColumns.from_json(json.loads(json.dumps(SMALL.to_json()))) == SMALL
    assert str(SMALL) == "2 numbers and 3 categories a row, hashed to 1,000 buckets"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected an object"),
        ({**SMALL.to_json(), "version": 2}, "version 2; this edgefold reads 'hashed_columns', version 1"),
        ({**SMALL.to_json(), "kind": "other"}, "kind is 'other'"),
        ({"kind": "hashed_columns", "version": 1, "numbers": 1}, "categories, buckets missing"),
        ({**SMALL.to_json(), "buckets": 2**30}, "buckets is 1073741824, expected a whole number from 2 to 16,777,216"),
        ({**SMALL.to_json(), "numbers": True}, "numbers is True"),
    ],
)
def test_what_is_no_description_is_refused(value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        HashedColumns.from_json(value)
