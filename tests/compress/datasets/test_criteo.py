"""Criteo's click log: every line by hand, whatever the blocks and the packing; what is dropped; what is refused."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from true_formats.criteo import lines, write

from compress.data_check import check_data
from compress.datasets import Dataset, DataSpec, click_log, describe, fingerprint, load
from compress.datasets.click_log import blocks
from compress.datasets.criteo import Criteo
from runtime.errors import DataError
from runtime.table import MISSING, HashedColumns

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    click_log._labels.cache_clear()
    monkeypatch.setattr(Criteo, "rows", {"train": 500})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with 500 lines."""
    write(tmp_path, rows=500)
    return tmp_path


def spec(bad_rows: object = "refuse", **options: Any) -> DataSpec:
    options = {"buckets": 1000, "held_out": 0.2, **options}
    return DataSpec.model_validate({"source": {"criteo": options}, "bad_rows": bad_rows})


def write_lines(root: Path, *changed: tuple[int, str], count: int = 60) -> Path:
    """Write `count` lines, some of them replaced by number (from 1)."""
    text = lines(count)
    for number, line in changed:
        text[number - 1] = line
    path = root / "criteo" / "train.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text))
    return path


def line(number: int, *changed: tuple[int, str]) -> str:
    """Return a line with some fields changed: 0 is the label, 1 to 13 the numbers, 14 to 39 the categories."""
    fields = lines(60)[number - 1].split("\t")
    for place, text in changed:
        fields[place] = text
    return "\t".join(fields)


def all_rows(data: Dataset) -> Counter[tuple[int, ...]]:
    """Every row of every split with its label, and how often it is there."""
    parts = [getattr(data, split) for split in SPLITS]
    return Counter((int(y), *x) for part in parts for x, y in zip(part.inputs.tolist(), part.labels, strict=True))


def test_every_line_is_a_row_with_its_label(root: Path) -> None:
    data = load(spec(balance=False), seed=0, data_root=root)
    columns = HashedColumns(buckets=1000)
    expected = Counter((int(text[0]), *columns.encode([text])[0].tolist()) for text in lines(500))
    assert all_rows(data) == expected
    assert (data.class_names, data.normalization, data.columns) == (("no click", "click"), None, columns)
    assert (data.signature.shape, data.signature.numbers, data.signature.ids) == ((39,), 13, 1000)
    for split in SPLITS:
        part = getattr(data, split)
        assert (part.inputs.dtype, part.labels.dtype) == (np.int32, np.int64)
        np.testing.assert_array_equal(part.row_ids, np.arange(len(part)))


def test_missing_fields_and_negative_numbers_stay_what_they_are(tmp_path: Path) -> None:
    bare = "1" + "\t" * 39
    write_lines(tmp_path, (3, bare), (5, line(5, (0, "1"), (1, "-17"), (2, "2147483647"), (13, ""))))
    data = load(spec(balance=False), seed=0, data_root=tmp_path)
    rows = {row[:14] for row in all_rows(data)}
    assert (1, *[MISSING] * 13) in rows
    assert any(row[:3] == (1, -17, 2147483647) and row[13] == MISSING for row in rows)


@pytest.mark.parametrize("size", [100, 997, 1 << 14])
@pytest.mark.parametrize("packed", ["plain", "gz", "archive", "no newline at the end"])
def test_blocks_and_packing_change_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, size: int, packed: str) -> None:
    expected = load(spec(), seed=0, data_root=root)
    before = fingerprint(spec(), root)
    path = root / "criteo" / "train.txt"
    content = path.read_bytes()
    if packed != "plain":
        path.unlink()
    if packed == "gz":
        path.with_suffix(".txt.gz").write_bytes(gzip.compress(content))
    elif packed == "archive":
        write_archive(root / "criteo" / "dac.tar.gz", {"readme.txt": b"read me", "train.txt": content, "test.txt": b""})
    elif packed == "no newline at the end":
        path.write_bytes(content[:-1])
    monkeypatch.setattr(click_log, "_BLOCK_BYTES", size)
    monkeypatch.setattr(click_log, "_BLOCK_LINES", 64)
    click_log._labels.cache_clear()
    came = load(spec(), seed=0, data_root=root)
    assert fingerprint(spec(), root) == before
    for split in SPLITS:
        one, two = getattr(expected, split), getattr(came, split)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.labels, two.labels)


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"dac/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_non_clicks_are_dropped_until_there_are_as_many_as_clicks(tmp_path: Path) -> None:
    write(tmp_path, rows=4000)
    whole, half = (load(spec(balance=balance), seed=0, data_root=tmp_path) for balance in (False, True))
    labels = [np.concatenate([getattr(data, split).labels for split in SPLITS]) for data in (whole, half)]
    clicks = int(labels[0].sum())
    assert labels[1].sum() == clicks
    # Of 3,000 non-clicks a third is kept: about 1,000, with a standard deviation of 26.
    assert abs(int((labels[1] == 0).sum()) - clicks) < 4 * 26
    assert all_rows(half) <= all_rows(whole)


