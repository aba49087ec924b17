from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.datasets.holdout import holdout_size, stratified_holdout, with_test_rows


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    fraction=st.floats(0, 0.99),
    seed=st.integers(-(2**40), 2**70),
)
def test_a_holdout_is_exact_disjoint_and_stratified(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels, dtype=np.int64)
    kept, held = stratified_holdout(array, fraction, seed)
    assert len(held) == holdout_size(len(labels), fraction) == int(len(labels) * fraction + 0.5)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.all(np.diff(kept) > 0)
    assert np.all(np.diff(held) > 0)
    for label in set(labels):
        share = len(held) * labels.count(label) / len(labels)
        assert abs(np.sum(array[held] == label) - share) < 1


def test_the_largest_remainders_get_the_last_rows() -> None:
    # 3 of 10 rows; shares 1.5, 0.9, 0.6: floors 1, 0, 0, then labels 1 and 2 have the largest remainders.
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    _, held = stratified_holdout(labels, 0.3, 0)
    assert np.bincount(labels[held]).tolist() == [1, 1, 1]


def test_the_seed_decides_which_rows() -> None:
    labels = np.arange(300) % 3
    first, again, other = (stratified_holdout(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other
    # Seeds that agree in their low 32 bits are different seeds.
    assert stratified_holdout(labels, 0.2, 2**32)[1].tolist() != first


def test_another_process_draws_the_same_rows() -> None:
    labels = np.arange(50) % 4
    code = (
        "import numpy as np; from compress.datasets.holdout import stratified_holdout as s;"
        "print(s(np.arange(50) % 4, 0.2, 3)[1].tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(stratified_holdout(labels, 0.2, 3)[1].tolist())


def test_the_draw_is_frozen() -> None:
    # Written down once: a changed draw would move rows between train and validation of every recipe.
    assert stratified_holdout(np.arange(20) % 2, 0.2, 0)[1].tolist() == FROZEN


def test_row_counts_follow_the_cut() -> None:
    assert with_test_rows({"train": 1797}) == {"train": 1438, "test": 359}
    assert with_test_rows({"train": 10, "test": 3}) == {"train": 10, "test": 3}


FROZEN = [0, 4, 11, 19]
