"""Texts from parquet files: read as stored, made into ids once, refused where they are none."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from compress.datasets import DataSpec, declare, describe, fingerprint, load
from compress.datasets.text_folder import Features
from export.graph import InputSignature
from runtime.errors import DataError
from runtime.text import HashedNgrams

ROOT = os.environ.get("EDGEFOLD_DATA")

SMALL = {"buckets": 64, "length": 8}
FEATURISER = HashedNgrams(buckets=64, length=8)
TRAIN = [f"review {i} is {('dull', 'fine')[i % 2]}" for i in range(20)]
TEST = ["fine, fine!", "", "so dull"]
GLUE_COUNTS = {"sst2": ([29_780, 37_569], [428, 444]), "cola": ([2_528, 6_023], [322, 721])}


def spec(*, source: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    options = {"validation": 0, **options}
    return DataSpec.model_validate(
        {"source": {"text_parquet": {"path": "reviews", "features": SMALL, **(source or {})}}, **options}
    )


@pytest.fixture
def write_texts() -> Callable[..., Path]:
    def write(path: Path, texts: Any, labels: Any, names: tuple[str, ...] | None = None, column: str = "text") -> Path:
        table = pa.table({column: texts if isinstance(texts, pa.Array) else pa.array(texts), "label": pa.array(labels)})
        if names:
            features = {"label": {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=7)
        return path

    return write


@pytest.fixture
def root(tmp_path: Path, write_texts: Callable[..., Path]) -> Path:
    """A data root with `reviews`: 20 train rows in two shards, 3 test rows."""
    folder, names = tmp_path / "root" / "reviews", ("dull", "fine")
    write_texts(folder / "train-00000-of-00002.parquet", TRAIN[:12], [i % 2 for i in range(12)], names)
    write_texts(folder / "train-00001-of-00002.parquet", TRAIN[12:], [i % 2 for i in range(8)], names)
    write_texts(folder / "test-00000-of-00001.parquet", TEST, [1, 1, 0], names)
    return folder.parent


def rewritten(root: Path, write_texts: Callable[..., Path], texts: Any, labels: Any) -> Path:
    write_texts(root / "reviews" / "test-00000-of-00001.parquet", texts, labels)
    return root


# What is read


def test_rows_are_the_featurisers_with_the_texts_beside_them(root: Path) -> None:
    dataset = load(spec(), seed=0, data_root=root)
    assert (dataset.name, dataset.class_names, dataset.normalization) == ("reviews", ("dull", "fine"), None)
    assert dataset.signature == InputSignature.of_ids(8, 64)
    assert dataset.featuriser == FEATURISER
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(TRAIN))
    assert dataset.train.inputs.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.labels, np.arange(20) % 2)
    assert dataset.train.texts is not None
    assert dataset.train.texts.tolist() == TRAIN
    assert dataset.test.texts is not None
    assert dataset.test.texts.tolist() == TEST
    assert not dataset.test.inputs[1].any()  # an empty text is a text


def test_texts_follow_their_rows_through_view_and_holdout(root: Path) -> None:
    dataset = load(spec(validation=0.25, relabel={"groups": ((1,), (0,))}), seed=3, data_root=root)
    assert len(dataset.validation) == 5
    for split in (dataset.train, dataset.validation):
        assert split.texts is not None
        assert split.texts.tolist() == [TRAIN[row] for row in split.row_ids]
        assert split.labels.tolist() == [0 if "fine" in text else 1 for text in split.texts]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEST, pa.large_string()),
        pa.array(TEST).dictionary_encode(),
    ],
)
def test_every_way_of_storing_text_is_read(root: Path, write_texts: Callable[..., Path], column: pa.Array) -> None:
    dataset = load(spec(), seed=0, data_root=rewritten(root, write_texts, column, [1, 1, 0]))
    np.testing.assert_array_equal(dataset.test.inputs, FEATURISER.encode(TEST))


def test_other_columns_can_be_named(tmp_path: Path, write_texts: Callable[..., Path]) -> None:
    write_texts(tmp_path / "train-00000-of-00001.parquet", TRAIN, [i % 2 for i in range(20)], column="body")
    dataset = load(spec(source={"path": str(tmp_path), "text_column": "body"}), seed=0)
    assert (len(dataset.train), len(dataset.test)) == (16, 4)  # without test files a fifth of train
    with pytest.raises(DataError, match="no column 'boddy'; it has body, label") as caught:
        load(spec(source={"path": str(tmp_path), "text_column": "boddy"}), seed=0)
    assert "Did you mean 'body'?" in caught.value.remedy


def test_describe_sees_what_load_finds(root: Path) -> None:
    description, dataset = describe(spec(validation=0.1), root), load(spec(validation=0.1), seed=0, data_root=root)
    assert description.class_names == dataset.class_names
    assert (description.signature, description.normalization) == (dataset.signature, None)
    assert description.rows == {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}


def test_the_input_is_known_without_files() -> None:
    assert declare(spec()).signature == InputSignature.of_ids(8, 64)


# Rows that cannot be used


def test_bad_rows_are_named_or_dropped_within_the_budget(
    root: Path, write_texts: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    rewritten(root, write_texts, ["good", None, "no label", "bad", "beyond"], [1, 0, None, 0, 7])
    said = r"test row 1 \(text is null\), 2 \(label is null\), 4 \(label is 7, expected 0 to 1\)"
    with pytest.raises(DataError, match=f"3 unusable row.*{said}"):
        load(spec(), seed=0, data_root=root)
    with pytest.raises(DataError, match=r"3 unusable row.*2 allowed"):
        load(spec(bad_rows={"skip_at_most": 2}), seed=0, data_root=root)
    caplog.set_level(logging.WARNING)
    for cache in (None, root / "cache", root / "cache"):
        test = load(spec(bad_rows={"skip_at_most": 3}), seed=0, data_root=root, cache=cache).test
        assert test.row_ids.tolist() == [0, 3]
        assert test.texts is not None
        assert test.texts.tolist() == ["good", "bad"]
        np.testing.assert_array_equal(test.inputs, FEATURISER.encode(["good", "bad"]))
    assert "dropped 3 unusable row(s)" in caplog.text


def test_bytes_that_are_no_utf_8_are_a_bad_row(root: Path, write_texts: Callable[..., Path]) -> None:
    column = pa.array([b"caf\xc3\xa9", b"caf\xe9", None], pa.binary())
    forged = pa.Array.from_buffers(pa.string(), 3, column.buffers())  # as a careless writer leaves it
    rewritten(root, write_texts, forged, [1, 0, 0])
    with pytest.raises(DataError, match=r"test row 1 \(text is not UTF-8\), 2 \(text is null\)"):
        load(spec(), seed=0, data_root=root)
    assert load(spec(bad_rows={"skip_at_most": 2}), seed=0, data_root=root).test.texts == ["café"]


def test_a_column_of_numbers_is_refused(root: Path, write_texts: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="column 'text' is int64, expected text"):
        load(spec(), seed=0, data_root=rewritten(root, write_texts, [1, 2, 3], [1, 1, 0]))


# Cache and fingerprint


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row counts of the splits that were made into ids, in order."""
    calls: list[int] = []
    real = HashedNgrams.encode

    def counting(self: HashedNgrams, texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(HashedNgrams, "encode", counting)
    return calls


def test_texts_are_encoded_once_for_each_way_of_doing_it(root: Path, tmp_path: Path, encoded: list[int]) -> None:
    first, again = (load(spec(), seed=0, data_root=root, cache=tmp_path / "cache") for _ in range(2))
    assert encoded == [20, 3]
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert again.train.texts is not None
    assert again.train.texts.tolist() == TRAIN
    assert again.train.inputs.flags.writeable
    for change in ({"buckets": 32}, {"length": 4}, {"ngrams": 1}, {"lowercase": False}):
        features = Features(**{**SMALL, **change})
        other = load(spec(source={"features": {**SMALL, **change}}), seed=0, data_root=root, cache=tmp_path / "cache")
        assert encoded[-2:] == [20, 3]
        np.testing.assert_array_equal(other.train.inputs, features.featuriser().encode(TRAIN))


def test_a_damaged_entry_is_built_again(
    root: Path, tmp_path: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = load(spec(), seed=0, data_root=root, cache=tmp_path / "cache")
    for file in (tmp_path / "cache").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    again = load(spec(), seed=0, data_root=root, cache=tmp_path / "cache")
    assert encoded == [20, 3, 20, 3]
    assert caplog.text.count("are damaged and are built again") == 2
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)


def test_the_fingerprint_is_of_the_content_alone(root: Path, tmp_path: Path, write_texts: Callable[..., Path]) -> None:
    before = fingerprint(spec(), root)
    shutil.copytree(root / "reviews", tmp_path / "elsewhere" / "texts")
    assert fingerprint(spec(source={"path": "texts"}), tmp_path / "elsewhere") == before
    assert load(spec(), seed=0, data_root=root).fingerprint == before
    assert fingerprint(spec(), rewritten(root, write_texts, ["other"], [0])) != before


# What a recipe may not say


@pytest.mark.parametrize(
    ("options", "where", "says"),
    [
        ({"augment": ("flip",)}, ("augment",), "changes images, and the data is text"),
        ({"normalize": "unit"}, ("normalize",), "scales images, and the data is text"),
        ({"normalize": {"mean": (0.5,), "std": (0.5,)}}, ("normalize",), "scales images, and the data is text"),
        ({"source": {"sst2": {"features": {"buckets": 1}}}}, ("source", "sst2", "features", "buckets"), "2"),
        ({"source": {"cola": {"features": {"stem": True}}}}, ("source", "cola", "features", "stem"), "not permitted"),
        ({"source": {"sst2": {"features": {"length": "long"}}}}, ("source", "sst2", "features", "length"), "integer"),
        ({"source": {"text_parquet": {}}}, ("source", "text_parquet", "path"), "required"),
        ({"train_rows": 10_000}, ("train_rows",), "train has 8530 rows"),
    ],
)
def test_what_does_not_suit_text_stands_at_its_place(
    options: dict[str, Any], where: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        DataSpec.model_validate({"source": "rotten_tomatoes", **options})
    (error,) = caught.value.errors()
    assert error["loc"] == where
    assert says in error["msg"]


def test_what_is_written_out_for_all_data_is_no_problem() -> None:
    DataSpec.model_validate({"source": "sst2", "augment": (), "normalize": "dataset"})


@pytest.mark.parametrize(("kind", "column"), [("sst2", "sentence"), ("cola", "sentence"), ("rotten_tomatoes", "text")])
def test_a_missing_set_says_what_to_put_where(kind: str, column: str, tmp_path: Path) -> None:
    data = DataSpec.model_validate({"source": kind})
    for root in (None, tmp_path):
        with pytest.raises(DataError) as caught:
            load(data, seed=0, data_root=root)
        assert f"{kind}/train-00000-of-00001.parquet" in caught.value.remedy
        assert f"Columns: '{column}' (text) and 'label' (whole number, 0 to 1)" in caught.value.remedy


def test_files_of_another_set_are_refused(root: Path) -> None:
    (root / "reviews").rename(root / "sst2")
    with pytest.raises(
        DataError, match="is not sst2: its classes are dull, fine, expected negative, positive"
    ) as caught:
        load(DataSpec.model_validate({"source": "sst2"}), seed=0, data_root=root)
    assert "text_parquet" in caught.value.remedy


# The published sets


def published(kind: str) -> Any:
    if ROOT is None or not (Path(ROOT) / kind).is_dir():
        pytest.skip(f"needs EDGEFOLD_DATA to name a folder with {kind}/")
    return load(DataSpec.model_validate({"source": kind}), seed=0, data_root=ROOT)


@pytest.mark.data
@pytest.mark.parametrize("kind", GLUE_COUNTS)
def test_glue_sets_are_the_published_ones(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    dataset = published(kind)
    train, test = GLUE_COUNTS[kind]
    held = np.bincount(dataset.train.labels) + np.bincount(dataset.validation.labels)
    assert held.tolist() == train
    assert np.bincount(dataset.test.labels).tolist() == test
    assert dataset.train.inputs.any(1).all()
    assert not caplog.text


@pytest.mark.data
def test_rotten_tomatoes_is_the_published_set() -> None:
    dataset = published("rotten_tomatoes")
    for name, rows in (("train", 8_530), ("validation", 1_066), ("test", 1_066)):
        assert np.bincount(getattr(dataset, name).labels).tolist() == [rows // 2, rows // 2]