def test_a_seed_drops_others_and_never_moves_a_row_to_another_split(tmp_path: Path) -> None:
    write(tmp_path, rows=4000)
    data = [load(spec(seed=seed), seed=0, data_root=tmp_path) for seed in (0, 1)]
    again = load(spec(), seed=3, data_root=tmp_path)
    rows = [{split: rows_of(one, split) for split in SPLITS} for one in (*data, again)]
    assert rows[0] == rows[2]
    assert rows[0] != rows[1]
    for split in SPLITS:
        for other in SPLITS:
            if other != split:
                assert not rows[0][split] & rows[1][other]


def rows_of(data: Dataset, split: str) -> set[tuple[int, ...]]:
    return set(map(tuple, getattr(data, split).inputs.tolist()))


def test_shares_of_the_splits(tmp_path: Path) -> None:
    write(tmp_path, rows=4000)
    data = load(spec(balance=False, held_out=0.1), seed=0, data_root=tmp_path)
    sizes = [len(getattr(data, split)) for split in SPLITS]
    assert sum(sizes) == 4000
    for size in sizes[1:]:
        assert abs(size - 400) < 4 * np.sqrt(400 * 0.9)
    assert describe(spec(balance=False, held_out=0.1), tmp_path).rows == dict(zip(SPLITS, sizes, strict=True))


