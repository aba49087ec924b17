from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.datasets import DataSpec, fingerprint, load
from export.graph import Normalization
from runtime.errors import DataError, RecipeError


def spec(source: Any = "digits", **options: Any) -> DataSpec:
    return DataSpec.model_validate({"source": source, **options})


PETS = {"parquet": {"path": "pets"}}
HALVES = {"groups": ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))}


def test_a_view_relabels_and_keeps_the_original_as_hidden() -> None:
    plain, view = load(spec(), seed=0), load(spec(relabel=HALVES), seed=0)
    assert view.class_names == ("0/1/2/3/4", "5/6/7/8/9")
    assert view.hidden_names == plain.class_names
    assert plain.hidden_names is None
    for split in (view.train, view.validation, view.test):
        assert split.hidden is not None
        np.testing.assert_array_equal(split.labels, split.hidden >= 5)
    np.testing.assert_array_equal(view.test.hidden, plain.test.labels)


def test_modulo_view() -> None:
    view = load(spec(relabel={"modulo": 3}), seed=0)
    assert view.test.hidden is not None
    np.testing.assert_array_equal(view.test.labels, view.test.hidden % 3)
    assert view.classes == 3


@pytest.mark.parametrize("relabel", [None, HALVES, {"modulo": 3}])
def test_validation_is_stratified_by_the_view_s_label(relabel: Any) -> None:
    dataset = load(spec(relabel=relabel, validation=0.25), seed=3)
    everything = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert len(dataset.validation) == round(0.25 * len(everything))
    shares = np.bincount(everything) * len(dataset.validation) / len(everything)
    assert np.all(np.abs(np.bincount(dataset.validation.labels) - shares) < 1)
    assert not set(dataset.train.row_ids) & set(dataset.validation.row_ids)


def test_train_rows_are_the_first_before_validation_is_cut(pets: Path) -> None:
    dataset = load(spec(PETS, train_rows=20, validation=0.2), seed=0, data_root=pets)
    assert (len(dataset.train), len(dataset.validation)) == (16, 4)
    assert sorted([*dataset.train.row_ids, *dataset.validation.row_ids]) == list(range(20))
    assert len(dataset.test) == 6


def test_the_seed_moves_validation_and_nothing_else(pets: Path) -> None:
    one, again, other = (load(spec(PETS, validation=0.4), seed=seed, data_root=pets) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.validation.row_ids, again.validation.row_ids)
    assert one.validation.row_ids.tolist() != other.validation.row_ids.tolist()
    np.testing.assert_array_equal(one.test.inputs, other.test.inputs)
    assert one.fingerprint == other.fingerprint


def test_another_process_sees_the_same_data() -> None:
    code = (
        "import json; from compress.datasets import DataSpec, load;"
        "d = load(DataSpec(source='digits'), seed=5);"
        "print(json.dumps([d.fingerprint, d.train.row_ids.tolist(), d.validation.row_ids.tolist()]))"
    )
    there = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    here = load(spec(), seed=5)
    assert there == [here.fingerprint, here.train.row_ids.tolist(), here.validation.row_ids.tolist()]


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("dataset", Normalization(1 / 16, (0.0,), (1.0,))),
        ("unit", Normalization(1 / 16, (0.0,), (1.0,))),
        ({"mean": (0.3,), "std": (0.4,)}, Normalization(1 / 16, (0.3,), (0.4,))),
    ],
)
def test_normalization_is_the_recipe_s_choice(normalize: Any, expected: Normalization) -> None:
    assert load(spec(normalize=normalize), seed=0).normalization == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"relabel": {"groups": ((0,), (1,))}}, "class 2 is in no group"),
        ({"relabel": {"groups": ((0, 1), (2, 3))}}, "class 3 is not there"),
        ({"relabel": {"modulo": 4}}, "modulo is 4"),
        ({"train_rows": 31}, "data.train_rows is 31, but train of pets has 30 rows"),
        ({"train_rows": 1, "validation": 0.9}, "leaves none of 1 rows to train on"),
        ({"normalize": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}, "has 3 channel.*the images have 1"),
        ({"augment": ({"translate": {"pixels": 5}},)}, "all of a 6x5 image"),
    ],
)
def test_a_recipe_that_does_not_fit_the_files_is_refused(pets: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load(spec(PETS, **options), seed=0, data_root=pets)
    assert caught.value.remedy


def test_a_class_without_training_rows_is_mentioned(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(spec(PETS, train_rows=2, validation=0), seed=0, data_root=pets)
    assert "pets: no training rows for 1 class(es): owl" in caplog.text


def test_the_root_is_the_argument_then_the_recipe_then_the_environment(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    right, wrong = str(pets), str(tmp_path / "wrong")
    with pytest.raises(DataError):
        fingerprint(spec(PETS))
    monkeypatch.setenv("EDGEFOLD_DATA", right)
    found = fingerprint(spec(PETS))
    monkeypatch.setenv("EDGEFOLD_DATA", wrong)
    assert fingerprint(spec(PETS, root=right)) == found
    assert fingerprint(spec(PETS, root=wrong), right) == found
    with pytest.raises(DataError, match="wrong/pets"):
        fingerprint(spec(PETS, root=right), wrong)
