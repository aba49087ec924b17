"""Stratified holdouts: which rows leave a split, by label and seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from compress.datasets.base import Int64Array, Split

log = logging.getLogger(__name__)

# Keeps these draws apart from those that other parts make from the same seed.
STREAM = 0x5B1F_0D01
# Seed and share of the test split that a source without one gets; constants, so that test never moves with a
# recipe.
TEST_SEED = 1797
TEST_FRACTION = 0.2


def holdout_size(rows: int, fraction: float) -> int:
    """Return `fraction` of `rows`, rounded to the nearest row, a half up."""
    return int(rows * fraction + 0.5)


def stratified_holdout(
    labels: Int64Array, fraction: float, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the positions (kept, held out) of `labels` (N,), both ascending.

    `holdout_size` rows are held out, of each class its share to within one row (largest remainder; ties go to
    the lower label), drawn by `seed`.
    """
    total = holdout_size(len(labels), fraction)
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # RandomState and not Generator: its stream is frozen, so a split stays the same under every numpy.
    draw = np.random.RandomState([STREAM, seed & 0xFFFF_FFFF, (seed >> 32) & 0xFFFF_FFFF])
    held = np.zeros(len(labels), dtype=bool)
    for index, quota in zip(range(len(classes)), _quotas(counts, total), strict=True):
        members = np.flatnonzero(inverse == index)
        held[draw.permutation(members)[:quota]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def with_test(splits: Mapping[str, Split], where: str) -> dict[str, Split]:
    """Return the splits with a test split: the stored one, else a fixed, stratified fifth of train."""
    if "test" in splits:
        return dict(splits)
    log.info("%s has no test split: a fixed, stratified fifth of train is test", where)
    train, test = stratified_holdout(splits["train"].labels, TEST_FRACTION, TEST_SEED)
    return {**splits, "train": splits["train"].take(train), "test": splits["train"].take(test)}


def with_test_rows(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the row counts that `with_test` leaves of these."""
    if "test" in rows:
        return dict(rows)
    test = holdout_size(rows["train"], TEST_FRACTION)
    return {**rows, "train": rows["train"] - test, "test": test}


def _quotas(counts: npt.NDArray[np.intp], total: int) -> list[int]:
    # In integers: floats could make the sum miss `total`.
    rows = int(counts.sum())
    shares = [divmod(total * int(count), rows) for count in counts]
    quotas = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(counts)), key=lambda index: -shares[index][1])
    for index in by_remainder[: total - sum(quotas)]:
        quotas[index] += 1
    return quotas
