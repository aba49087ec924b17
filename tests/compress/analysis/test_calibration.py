"""Calibration against scikit-learn's curve and hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from compress.analysis.calibration import BINS, brier_score, reliability


def drawn(rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(10 * rows + classes)
    p = rng.dirichlet(np.full(classes, 0.5), rows)
    return p, np.array([rng.choice(classes, p=row) for row in p])


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 3), (500, 2), (2000, 10)])
def test_bins_and_errors_are_those_of_scikit_learns_calibration_curve(rows: int, classes: int) -> None:
    p, labels = drawn(rows, classes)
    bins = reliability(p, labels)
    right = p.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, p.max(1), n_bins=BINS, strategy="uniform", pos_label=1)
    used = bins.counts > 0
    np.testing.assert_allclose(bins.accuracy[used], accuracy)
    np.testing.assert_allclose(bins.confidence[used], confidence)
    counts = np.histogram(p.max(1), np.linspace(0, 1, BINS + 1))[0]  # no drawn value lies on an edge
    assert bins.counts.tolist() == counts.tolist()
    gaps = np.abs(accuracy - confidence)
    assert bins.expected_error == pytest.approx((gaps * counts[counts > 0]).sum() / rows)
    assert bins.maximum_error == pytest.approx(gaps.max())


def test_errors_by_hand() -> None:
    # Two rows at 0.9, one right: gap 0.4. Two at 0.6, both right: gap 0.4. One at 0.75, wrong: gap 0.75.
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.25, 0.75]])
    bins = reliability(p, np.array([0, 1, 0, 0, 0]))
    assert bins.expected_error == pytest.approx((2 * 0.4 + 2 * 0.4 + 0.75) / 5)
    assert bins.maximum_error == pytest.approx(0.75)
    assert brier_score(p, np.array([0, 1, 0, 0, 0])) == pytest.approx((0.02 + 1.62 + 2 * 0.32 + 1.125) / 5)


def test_a_probability_of_exactly_one_is_in_the_last_bin() -> None:
    bins = reliability(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    assert bins.counts.tolist() == [0] * (BINS - 1) + [2]
    assert (bins.expected_error, bins.maximum_error) == (0.5, 0.5)


def test_a_bin_holds_its_upper_edge_and_not_its_lower() -> None:
    p = np.array([[0.75, 0.25], [0.7500001, 0.2499999], [0.5, 0.5]])
    assert reliability(p, np.zeros(3, int), bins=4).counts.tolist() == [0, 1, 1, 1]


def test_a_model_that_predicts_one_class_only() -> None:
    p = np.tile([0.8, 0.1, 0.1], (10, 1))
    bins = reliability(p, np.array([0] * 8 + [1, 2]))
    assert bins.expected_error == pytest.approx(0, abs=1e-12)
    assert (bins.counts > 0).sum() == 1


def test_the_brier_score_of_two_classes_is_twice_scikit_learns() -> None:
    p, labels = drawn(200, 2)
    assert brier_score(p, labels) == pytest.approx(2 * brier_score_loss(labels, p[:, 1]))


def test_the_brier_score_of_many_classes() -> None:
    p, labels = drawn(200, 5)
    assert brier_score(p, labels) == pytest.approx(np.mean(((p - np.eye(5)[labels]) ** 2).sum(1)))
    assert brier_score(np.eye(3), np.array([1, 2, 0])) == 2.0


@pytest.mark.parametrize(
    "p", [[[math.nan, 0.5]], [[0.5, 0.6]], [[1.5, -0.5]], [[math.inf, 0.0]], [0.5, 0.5], np.zeros((0, 2))]
)
def test_what_are_no_probabilities_is_refused(p: list[list[float]]) -> None:
    for measure in (reliability, brier_score):
        with pytest.raises(ValueError, match="probabilities are"):
            measure(np.array(p), np.zeros(len(p) if np.ndim(p) == 2 else 1, int))  # type: ignore[operator]
