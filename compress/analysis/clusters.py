"""Whether embeddings lie in groups that mean something: k-means, and normalised mutual information with labels.

The comparison of Yang et al. 2021 ("Knowledge distillation via softmax regression representation learning") and of the
relational losses before it.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

CLUSTERED_ROWS = 10_000  # k-means on more costs minutes and moves the figure in its third digit
RESTARTS = 4
SEED = 0


def sampled_rows(rows: int, most: int) -> NDArray[np.intp]:
    """Return the positions, ascending, of at most `most` of `rows`: the same for every model that is compared."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.RandomState(SEED).permutation(rows)[:most])


def kmeans_labels(embedding: Floats, clusters: int) -> Labels:
    """Return the cluster (N,) of each embedding (N, D): k-means++ with restarts, the same labels on every call.

    With fewer rows than clusters, each row is a cluster of its own.
    """
    # Here: scikit-learn takes a second to import.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    model = KMeans(min(clusters, len(embedding)), n_init=RESTARTS, random_state=SEED)
    with warnings.catch_warnings(), threadpool_limits(1):  # one thread: sums of several come in any order
        # Equal embeddings make fewer clusters than were asked for, which is what the figure should then say.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # What a float32 model gave is clustered as float32, in half the time.
        labels: Labels = model.fit_predict(_within_one(embedding).astype(np.float32)).astype(np.int64)
    return labels


def _within_one(embedding: Floats) -> Floats:
    """Return embeddings divided by a power of two, which loses no bit: squares of 1e19 would overflow float32."""
    largest = float(np.abs(embedding).max(initial=0.0))
    return np.ldexp(embedding, -int(np.frexp(largest)[1])) if largest > 0 else embedding


def mutual_information(first: Labels, second: Labels) -> float:
    """Return the normalised mutual information of two labellings (N,): 2 I(a; b) / (H(a) + H(b)), 0 to 1.

    1 where neither labelling tells any rows apart.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(first, second))
