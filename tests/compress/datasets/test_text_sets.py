"""The published text sets in their authors' files: unpacked, compressed or packed, whole or damaged."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import logging
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compress.cli import main
from compress.datasets import Dataset, DataSpec, describe, fingerprint, load
from compress.datasets.named_text import AmazonReviews, Cola, Imdb, RottenTomatoes, Sentiment140, Sst2
from compress.datasets.text_files import label_column, scan_rows
from compress.datasets.text_readers import TextRow
from runtime.errors import DataError
from runtime.text import HashedNgrams

SETS = {
    "sst2": Sst2,
    "cola": Cola,
    "rotten_tomatoes": RottenTomatoes,
    "imdb": Imdb,
    "amazon_reviews": AmazonReviews,
    "sentiment140": Sentiment140,
}
# The archive of each set, what lies in it, and the folder that it unpacks to.
ARCHIVES = {
    "sst2": ("SST-2.zip", "SST-2"),
    "cola": ("CoLA.zip", "CoLA"),
    "rotten_tomatoes": ("rt-polaritydata.tar.gz", "rt-polaritydata"),
    "imdb": ("aclImdb_v1.tar.gz", "aclImdb"),
    "amazon_reviews": ("amazon_review_full_csv.tar.gz", "amazon_review_full_csv"),
    "sentiment140": ("trainingandtestdata.zip", "."),
}
FEATURISER = HashedNgrams(buckets=64, length=8)
ROOT = os.environ.get("EDGEFOLD_DATA")


def spec(kind: str, *, source: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    features = {"buckets": FEATURISER.buckets, "length": FEATURISER.length}
    return DataSpec.model_validate(
        {"source": {kind: {"features": features, **(source or {})}}, "validation": 0, **options}
    )


def read(kind: str, root: Path, **options: Any) -> Dataset:
    return load(spec(kind, **options), seed=0, data_root=root)


def written(root: Path, kind: str, **options: Any) -> Path:
    importlib.import_module(f"true_formats.{kind}").write(root, **options)
    return root


def packed(root: Path, kind: str) -> Path:
    """Pack a set as its authors do, and remove the files."""
    archive, inside = ARCHIVES[kind]
    folder = root / kind
    files = sorted(path for path in (folder / inside).rglob("*") if path.is_file())
    target = root / archive
    if archive.endswith(".zip"):
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as pack:
            for path in files:
                pack.write(path, path.relative_to(folder))
    else:
        with tarfile.open(target, "w:gz") as pack:
            # Not in the order in which they are read.
            for path in reversed(files):
                pack.add(path, path.relative_to(folder))
    shutil.rmtree(folder)
    folder.mkdir()
    return target.rename(folder / archive)


def texts_of(dataset: Dataset) -> list[str]:
    assert dataset.test.texts is not None
    return list(dataset.test.texts)


# What is read


@pytest.mark.parametrize("kind", SETS)
def test_the_archive_is_the_files_and_nothing_is_unpacked(tmp_path: Path, kind: str) -> None:
    written(tmp_path, kind, rows=20)
    files, rows = read(kind, tmp_path), describe(spec(kind), tmp_path).rows
    before = fingerprint(spec(kind), tmp_path)
    archive = packed(tmp_path, kind)
    assert (describe(spec(kind), tmp_path).rows, files.fingerprint) == (rows, before)
    again = read(kind, tmp_path)
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(again, split).inputs, getattr(files, split).inputs)
        np.testing.assert_array_equal(getattr(again, split).labels, getattr(files, split).labels)
    assert texts_of(again) == texts_of(files)
    assert again.fingerprint != files.fingerprint
    assert [path.name for path in (tmp_path / kind).iterdir()] == [archive.name]


@pytest.mark.parametrize("kind", [kind for kind in SETS if kind != "imdb"])
def test_files_may_be_compressed_and_lie_in_the_sets_own_folder(tmp_path: Path, kind: str) -> None:
    written(tmp_path, kind, rows=20)
    files = read(kind, tmp_path)
    for path in sorted((tmp_path / kind / ARCHIVES[kind][1]).iterdir()):
        (tmp_path / kind / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    again = read(kind, tmp_path)
    np.testing.assert_array_equal(again.train.inputs, files.train.inputs)
    assert texts_of(again) == texts_of(files)


@pytest.mark.parametrize("kind", SETS)
def test_parquet_goes_before_the_authors_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).mkdir()
    for split in SETS[kind]().rows:
        (tmp_path / kind / f"{split}-00000-of-00001.parquet").write_bytes(b"")
    written(tmp_path, kind, rows=20)
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet \(0 bytes\) is not a whole parquet file"):
        read(kind, tmp_path)


def sst2(root: Path, train: bytes, dev: bytes = b"sentence\tlabel\nso dull \t0\n") -> Path:
    folder = root / "sst2" / "SST-2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_bytes(train)
    (folder / "dev.tsv").write_bytes(dev)
    return root


def test_quotes_of_glue_are_signs_like_any_other(tmp_path: Path) -> None:
    lines = b'sentence\tlabel\n"unopened \t0\nthe "end" of ""it""\t1\r\ncaf\xc3\xa9\x85 \t1\n'.replace(
        b"\x85", b"\xc2\x85"
    )
    dataset = read("sst2", sst2(tmp_path, b"sentence\tlabel\ngood\t1\nbad\t0\n", lines))
    # U+0085 ends a line for str.splitlines, and is none here.
    assert texts_of(dataset) == ['"unopened ', 'the "end" of ""it""', "café\x85 "]
    assert dataset.test.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(["good", "bad"]))
    assert dataset.train.labels.tolist() == [1, 0]
    assert dataset.train.texts is None


def test_cola_has_its_sentence_in_the_fourth_column(tmp_path: Path) -> None:
    folder = tmp_path / "cola" / "CoLA"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_bytes(b"gj04\t1\t\tThey drank.\ngj04\t0\t*\tThey drank the pub.\n")
    (folder / "dev.tsv").write_bytes(b'gj04\t0\t*\tSusan whispered "Shut\n')
    dataset = read("cola", tmp_path)
    assert dataset.class_names == ("unacceptable", "acceptable")
    assert dataset.train.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(["They drank.", "They drank the pub."]))
    assert texts_of(dataset) == ['Susan whispered "Shut']


def test_rotten_tomatoes_is_cut_by_class_in_file_order(tmp_path: Path) -> None:
    folder = tmp_path / "rotten_tomatoes" / "rt-polaritydata"
    folder.mkdir(parents=True)
    for name in ("neg", "pos"):
        # 5,331 lines as published: 4,265, 533 and 533; 0x85 and 0x96 are signs of Windows, not of latin-1.
        lines = [f"{name} {row} \x85 \x96 \xe9 \n".encode("latin-1") for row in range(5_331)]
        (folder / f"rt-polarity.{name}").write_bytes(b"".join(lines))
    data = DataSpec.model_validate({"source": "rotten_tomatoes"})
    dataset = load(data, seed=0, data_root=tmp_path)
    assert describe(data, tmp_path).rows == RottenTomatoes.rows == {"train": 8_530, "validation": 1_066, "test": 1_066}
    assert [len(dataset.train), len(dataset.validation)] == [8_530, 1_066]
    assert texts_of(dataset)[:3] == ["neg 4798 … – é", "pos 4798 … – é", "neg 4799 … – é"]
    assert dataset.validation.texts is not None
    assert dataset.validation.texts[[0, -1]].tolist() == ["neg 4265 … – é", "pos 4797 … – é"]
    np.testing.assert_array_equal(dataset.train.inputs[:2], HashedNgrams().encode(["neg 0 … – é", "pos 0 … – é"]))
    assert dataset.train.labels[:4].tolist() == [0, 1, 0, 1]


def test_imdb_takes_its_classes_in_turn_and_no_unlabelled_reviews(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            folder = tmp_path / "imdb" / "aclImdb" / split / label
            folder.mkdir(parents=True)
            for number in range(2 + (label == "pos")):
                (folder / f"{number}_7.txt").write_text(f"{label} {number}<br />é", encoding="utf-8")
            (folder / "urls.lst").write_text("not a review")
    (tmp_path / "imdb" / "aclImdb" / "train" / "unsup").mkdir()
    (tmp_path / "imdb" / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("no label")
    dataset = read("imdb", tmp_path)
    order = ["neg 0<br />é", "pos 0<br />é", "neg 1<br />é", "pos 1<br />é", "pos 2<br />é"]
    assert texts_of(dataset) == order
    assert dataset.test.labels.tolist() == [0, 1, 0, 1, 1]
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(order))


def amazon(root: Path, *rows: str, name: str = "amazon_review_full_csv") -> Path:
    folder = root / "amazon_reviews" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return root


def test_amazon_reviews_are_title_and_text_with_the_authors_escapes_undone(tmp_path: Path) -> None:
    amazon(tmp_path, r'"5","A ""book"", ok","One.\nTwo, ""three""."', r'"1","","No title"')
    dataset = read("amazon_reviews", tmp_path)
    assert texts_of(dataset) == ['A "book", ok\nOne.\nTwo, "three".', "\nNo title"]
    assert dataset.test.labels.tolist() == [4, 0]
    assert dataset.class_names == ("1", "2", "3", "4", "5")


def test_the_two_label_schemes_are_two_sets(tmp_path: Path) -> None:
    written(tmp_path, "amazon_reviews", rows=20)
    with pytest.raises(DataError, match="amazon_reviews: ") as caught:
        read("amazon_reviews", tmp_path, source={"labels": "polarity"})
    assert "amazon_review_polarity_csv/train.csv" in caught.value.remedy
    written(tmp_path, "amazon_reviews", rows=20, classes=2)
    polarity = read("amazon_reviews", tmp_path, source={"labels": "polarity"})
    assert polarity.class_names == ("negative", "positive")
    assert np.bincount(polarity.train.labels).tolist() == [10, 10]
    assert np.bincount(read("amazon_reviews", tmp_path).train.labels).tolist() == [4] * 5
    stars, two = spec("amazon_reviews").source.declare(), spec("amazon_reviews", source={"labels": "polarity"}).source
    assert stars.rows == {"train": 3_000_000, "test": 650_000}
    assert two.declare().rows == {"train": 3_600_000, "test": 400_000}


def test_sentiment140_leaves_out_neutral_tweets_and_is_latin_1(tmp_path: Path) -> None:
    folder = tmp_path / "sentiment140"
    folder.mkdir()
    row = '"{}","1","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","me","{}"\n'
    train = row.format(0, "bad, caf\xe9") + row.format(4, 'so ""good""')
    test = row.format(4, "fine") + row.format(2, "a phone") + row.format(0, "a &quot;phone&quot;")
    (folder / "training.1600000.processed.noemoticon.csv").write_bytes(train.encode("latin-1"))
    (folder / "testdata.manual.2009.06.14.csv").write_bytes(test.encode("latin-1"))
    dataset = read("sentiment140", tmp_path)
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(["bad, café", 'so "good"']))
    assert dataset.train.labels.tolist() == [0, 1]
    assert texts_of(dataset) == ["fine", "a &quot;phone&quot;"]
    assert (dataset.test.labels.tolist(), dataset.test.row_ids.tolist()) == ([1, 0], [0, 1])


def test_ids_are_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "sst2", rows=20)
    first = load(spec("sst2"), seed=0, data_root=tmp_path, cache=tmp_path / "cache")
    monkeypatch.setattr(HashedNgrams, "encode", None)
    again = load(spec("sst2"), seed=0, data_root=tmp_path, cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.train.inputs, first.train.inputs)
    monkeypatch.undo()
    path = tmp_path / "sst2" / "SST-2" / "train.tsv"
    path.write_bytes(path.read_bytes().replace(b"sentence\tlabel\n", b"sentence\tlabel\nother words \t0\n"))
    other = load(spec("sst2"), seed=0, data_root=tmp_path, cache=tmp_path / "cache")
    np.testing.assert_array_equal(other.train.inputs[0], FEATURISER.encode(["other words"])[0])
    assert other.fingerprint != first.fingerprint


def test_the_first_pass_keeps_no_more_than_it_says() -> None:
    rows = [TextRow("a", "x"), TextRow("", "", "torn"), TextRow("b", "y"), TextRow("c", "x")]
    scan = scan_rows(iter(rows), with_texts=False)
    assert (list(scan.codes), scan.labels, scan.bad, scan.texts) == ([0, -1, 1, 0], ["x", "y"], {1: "torn"}, None)
    assert scan_rows(iter(rows), with_texts=True).texts == ["a", "", "b", "c"]


def test_strings_of_train_are_not_held(tmp_path: Path) -> None:
    folder = tmp_path / "sentiment140"
    folder.mkdir()
    # 5,000 rows of 1,000 signs: 5 MB as text, 160 kB as ids.
    rows = (f'"{4 * (row % 2)}","{row}","a date","NO_QUERY","me","{row:01000d}"\n' for row in range(5_000))
    (folder / "training.1600000.processed.noemoticon.csv").write_text("".join(rows))
    (folder / "testdata.manual.2009.06.14.csv").write_text('"0","1","a date","NO_QUERY","me","bad"\n')
    tracemalloc.start()
    try:
        dataset = read("sentiment140", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(dataset.train) == 5_000
    assert peak < 3_500_000


def test_labels_are_numbers_where_all_of_them_are() -> None:
    assert label_column(["10", "9", "-1"]).to_pylist() == [10, 9, -1]
    assert label_column(["10", "nine"]).to_pylist() == ["10", "nine"]
    assert label_column(["10"], label_column(["a"])).to_pylist() == ["10"]
    assert label_column(["9" * 30]).to_pylist() == ["9" * 30]


@pytest.mark.parametrize("kind", SETS)
def test_the_writers_texts_tell_their_class(tmp_path: Path, kind: str) -> None:
    contents = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        written(tmp_path / folder, kind, rows=20, seed=seed)
        contents.append([path.read_bytes() for path in sorted((tmp_path / folder).rglob("*")) if path.is_file()])
    assert contents[0] == contents[1] != contents[2]
    data = spec(kind, source={"features": {"buckets": 512, "length": 40, "ngrams": 1}})
    dataset = load(data, seed=0, data_root=written(tmp_path, kind, rows=400))
    # A rule that only counts in which class a word is commoner, and so can be no better than the texts.
    counts = np.zeros((len(dataset.class_names), 512))
    for ids, label in zip(dataset.train.inputs, dataset.train.labels, strict=True):
        np.add.at(counts[label], ids[ids > 0], 1)
    scores = np.log((counts + 1) / (counts + 1).sum(1, keepdims=True))
    scores[:, 0] = 0
    right = scores[:, dataset.test.inputs].sum(2).argmax(0) == dataset.test.labels
    assert 0.75 < right.mean() < 0.99


# What is refused


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"three\tcolumns\t1\n", r"train row 1 \(line 3 of .*train.tsv has 3 column\(s\), expected 2\)"),
        (b"\n", r"train row 1 \(line 3 of .*train.tsv has 1 column\(s\), expected 2\)"),
        (b"caf\xe9\t1\n", r"train row 1 \(text is not UTF-8\)"),
        (b"good\t2\n", r"train row 1 \(label is '2', which is none of the 2 classes\)"),
        (b"good\t-1\n", r"train row 1 \(label is '-1', which is none of the 2 classes\)"),
        (b"good\t\n", r"train row 1 \(label is '', which is none of the 2 classes\)"),
    ],
)
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path: Path, line: bytes, says: str) -> None:
    root = sst2(tmp_path, b"sentence\tlabel\nfine\t1\n" + line + b"dull\t0\n")
    with pytest.raises(DataError, match=f"sst2 .*: 1 unusable row.*{says}"):
        read("sst2", root)
    kept = read("sst2", root, bad_rows={"skip_at_most": 1})
    assert (kept.train.row_ids.tolist(), kept.train.labels.tolist()) == ([0, 2], [1, 0])
    np.testing.assert_array_equal(kept.train.inputs, FEATURISER.encode(["fine", "dull"]))


def test_another_header_is_another_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dev.tsv: the first line is b'index\\tsentence\\n', expected sentence and l"):
        read("sst2", sst2(tmp_path, b"sentence\tlabel\nfine\t1\n", b"index\tsentence\n0\tdull\n"))


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split test has no rows"):
        read("sst2", sst2(tmp_path, b"sentence\tlabel\nfine\t1\n", b"sentence\tlabel\n"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('"3","a title"', r"train row 1 \(line 2 of .*train.csv has 2 column\(s\), expected 3\)"),
        ('"6","a","b"', r"train row 1 \(label is '6', which is none of the 5 classes\)"),
        ('"3","open,', r"train row 1 \(line 2 of .*train.csv has 2 column\(s\), expected 3\)"),
        ('"3","a","' + "x" * 140_000 + '"', r"train.csv, line 2: field larger than field limit"),
    ],
)
def test_broken_csv_is_told_with_its_line(tmp_path: Path, row: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read("amazon_reviews", amazon(tmp_path, '"1","a","b"', row))


def test_a_byte_that_is_no_text_in_csv_is_a_bad_row(tmp_path: Path) -> None:
    amazon(tmp_path, '"1","a","b"', '"2","c","d"')
    path = tmp_path / "amazon_reviews" / "amazon_review_full_csv" / "train.csv"
    path.write_bytes(b'"1","a","b"\n"2","caf\xe9","d"\n')
    with pytest.raises(DataError, match=r"train row 1 \(text is not UTF-8\)"):
        read("amazon_reviews", tmp_path)


def test_a_byte_that_windows_does_not_know_is_a_bad_row(tmp_path: Path) -> None:
    written(tmp_path, "rotten_tomatoes", rows=40)
    path = tmp_path / "rotten_tomatoes" / "rt-polaritydata" / "rt-polarity.pos"
    path.write_bytes(b"odd \x81\n" + path.read_bytes())
    with pytest.raises(DataError, match=r"train row 1 \(text is not CP1252\)"):
        read("rotten_tomatoes", tmp_path)


def test_a_review_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    written(tmp_path, "imdb", rows=8)
    (tmp_path / "imdb" / "aclImdb" / "test" / "pos" / "1_8.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"test row 3 \(text is not UTF-8\)"):
        read("imdb", tmp_path)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_named(tmp_path: Path, kind: str, share: float) -> None:
    written(tmp_path, kind, rows=60)
    archive = packed(tmp_path, kind)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"{archive.name} .*(is damaged or cut short|holds no)"):
        read(kind, tmp_path)


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    root = sst2(tmp_path, b"")
    path = root / "sst2" / "SST-2" / "train.tsv"
    path.write_bytes(gzip.compress(os.urandom(64).hex().encode() * 100)[:-9])
    with pytest.raises(DataError, match=r"train.tsv .*is damaged or cut short"):
        read("sst2", root)


@pytest.mark.parametrize("kind", SETS)
def test_an_archive_of_something_else_holds_no_such_file(tmp_path: Path, kind: str) -> None:
    written(tmp_path, kind, rows=20)
    archive = packed(tmp_path, kind)
    with tarfile.open(archive, "w:gz") as pack:
        member = tarfile.TarInfo("readme.txt")
        member.size = 2
        pack.addfile(member, io.BytesIO(b"hi"))
    with pytest.raises(DataError, match=f"{archive.name} holds no "):
        read(kind, tmp_path)


def test_a_directory_without_reviews_is_named(tmp_path: Path) -> None:
    written(tmp_path, "imdb", rows=8)
    for path in (tmp_path / "imdb" / "aclImdb" / "test" / "neg").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="neg: no reviews"):
        read("imdb", tmp_path)


def test_another_number_of_rows_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, "imdb", rows=8)
    with caplog.at_level(logging.WARNING):
        read("imdb", tmp_path)
    assert "split train has 8 rows, the published set 25000" in caplog.text


# data check


def check(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["data", "check", *map(str, arguments), "--json"])
    return {"exit": result.exit_code, **json.loads(result.stdout)}


@pytest.mark.parametrize("kind", SETS)
def test_the_check_tells_files_archive_and_origin(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = check(kind, "--data-root", tmp_path)
    assert nothing["exit"] == 2
    assert [form["complete"] for form in nothing["formats"]] == [False] * 3
    assert [ARCHIVES[kind][0] in form["missing"][0] for form in nothing["formats"]] == [False, False, True]
    assert nothing["origin"].startswith("http")
    written(tmp_path, kind, rows=20)
    few = check(kind, "--data-root", tmp_path)
    assert few["exit"] == 2
    assert "the published set" in few["formats"][1]["problems"][0]
    rows = few["formats"][1]["rows"]
    monkeypatch.setattr(SETS[kind], "rows", rows)
    files = check(kind, "--data-root", tmp_path)
    assert (files["exit"], files["reads"]) == (0, files["formats"][1]["form"])
    packed(tmp_path, kind)
    archive = check(kind, "--data-root", tmp_path)
    assert (archive["exit"], archive["reads"]) == (0, f"the archive {ARCHIVES[kind][0]}")
    assert archive["formats"][2]["rows"] == rows


def test_the_check_takes_a_sets_options(tmp_path: Path) -> None:
    written(tmp_path, "amazon_reviews", rows=20, classes=2)
    found = check("amazon_reviews: {labels: polarity}", "--data-root", tmp_path)
    assert found["formats"][1]["problems"][0] == "train has 20 rows, the published set 3,600,000"
    assert check("amazon_reviews", "--data-root", tmp_path)["reads"] is None
    for words, says in (
        ("amazon_reviews: {label: stars}", "label"),
        ("text_csv: {path: x}", "'text_csv' reads data of y"),
    ):
        refused = CliRunner().invoke(main, ["data", "check", words, "--data-root", str(tmp_path)])
        assert refused.exit_code == 2
        assert says in refused.stderr


def test_the_check_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sst2(tmp_path, b"sentence\tlabel\nfine\t1\nbad\t7\nbroken\n")
    monkeypatch.setattr(HashedNgrams, "encode", None)
    problems = check("sst2", "--data-root", root)["formats"][1]["problems"]
    assert problems[0] == "train has 2 unusable row(s)"


# The published sets


@pytest.mark.data
def test_the_published_sentences_survive_the_signs_of_windows(tmp_path: Path) -> None:
    """The parquet set written back as its authors' files: the same splits, whatever the order in them."""
    if ROOT is None or not (Path(ROOT) / "rotten_tomatoes").is_dir():
        pytest.skip("needs EDGEFOLD_DATA to name a folder with rotten_tomatoes/")
    parquet = load(DataSpec.model_validate({"source": "rotten_tomatoes"}), seed=0, data_root=ROOT)
    folder = tmp_path / "rotten_tomatoes" / "rt-polaritydata"
    folder.mkdir(parents=True)
    parts: dict[int, list[str]] = {0: [], 1: []}
    for split in (parquet.train, parquet.validation, parquet.test):
        assert split.texts is not None
        for text, label in zip(split.texts, split.labels, strict=True):
            parts[int(label)].append(text)
    for label, name in enumerate(("neg", "pos")):
        assert len(parts[label]) == 5_331
        (folder / f"rt-polarity.{name}").write_bytes("".join(f"{text} \n" for text in parts[label]).encode("cp1252"))
    again = load(DataSpec.model_validate({"source": "rotten_tomatoes"}), seed=0, data_root=tmp_path)
    for split in ("train", "validation", "test"):
        before, after = getattr(parquet, split), getattr(again, split)
        assert np.bincount(after.labels).tolist() == np.bincount(before.labels).tolist()
        rows = [sorted(map(bytes, part.inputs)) for part in (before, after)]
        assert rows[0] == rows[1]
