"""Subclasses by clustering each class of a teacher's embeddings: what LELP is compared with (Loo et al. 2024).

Every row gets one subclass in every class: in its own class that of its cluster, in the others that of the nearest
centroid, so that a teacher which gives a class some probability says where in that class it belongs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.manifold import TSNE

from runtime.errors import TrainingError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
# (embeddings (n, D), S, seed) -> the cluster of each row (n,), 0 to S - 1
Cluster = Callable[[Floats, int, int], Ints]

# Rows of a class that a method with quadratic cost clusters; the others join the nearest centroid.
SAMPLE = 5000
# t-SNE's perplexity must be below the number of rows, and its default is for a few hundred and more.
PERPLEXITY = 30.0


def kmeans(embeddings: Floats, subclasses: int, seed: int) -> Ints:
    """Lloyd's k-means, the best of ten starts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Number of distinct clusters")  # `_require_all` says it better
        found = KMeans(subclasses, n_init=10, random_state=seed).fit(embeddings)
    return np.asarray(found.labels_, dtype=np.int64)


def agglomerative(embeddings: Floats, subclasses: int, seed: int) -> Ints:
    """Ward's agglomerative clustering; draws nothing."""
    return np.asarray(AgglomerativeClustering(subclasses).fit_predict(embeddings), dtype=np.int64)


def tsne_kmeans(embeddings: Floats, subclasses: int, seed: int) -> Ints:
    """k-means of a two-dimensional t-SNE."""
    perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings)
    return kmeans(plane, subclasses, seed)


@dataclass(frozen=True)
class Method:
    """A way to cluster. sample: at most so many rows of a class, where its cost is quadratic."""

    cluster: Cluster
    sample: int | None = None


METHODS = {
    "kmeans": Method(kmeans),
    "agglomerative": Method(agglomerative, SAMPLE),
    "tsne_kmeans": Method(tsne_kmeans, SAMPLE),
}


def assign(embeddings: Floats, labels: Ints, *, classes: int, subclasses: int, method: Method, seed: int) -> Ints:
    """Return the subclass of each row in each class (N, C), 0 to S - 1.

    embeddings: (N, D), labels: (N,). Where the method takes a sample of a class, `seed` draws it. Raises TrainingError
    where a class has no S clusters.
    """
    draw = np.random.RandomState(seed)
    own = np.full(len(labels), -1, dtype=np.int64)
    for c in range(classes):
        rows = np.flatnonzero(labels == c)
        if method.sample is not None and len(rows) > method.sample:
            rows = np.sort(draw.permutation(rows)[: method.sample])
        if len(rows) < subclasses:
            raise TrainingError(
                f"{subclasses} subclasses need at least as many training rows of each class; class {c} has {len(rows)}"
            )
        own[rows] = method.cluster(embeddings[rows], subclasses, seed)
        _require_all(own[rows], subclasses, c)
    return _completed(embeddings, labels, own, classes, subclasses)


def by_stored_class(
    embeddings: Floats, labels: Ints, hidden: Ints, members: Sequence[Sequence[int]], subclasses: int
) -> Ints:
    """Return the subclass of each row in each class (N, C), where a class's subclasses are the stored ones it joins.

    hidden: (N,), the stored class; members: of each class, in the order of its subclasses.
    """
    place = np.full(1 + max(index for group in members for index in group), -1, dtype=np.int64)
    for group in members:
        place[list(group)] = np.arange(len(group))
    return _completed(embeddings, labels, place[hidden], len(members), subclasses)


def _completed(embeddings: Floats, labels: Ints, own: Ints, classes: int, subclasses: int) -> Ints:
    """Return (N, C): `own` (N,) in a row's own class where it is known, the nearest centroid's subclass elsewhere."""
    assigned = np.empty((len(labels), classes), dtype=np.int64)
    for c in range(classes):
        known = (labels == c) & (own >= 0)
        present, centroids = zip(*_centroids(embeddings[known], own[known], subclasses), strict=True)
        nearest = _nearest(embeddings, np.stack(centroids))
        assigned[:, c] = np.where(known, own, np.asarray(present, dtype=np.int64)[nearest])
    return assigned


def _centroids(embeddings: Floats, own: Ints, subclasses: int) -> Iterator[tuple[int, Floats]]:
    for s in range(subclasses):
        if (own == s).any():
            yield s, embeddings[own == s].mean(0, dtype=np.float64)


def _nearest(embeddings: Floats, centroids: Floats) -> Ints:
    """Return the nearest of centroids (k, D) to each of embeddings (N, D), as (N,)."""
    # About the middle of the centroids: squares of a mean that all share would cost the digits that tell them apart.
    middle = centroids.mean(0)
    x, means = embeddings - middle, centroids - middle
    return np.argmin((means**2).sum(1) - 2 * (x @ means.T), axis=1).astype(np.int64)


def _require_all(own: Ints, subclasses: int, label: int) -> None:
    found = len(np.unique(own))
    if found < subclasses:
        raise TrainingError(
            f"the embeddings of class {label} fall into {found} clusters, and there are {subclasses} subclasses",
            f"Set subclasses to {found} or fewer.",
        )
