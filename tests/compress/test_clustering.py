"""LELP's rivals: how a class's embeddings fall into subclasses."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from compress.clustering import METHODS, Floats, Ints, Method, assign, by_stored_class, kmeans
from runtime.errors import TrainingError

C, S, PER_BLOB = 2, 3, 25


def blobs(seed: int = 0, offset: float = 0.0) -> tuple[Floats, Ints, Ints]:
    """Return embeddings (N, D), labels and the blob of each (N,): S well separated blobs in each of C classes."""
    rng = np.random.default_rng(seed)
    centres = rng.permutation(np.eye(C * S, 8)) * 10
    blob = rng.permutation(np.repeat(np.arange(C * S), PER_BLOB))
    points = centres[blob] + 0.1 * rng.standard_normal((len(blob), 8)) + offset
    return points.astype(np.float32), blob // S, blob


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_blobs_that_are_far_apart(name: str) -> None:
    embeddings, labels, blob = blobs()
    assigned = assign(embeddings, labels, classes=C, subclasses=S, method=METHODS[name], seed=0)
    assert assigned.shape == (len(labels), C)
    for c in range(C):
        assert adjusted_rand_score(blob[labels == c], assigned[labels == c, c]) == 1.0


@pytest.mark.parametrize("offset", [0.0, 5000.0])
def test_a_row_joins_the_nearest_centroid_of_the_other_class(offset: float) -> None:
    embeddings, labels, _ = blobs(offset=offset)
    assigned = assign(embeddings, labels, classes=C, subclasses=S, method=METHODS["kmeans"], seed=0)
    for c in range(C):
        own = assigned[labels == c, c]
        points = embeddings[labels == c].astype(np.float64)
        centroids = np.stack([points[own == s].mean(0) for s in range(S)])
        distances = np.linalg.norm(embeddings[labels != c][:, None].astype(np.float64) - centroids, axis=2)
        np.testing.assert_array_equal(assigned[labels != c, c], distances.argmin(1))


def test_rows_outside_the_sample_join_the_nearest_centroid_of_their_class() -> None:
    embeddings, labels, blob = blobs()
    seen: list[int] = []

    def counted(points: Floats, subclasses: int, seed: int) -> Ints:
        seen.append(len(points))
        return kmeans(points, subclasses, seed)

    assigned = assign(embeddings, labels, classes=C, subclasses=S, method=Method(counted, 30), seed=0)
    assert seen == [30, 30]
    for c in range(C):
        assert adjusted_rand_score(blob[labels == c], assigned[labels == c, c]) == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_alone_decides(name: str) -> None:
    embeddings, labels, _ = blobs()
    first = assign(embeddings, labels, classes=C, subclasses=S, method=METHODS[name], seed=3)
    np.random.default_rng().random(5)
    again = assign(embeddings, labels, classes=C, subclasses=S, method=METHODS[name], seed=3)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", METHODS)
def test_too_few_rows_of_a_class_are_refused(name: str) -> None:
    embeddings, labels, _ = blobs()
    few = np.flatnonzero((labels == 0) | (np.cumsum(labels == 1) <= 2))
    with pytest.raises(TrainingError, match="class 1 has 2"):
        assign(embeddings[few], labels[few], classes=C, subclasses=S, method=METHODS[name], seed=0)


def test_fewer_different_embeddings_than_subclasses_are_refused() -> None:
    embeddings, labels, _ = blobs()
    embeddings[labels == 1] = 1.0
    embeddings[np.flatnonzero(labels == 1)[0]] = 2.0
    with pytest.raises(TrainingError, match="class 1 fall into 2 clusters, and there are 3 subclasses"):
        assign(embeddings, labels, classes=C, subclasses=S, method=METHODS["kmeans"], seed=0)


def test_stored_classes_are_subclasses_in_the_order_of_their_class() -> None:
    embeddings, labels, blob = blobs()
    hidden = np.array([7, 0, 3, 5, 2, 9])[blob]  # class 0 joins 7, 0 and 3; class 1 the others
    assigned = by_stored_class(embeddings, labels, hidden, [[0, 3, 7], [2, 5, 9]], S)
    expected = {0: 0, 3: 1, 7: 2, 2: 0, 5: 1, 9: 2}
    own = assigned[np.arange(len(labels)), labels]
    np.testing.assert_array_equal(own, [expected[one] for one in hidden.tolist()])


def test_a_class_of_fewer_stored_classes_than_subclasses_leaves_the_last_ones_empty() -> None:
    embeddings, labels, blob = blobs()
    assigned = by_stored_class(embeddings, labels, np.minimum(blob, 4), [[0, 1, 2], [3, 4]], S)
    assert set(assigned[:, 1].tolist()) == {0, 1}
