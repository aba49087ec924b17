"""k-means clusters and their mutual information with labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from compress.analysis.clusters import kmeans_labels, mutual_information, sampled_rows


def entropy(labels: np.ndarray) -> float:
    shares = np.unique(labels, return_counts=True, axis=0)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def test_mutual_information_is_that_of_the_counts() -> None:
    a, b = np.random.default_rng(0).integers(0, 4, (2, 300))
    b[:150] = a[:150]
    both = entropy(np.stack([a, b], 1))
    expected = 2 * (entropy(a) + entropy(b) - both) / (entropy(a) + entropy(b))
    assert mutual_information(a, b) == pytest.approx(expected)
    assert mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b))


def test_mutual_information_by_hand() -> None:
    # H(a) = log 2, H(b) = 1.5 log 2, H(a, b) = 1.5 log 2: b tells a, and half a bit more.
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])) == pytest.approx(2 * 1 / 2.5)
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 3])) == pytest.approx(1.0)
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0, abs=1e-12)


def test_mutual_information_where_nothing_is_told_apart() -> None:
    assert mutual_information(np.array([2]), np.array([0])) == 1.0
    assert mutual_information(np.array([0, 1, 0]), np.array([0, 0, 0])) == 0.0


def test_separate_groups_are_found_whatever_their_names() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    embedding = 20 * np.eye(5)[labels] + rng.normal(size=(200, 5))
    found = kmeans_labels(embedding, 5)
    assert adjusted_rand_score(labels, found) == 1.0
    assert kmeans_labels(embedding, 5).tolist() == found.tolist()


@pytest.mark.parametrize(("rows", "clusters"), [(1, 2), (3, 10), (5, 1)])
def test_fewer_rows_than_clusters(rows: int, clusters: int) -> None:
    found = kmeans_labels(np.arange(rows, dtype=float)[:, None] ** 2, clusters)
    assert len(set(found.tolist())) == min(rows, clusters)


def test_equal_embeddings_are_one_cluster() -> None:
    found = kmeans_labels(np.ones((20, 3)), 4)
    assert set(found.tolist()) == {0}
    assert mutual_information(np.arange(20) % 4, found) == 0.0


def test_sampled_rows_are_few_ascending_and_always_the_same() -> None:
    assert sampled_rows(5, 5).tolist() == [0, 1, 2, 3, 4]
    rows = sampled_rows(1000, 100)
    assert len(set(rows.tolist())) == 100
    assert rows.tolist() == sorted(rows.tolist()) == sampled_rows(1000, 100).tolist()
    assert rows.max() > 900  # not the first hundred
    assert math.isclose(rows.mean(), 500, abs_tol=150)


@pytest.mark.parametrize("scale", [2.0**70, 2.0**-70, 1.0])
def test_clusters_are_the_same_at_any_scale(scale: float) -> None:
    draw = np.random.default_rng(0)
    embedding = np.concatenate([draw.normal(centre, 1.0, (20, 3)) for centre in (-4.0, 0.0, 4.0)]) * 1e-3
    expected = kmeans_labels(embedding, 3)
    assert len(set(expected.tolist())) == 3
    np.testing.assert_array_equal(kmeans_labels(embedding * scale, 3), expected)