def test_the_first_rows_are_those_of_a_shorter_file(root: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    write_lines(short, count=0)
    (short / "criteo" / "train.txt").write_text("".join(f"{text}\n" for text in lines(500)[:200]))
    assert fingerprint(spec(first_rows=200), root) == fingerprint(spec(), short) != fingerprint(spec(), root)
    one, two = load(spec(first_rows=200), seed=0, data_root=root), load(spec(), seed=0, data_root=short)
    assert all_rows(one) == all_rows(two)
    assert all_rows(load(spec(first_rows=9999), seed=0, data_root=root)) == all_rows(
        load(spec(), seed=0, data_root=root)
    )


def test_lines_are_cut_where_asked_whatever_the_block(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "criteo" / "train.txt"
    content = path.read_bytes()
    for size in (50, 1000, 1 << 20):
        monkeypatch.setattr(click_log, "_BLOCK_BYTES", size)
        for count in (1, 7, 499, 500, 501):
            assert b"".join(blocks(path, count)) == b"".join(content.splitlines(keepends=True)[:count])


def test_rows_are_read_from_the_cache_and_are_not_copied(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    first = load(spec(), seed=0, data_root=root, cache=tmp_path / "cache")
    monkeypatch.setattr(click_log.ClickLog, "write", None)
    second = load(spec(), seed=0, data_root=root, cache=tmp_path / "cache")
    assert all_rows(first) == all_rows(second)
    for data in (first, second):
        assert isinstance(data.train.inputs, np.memmap)
        assert data.train.inputs.flags.writeable
    second.train.inputs[:] = 0  # this process's own
    assert all_rows(load(spec(), seed=0, data_root=root, cache=tmp_path / "cache")) == all_rows(first)


@pytest.mark.parametrize("damage", ["other bytes", "cut short", "no record"])
def test_a_damaged_cache_is_built_again(
    root: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    expected = all_rows(load(spec(), seed=0, data_root=root, cache=cache))
    (entry,) = cache.iterdir()
    file = entry / "train.npy"
    content = file.read_bytes()
    if damage == "no record":
        (entry / "record.json").unlink()
    else:
        file.write_bytes(content[:-40] + bytes(40) if damage == "other bytes" else content[:-40])
    with caplog.at_level(logging.WARNING):
        assert all_rows(load(spec(), seed=0, data_root=root, cache=cache)) == expected
    assert "are damaged and are built again" in caplog.text
    assert file.read_bytes() == content


# What is refused


@pytest.mark.parametrize("change", ["longer", "shorter", "another"])
def test_a_file_that_changes_between_its_readings_is_refused(root: Path, tmp_path: Path, change: str) -> None:
    source = Criteo(buckets=1000)
    file = source.file(root / "criteo")
    assert file.rows
    path = root / "criteo" / "train.txt"
    content = path.read_text()
    changed = {
        "longer": content * 2,
        "shorter": content[: content.rindex("\n", 0, -1) + 1],
        "another": content[:-2] + "x\n",
    }
    path.write_text(changed[change][:-1] + "\n")
    with pytest.raises(DataError, match=r"train.txt has changed while it was read"):
        file.read(tmp_path / "cache", 0)
    assert not [each for each in (tmp_path / "cache").iterdir() if each.suffix != ".part"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line(7, (9, "x")), "line 7: number 9 is 'x', expected a whole number from"),
        (line(7, (14, "xyz00000")), "line 7: category 1 is 'xyz00000', expected eight hexadecimal digits"),
        (line(7, (39, "12345678\r")), r"line 7: category 26 is '12345678\\r'"),
        (line(7, (0, "2")), "line 7: label is '2', expected 0 or 1"),
        (line(7, (0, "")), "line 7: label is '', expected 0 or 1"),
        (line(7, (0, "11")), "line 7: label is '11', expected 0 or 1"),
        ("1\t2\t3", "line 7: 3 fields, expected a label, 13 numbers and 26 categories, with a tab between each two"),
        (line(7) + "\t1", "line 7: 41 fields, expected a label, 13 numbers and 26 categories"),
        ("", "line 7: 1 field, expected a label"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, said: str) -> None:
    write_lines(tmp_path, (7, bad))
    with pytest.raises(DataError, match=rf"criteo \(.*\): 1 unusable row\(s\): \w+ row \d+ \({said}"):
        load(spec(balance=False), seed=0, data_root=tmp_path)
    data = load(spec({"skip_at_most": 1}, balance=False), seed=0, data_root=tmp_path)
    columns = HashedColumns(buckets=1000)
    good = [text for number, text in enumerate(lines(60), 1) if number != 7]
    assert all_rows(data) == Counter((int(text[0]), *columns.encode([text])[0].tolist()) for text in good)


def test_another_file_is_given_up_early(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    path.write_text("a,b,c\n" * 100_000)
    with pytest.raises(DataError, match=r"more than .* unusable rows, 2 allowed: line 1: 1 field, expected a label"):
        load(spec({"skip_at_most": 2}, balance=False), seed=0, data_root=tmp_path)


def test_a_truncated_gz_and_an_archive_without_rows_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    content = path.read_bytes()
    path.unlink()
    packed = path.with_suffix(".txt.gz")
    packed.write_bytes(gzip.compress(content)[:-500])
    with pytest.raises(DataError, match=r"train.txt.gz \(.* bytes\) is damaged or cut short"):
        load(spec(), seed=0, data_root=tmp_path)
    packed.unlink()
    write_archive(tmp_path / "criteo" / "dac.tar.gz", {"test.txt": content})
    with pytest.raises(DataError, match=r"dac.tar.gz holds no train.txt"):
        load(spec(), seed=0, data_root=tmp_path)
    archive = tmp_path / "criteo" / "dac.tar.gz"
    write_archive(archive, {"train.txt": content})
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"dac.tar.gz \(.* bytes\) is damaged or cut short"):
        load(spec(), seed=0, data_root=tmp_path)


def test_a_file_without_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no row that can be used"):
        load(spec(), seed=0, data_root=tmp_path)
    monkeypatch.setattr(click_log, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(click_log, "_LINE_BYTES", 10_000)
    path.write_bytes(bytes(20_000))
    with pytest.raises(DataError, match="a line of more than 10,000 bytes"):
        load(spec(), seed=0, data_root=tmp_path)


def test_a_missing_file_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder does not exist") as error:
        fingerprint(spec(), tmp_path)
    assert f"{tmp_path}/criteo/train.txt   or train.txt.gz, or the archive dac.tar.gz" in error.value.remedy
    with pytest.raises(DataError, match="no data root is named"):
        fingerprint(spec())


# edgefold data check


def test_data_check_reads_the_ends_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_log, "_labels", None)  # which would read it whole
    found = check_data("criteo", root)
    (form,) = found["formats"]
    assert (found["complete"], found["reads"], form["problems"]) == (True, "the click log", [])
    path = root / "criteo" / "train.txt"
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert check_data("criteo", root)["formats"][0]["problems"] == [
        "last line 1: 37 fields, expected a label, 13 numbers and 26 categories, with a tab between each two"
    ]
    path.write_bytes(content[: len(content) // 2].rpartition(b"\n")[0] + b"\n")
    (problem,) = check_data("criteo", root)["formats"][0]["problems"]
    assert problem.endswith("rows by its size, the published set has 500")
    path.write_bytes(b"no\n" + content)
    assert check_data("criteo", root)["formats"][0]["problems"][0].startswith("line 1: 1 field, expected a label")


def test_data_check_of_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    found = check_data("criteo", tmp_path)
    assert (found["complete"], found["reads"]) == (False, None)
    assert found["formats"][0]["missing"][0].startswith("train.txt or train.txt.gz or dac.tar.gz")
    (tmp_path / "criteo").mkdir()
    (tmp_path / "criteo" / "train.txt.gz").write_bytes(b"\x1f\x8b\x08")
    (problem,) = check_data("criteo", tmp_path)["formats"][0]["problems"]
    assert "damaged or cut short" in problem
