"""Embeddings in two dimensions: t-SNE, and the plane through three class templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.analysis.clusters import SEED, sampled_rows

Floats = NDArray[np.float64]

ROWS = 1000  # points that a plot can still show, and t-SNE place in seconds
PERPLEXITY = 30.0
LEAST_ROWS = 5
ITERATIONS = 500  # twice as many lower the loss by one to four percent and move no group
DIGITS = 3


class ProjectionError(ValueError):
    """There is no such plot of these embeddings; the message says why."""


def tsne(embedding: Floats) -> Floats:
    """Return t-SNE coordinates (N, 2) of embeddings (N, D) (van der Maaten & Hinton 2008), seeded.

    Perplexity 30, or a third of the rows where there are fewer. Raises ProjectionError for fewer than five rows and for
    embeddings that are all equal.
    """
    # Here: scikit-learn takes a second to import.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(embedding) < LEAST_ROWS:
        raise ProjectionError(f"t-SNE needs {LEAST_ROWS} rows; there are {len(embedding)}")
    if not np.ptp(embedding, axis=0).any():
        raise ProjectionError("all embeddings are equal")
    # The first principal components as a start keep the groups' large-scale order; a single column has no second one.
    start = "pca" if embedding.shape[1] > 1 else "random"
    perplexity = min(PERPLEXITY, (len(embedding) - 1) / 3)
    model = TSNE(perplexity=perplexity, init=start, learning_rate="auto", max_iter=ITERATIONS, random_state=SEED)
    with threadpool_limits(1):  # sums of several threads come in any order
        coordinates: Floats = model.fit_transform(embedding).astype(np.float64)
    return coordinates


def template_plane(templates: Floats, embedding: Floats) -> Floats:
    """Return coordinates (N, 2) of embeddings (N, D) on the plane through three templates (3, D).

    The templates are rows of the classifier's weight; the basis is Gram-Schmidt on their differences (Müller, Kornblith
    & Hinton 2019, "When does label smoothing help?", section 2). With two templates (2, D) the second direction is the
    first principal one of what the first leaves of the embeddings. Raises ProjectionError where they span no plane.
    """
    first = _unit(templates[1] - templates[0])
    if len(templates) == 2:
        rest = embedding - embedding.mean(0)
        rest = rest - np.outer(rest @ first, first)
        second = np.linalg.svd(rest, full_matrices=False)[2][0] if np.abs(rest).max() > 1e-9 else np.zeros_like(first)
        second = second * np.sign(second[np.abs(second).argmax()])  # an SVD may give either sign
    else:
        second = templates[2] - templates[0]
    basis = np.stack([first, _unit(second - (second @ first) * first)])
    coordinates: Floats = embedding @ basis.T
    return coordinates


def _unit(direction: Floats) -> Floats:
    norm = float(np.linalg.norm(direction))
    if norm < 1e-9:
        raise ProjectionError("the templates span no plane")
    unit: Floats = direction / norm
    return unit


@dataclass(frozen=True)
class Corners:
    """The two or three classes (or subclasses) whose templates span the plane, and the rows (n,) that belong to them.

    index: the templates' rows of the classifier's weight. of_row: which of the corners each row is, (n,).
    """

    index: tuple[int, ...]
    rows: NDArray[np.intp]
    of_row: NDArray[np.int64]


def corners(logits: Floats, labels: NDArray[np.int64], subclasses: int) -> Corners:
    """Choose the plane of subclass logits (N, C*S): the first three classes that have rows, by their label.

    With subclasses, the three that are the largest logit of most rows, by that.
    """
    group = labels if subclasses == 1 else logits.argmax(1)
    counts = np.bincount(group, minlength=logits.shape[1])
    order = np.argsort(-counts if subclasses > 1 else counts == 0, kind="stable")
    chosen = np.sort([index for index in order[:3] if counts[index]])
    rows = np.flatnonzero(np.isin(group, chosen))
    rows = rows[sampled_rows(len(rows), ROWS)]
    return Corners(tuple(chosen.tolist()), rows, np.searchsorted(chosen, group[rows]))


def project(
    logits: Floats,
    embedding: Floats,
    weight: Floats,
    *,
    labels: NDArray[np.int64],
    hidden: NDArray[np.int64] | None,
    subclasses: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return both plots' points, or the reason why there are none, as plain data.

    weight: the classifier's (C*S, D). names: of its C*S rows. labels, hidden: (N,).
    """
    return {
        "tsne": _points(lambda: _tsne_points(embedding, labels, hidden)),
        "plane": _points(lambda: _plane_points(logits, embedding, weight, labels, subclasses, names)),
    }


def _points(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        found = make()
    except ProjectionError as reason:
        return {"points": None, "reason": str(reason)}
    return {**found, "points": np.round(found["points"], DIGITS).tolist()}


def _tsne_points(embedding: Floats, labels: NDArray[np.int64], hidden: NDArray[np.int64] | None) -> dict[str, Any]:
    rows = sampled_rows(len(embedding), ROWS)
    return {
        "points": tsne(embedding[rows]),
        "classes": labels[rows].tolist(),
        "hidden": None if hidden is None else hidden[rows].tolist(),
    }


def _plane_points(
    logits: Floats,
    embedding: Floats,
    weight: Floats,
    labels: NDArray[np.int64],
    subclasses: int,
    names: Sequence[str],
) -> dict[str, Any]:
    if embedding.shape[1] < 2:
        raise ProjectionError("the embedding has one dimension")
    found = corners(logits, labels, subclasses)
    if len(found.index) < 2:
        raise ProjectionError(f"all rows are of one {'class' if subclasses == 1 else 'subclass'}")
    return {
        "points": template_plane(weight[list(found.index)], embedding[found.rows]),
        "corners": [names[index] for index in found.index],
        "of_row": found.of_row.tolist(),
    }
