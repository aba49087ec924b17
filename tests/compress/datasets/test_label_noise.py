from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from compress.datasets import DataSpec, declare, load
from compress.datasets.label_noise import LabelNoise


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("share", [0.01, 0.4, 1.0])
def test_the_share_of_wrong_labels_is_exact_and_evenly_spread(classes: int, share: float) -> None:
    labels = np.arange(20_000) % classes
    noisy = LabelNoise(symmetric=share).apply(labels, classes)
    wrong = noisy != labels
    assert wrong.sum() == round(20_000 * share)
    assert noisy.min() >= 0
    assert noisy.max() < classes
    shifts = np.bincount((noisy - labels)[wrong] % classes, minlength=classes)[1:]
    expected = wrong.sum() / (classes - 1)
    # Five standard deviations of a binomial count.
    assert np.abs(shifts - expected).max() <= 5 * np.sqrt(expected)


def test_the_labels_given_are_left_as_they_are() -> None:
    labels = np.zeros(50, dtype=np.int64)
    LabelNoise(symmetric=1.0).apply(labels, 3)
    assert not labels.any()


def test_its_seed_alone_decides() -> None:
    labels = np.arange(400) % 4
    first = LabelNoise(symmetric=0.5, seed=1).apply(labels, 4)
    np.testing.assert_array_equal(LabelNoise(symmetric=0.5, seed=1).apply(labels, 4), first)
    assert (LabelNoise(symmetric=0.5, seed=2).apply(labels, 4) != first).any()


def test_a_view_has_noise_in_training_rows_only_and_the_stored_classes_stay() -> None:
    options = {"source": "digits", "relabel": {"modulo": 2}}
    clean = load(DataSpec.model_validate(options), seed=0)
    noisy = load(DataSpec.model_validate({**options, "label_noise": {"symmetric": 0.25}}), seed=0)
    assert (noisy.train.labels != clean.train.labels).sum() == round(0.25 * len(clean.train))
    np.testing.assert_array_equal(noisy.validation.labels, clean.validation.labels)
    np.testing.assert_array_equal(noisy.test.labels, clean.test.labels)
    assert noisy.train.hidden is not None
    np.testing.assert_array_equal(noisy.train.hidden, clean.train.hidden)


@pytest.mark.parametrize("share", [0.0, 1.1, -0.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValidationError):
        LabelNoise(symmetric=share)


# A fraction of the training data


def test_a_fraction_of_train_is_stratified_and_declared() -> None:
    spec = DataSpec.model_validate({"source": "digits", "train_fraction": 0.25, "validation": 0.2})
    whole = load(DataSpec.model_validate({"source": "digits", "validation": 0}), seed=3)
    part = load(spec, seed=3)
    rows = declare(spec).rows
    assert rows is not None
    assert (len(part.train), len(part.validation)) == (rows["train"], rows["validation"])
    kept = np.concatenate([part.train.labels, part.validation.labels])
    assert len(kept) == round(0.25 * len(whole.train))
    assert np.abs(np.bincount(kept) - 0.25 * np.bincount(whole.train.labels)).max() < 1
    assert set(part.train.row_ids) | set(part.validation.row_ids) < set(whole.train.row_ids)


def test_the_seed_chooses_the_fraction() -> None:
    spec = DataSpec.model_validate({"source": "digits", "train_fraction": 0.5, "validation": 0})
    first, again, other = (load(spec, seed=seed).train.row_ids for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
