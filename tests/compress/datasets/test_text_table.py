"""Texts of one's own in CSV and JSON lines: columns by name, classes from the labels, damage by line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.datasets import Dataset, DataSpec, describe, fingerprint, load
from runtime.errors import DataError
from runtime.text import HashedNgrams

FEATURISER = HashedNgrams(buckets=64, length=8)


def spec(kind: str, *, source: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    features = {"buckets": FEATURISER.buckets, "length": FEATURISER.length}
    return DataSpec.model_validate(
        {"source": {kind: {"path": "own", "features": features, **(source or {})}}, "validation": 0, **options}
    )


def read(kind: str, root: Path, **options: Any) -> Dataset:
    return load(spec(kind, **options), seed=0, data_root=root)


def put(root: Path, name: str, content: str) -> Path:
    path = root / "own" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


def lines(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def test_csv_columns_are_found_by_name_and_classes_by_label(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", '\ufeffid,label,text\n1,ok,"two\nlines, ""quoted"""\n2,bad,no\n\n')
    put(tmp_path, "test.csv", "text,label\nyes,ok\n")
    dataset = read("text_csv", tmp_path)
    assert (dataset.name, dataset.class_names) == ("own", ("bad", "ok"))
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(['two\nlines, "quoted"', "no"]))
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([1, 0], [1])
    assert dataset.test.texts is not None
    assert dataset.test.texts.tolist() == ["yes"]
    assert describe(spec("text_csv"), tmp_path).rows == {"train": 2, "validation": 0, "test": 1}


def test_a_single_compressed_tsv_is_train_and_a_fifth_of_it_test(tmp_path: Path) -> None:
    rows = "".join(f"{row % 2}\tsentence {row}\n" for row in range(20))
    put(tmp_path, "reviews.tsv.gz", f"y\tbody\n{rows}")
    source = {"path": "own/reviews.tsv.gz", "text_column": "body", "label_column": "y", "delimiter": "\t"}
    dataset = read("text_csv", tmp_path, source=source)
    assert (dataset.name, dataset.class_names) == ("reviews", ("0", "1"))
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert describe(spec("text_csv", source=source), tmp_path).rows == {"train": 16, "validation": 0, "test": 4}


def test_labels_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", "text,label\na,10\nb,9\nc,-1\nd,9\ne,10\nf,9\n")
    with pytest.raises(DataError, match=r"train row 2 \(label is '?-1'?, which is none of the 2 classes\)"):
        read("text_csv", tmp_path)
    dataset = read("text_csv", tmp_path, bad_rows={"skip_at_most": 1})
    assert dataset.class_names == ("9", "10")


def test_named_classes_are_indices_or_the_labels_themselves(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", "text,label\na,1\nb,0\n")
    put(tmp_path, "test.csv", "text,label\nc,no\nd,yes\n")
    dataset = read("text_csv", tmp_path, source={"class_names": ("no", "yes")})
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([1, 0], [0, 1])


def test_json_lines_take_numbers_as_labels_and_leave_some_out(tmp_path: Path) -> None:
    reviews = [("good", 5.0), ("so so", 3.0), ("bad", 1.0), ("fine", 5.0)]
    rows = [{"asin": "B0", "reviewText": text, "overall": stars} for text, stars in reviews]
    put(tmp_path, "train.json.gz", lines(*rows) + "\n")
    put(tmp_path, "test.json", lines(*rows[:3]))
    source = {"text_column": "reviewText", "label_column": "overall", "left_out": ("3",)}
    dataset = read("text_jsonl", tmp_path, source=source)
    assert dataset.class_names == ("1", "5")
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([1, 0, 1], [1, 0])
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(["good", "bad", "fine"]))


def test_the_fingerprint_is_the_contents(tmp_path: Path) -> None:
    path = put(tmp_path, "train.csv", "text,label\na,1\nb,0\n")
    before = fingerprint(spec("text_csv"), tmp_path)
    assert before == fingerprint(spec("text_csv"), tmp_path)
    path.write_text("text,label\na,1\nc,0\n")
    assert fingerprint(spec("text_csv"), tmp_path) != before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "train.csv: no column 'text'; it has none"),
        ("txt,label\na,1\n", "train.csv: no column 'text'; it has txt, label\nDid you mean 'txt'"),
        ("text,text,label\na,b,1\n", "no column 'text'; it has text, text, label"),
        ("text,label\na,1\nb\n", r"train row 1 \(line 3 of .*train.csv has 1 column\(s\), expected 2\)"),
        ("text,label\na,1\nb,0,0\n", r"train row 1 \(line 3 of .*train.csv has 3 column\(s\), expected 2\)"),
    ],
)
def test_csv_that_does_not_fit_is_told(tmp_path: Path, content: str, says: str) -> None:
    put(tmp_path, "train.csv", content)
    with pytest.raises(DataError, match=says):
        read("text_csv", tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "line 2 of .*train.jsonl is no JSON: "),
        ("[1, 2]", "line 2 of .*train.jsonl is no JSON object"),
        ('{"text": "a", "stars": 1}', "line 2 of .*train.jsonl has no 'label', only text, stars"),
        ('{"text": null, "label": 1}', "line 2 of .*train.jsonl has no 'text'"),
        ('{"text": 7, "label": 1}', "line 2 of .*train.jsonl: 'text' is no text"),
        ('{"text": "\\ud800", "label": 1}', "text is not UTF-8"),
    ],
)
def test_a_line_that_is_no_row_is_told(tmp_path: Path, line: str, says: str) -> None:
    put(tmp_path, "train.jsonl", '{"text": "x", "label": 1}\n' + line + '\n{"text": "y", "label": 0}\n')
    with pytest.raises(DataError, match=rf"train row 1 \({says}"):
        read("text_jsonl", tmp_path)


def test_a_line_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "").write_bytes(b'{"text": "caf\xe9", "label": 1}\n')
    with pytest.raises(DataError, match=r"line 1 of .*train.jsonl is no JSON"):
        read("text_jsonl", tmp_path)


def test_what_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder does not exist") as caught:
        read("text_csv", tmp_path)
    assert f"{tmp_path}/own/train.csv\n  {tmp_path}/own/validation.csv   (optional)" in caught.value.remedy
    (tmp_path / "own").mkdir()
    with pytest.raises(DataError, match=r"text_jsonl needs train.jsonl or train.jsonl.gz or train.json"):
        read("text_jsonl", tmp_path)
    with pytest.raises(DataError, match=r"needs reviews.csv.gz, which is not there"):
        read("text_csv", tmp_path, source={"path": "own/reviews.csv.gz"})


@pytest.mark.parametrize("option", [{"delimiter": ""}, {"delimiter": ";;"}, {"class_names": ("one",)}])
def test_options_that_cannot_be_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec("text_csv", source=option)
