"""The data folder that EDGEFOLD_DATA names, against the published figures."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from compress.datasets import Dataset, DataSpec, load

ROOT = os.environ.get("EDGEFOLD_DATA")

MNIST_TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
FIRST_MNIST_TEST_LABELS = [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # test keeps the official order

pytestmark = pytest.mark.data


def read(kind: str, cache: Path | None = None) -> Dataset:
    if ROOT is None or not (Path(ROOT) / kind).is_dir():
        pytest.skip(f"needs EDGEFOLD_DATA to name a folder with {kind}/")
    return load(DataSpec.model_validate({"source": kind, "validation": 0}), seed=0, data_root=ROOT, cache=cache)


def test_mnist_is_the_published_set(tmp_path: Path) -> None:
    start = time.perf_counter()
    dataset = read("mnist", tmp_path)
    decoded_s = time.perf_counter() - start
    assert np.bincount(dataset.train.labels).tolist() == MNIST_TRAIN_COUNTS
    assert dataset.test.labels[:10].tolist() == FIRST_MNIST_TEST_LABELS
    assert dataset.train.inputs.shape == (60_000, 28, 28, 1)
    assert dataset.test.inputs.shape == (10_000, 28, 28, 1)
    pixels = dataset.train.inputs.astype(np.float64) / 255
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (0.1307, 0.3081)
    assert decoded_s < 60  # about 3 s on two idle cores; far more would be one image at a time
    again = read("mnist", tmp_path)
    np.testing.assert_array_equal(again.train.inputs, dataset.train.inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "per_class"), [("cifar10", 1000), ("cifar100", 100)])
def test_cifar_has_the_declared_statistics(kind: str, per_class: int) -> None:
    dataset = read(kind)
    assert set(np.bincount(dataset.test.labels)) == {per_class}
    assert set(np.bincount(dataset.train.labels)) == {5 * per_class}
    pixels = dataset.train.inputs.reshape(-1, 3) / np.float32(255)
    # Train is stored as JPEG, a little off the original pixels that the statistics are of.
    np.testing.assert_allclose(pixels.mean(0, dtype=np.float64), dataset.normalization.mean, atol=2e-3)
    np.testing.assert_allclose(pixels.std(0, dtype=np.float64), dataset.normalization.std, atol=4e-3)
