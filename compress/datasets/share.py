"""A share of every split, class by class: what a scaled run sees of its data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compress.datasets.base import Split, Stored
from compress.datasets.holdout import TEST_SEED, holdout_size, stratified_holdout

# A class keeps so many rows, or all it has: with fewer, most objectives have nothing to work on.
LEAST_OF_A_CLASS = 2


def share_of(stored: Stored, share: float) -> Stored:
    """Return `share` of the rows of each split, of each class at least `LEAST_OF_A_CLASS`, in the order stored.

    Which rows they are hangs on nothing but their labels, so that all runs at one scale see the same.
    """
    return replace(stored, splits={name: _of_split(split, share) for name, split in stored.splits.items()})


def share_rows(rows: int, classes: int, share: float) -> int:
    """Return how many of `rows` are kept, where every class has equally many."""
    return min(rows, max(holdout_size(rows, share), LEAST_OF_A_CLASS * classes))


def _of_split(split: Split, share: float) -> Split:
    kept = np.zeros(len(split), dtype=bool)
    kept[stratified_holdout(split.labels, share, TEST_SEED)[1]] = True
    order = np.lexsort((~kept, split.labels))  # class by class, the drawn rows first
    _, starts, counts = np.unique(split.labels[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, counts)  # within its class
    kept[order[place < LEAST_OF_A_CLASS]] = True
    return split.take(np.flatnonzero(kept))
