from __future__ import annotations

import hashlib

import numpy as np
from sklearn.datasets import load_digits

from compress.datasets import DataSpec, declare, describe, fingerprint, load
from export.graph import InputSignature, Normalization

DIGITS = DataSpec.model_validate({"source": "digits"})


def test_pixels_and_labels_are_the_bundled_ones_at_their_row_ids() -> None:
    bundled, dataset = load_digits(), load(DIGITS, seed=0)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.inputs.dtype == np.uint8
        assert split.inputs.shape[1:] == (8, 8, 1)
        np.testing.assert_array_equal(split.inputs[..., 0], bundled.images[split.row_ids])
        np.testing.assert_array_equal(split.labels, bundled.target[split.row_ids])
        assert split.hidden is None
    assert dataset.signature == InputSignature(shape=(8, 8, 1))
    assert dataset.normalization == Normalization(1 / 16, (0.0,), (1.0,))


def test_every_row_is_in_one_split() -> None:
    dataset = load(DIGITS, seed=0)
    rows = np.concatenate([dataset.train.row_ids, dataset.validation.row_ids, dataset.test.row_ids])
    assert sorted(rows) == list(range(1797))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1294, 144, 359)


def test_test_stays_while_the_seed_moves_validation() -> None:
    first, second = load(DIGITS, seed=0), load(DIGITS, seed=1)
    np.testing.assert_array_equal(first.test.row_ids, second.test.row_ids)
    assert first.validation.row_ids.tolist() != second.validation.row_ids.tolist()


def test_test_is_written_down() -> None:
    # The rows of test, once and for all: figures of earlier runs were measured on them.
    rows = load(DIGITS, seed=0).test.row_ids
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == TEST_ROWS


def test_declaration_and_data_agree() -> None:
    declared, dataset = declare(DIGITS), load(DIGITS, seed=0)
    assert declared == describe(DIGITS)
    assert declared.class_names == dataset.class_names
    assert declared.normalization == dataset.normalization
    assert declared.rows == {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}
    assert fingerprint(DIGITS) == dataset.fingerprint


TEST_ROWS = "d7b4716e864dfcd1a8ad92e21063dd6de4148de2b8d0d178bb415e33d24fcd77"
