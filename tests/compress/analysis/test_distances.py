"""Distances of student and teacher against scikit-learn, scipy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from sklearn.metrics import log_loss
from torch.nn import functional as F

from compress.analysis import distances
from compress.evaluate import agreement
from runtime.errors import TrainingError

Make = Callable[..., Any]


def logits(seed: int, rows: int, width: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (rows, width))


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (50, 4)])
def test_cross_entropy_is_scikit_learns_log_loss(outputs: Make, rows: int, classes: int) -> None:
    found = outputs(logits(0, rows, classes))
    labels = np.random.default_rng(1).integers(0, classes, rows)
    expected = log_loss(labels, found.class_probabilities, labels=range(classes))
    assert distances.cross_entropy(found, labels) == pytest.approx(expected)


def test_cross_entropy_and_probabilities_are_of_the_folded_classes(outputs: Make) -> None:
    z = np.log([[0.1, 0.2, 0.3, 0.4]])
    found = outputs(z, subclasses=2)
    np.testing.assert_allclose(found.class_probabilities, [[0.3, 0.7]])
    assert distances.cross_entropy(found, np.array([0])) == pytest.approx(-math.log(0.3))


def test_kl_divergence_is_scipys_relative_entropy_of_folded_classes(outputs: Make) -> None:
    teacher, student = outputs(logits(0, 30, 6), subclasses=3), outputs(logits(1, 30, 2))
    expected = rel_entr(teacher.class_probabilities, student.class_probabilities).sum(1).mean()
    assert distances.kl_divergence(teacher, student) == pytest.approx(expected)
    torchs = F.kl_div(
        torch.from_numpy(student.class_log_probabilities),
        torch.from_numpy(teacher.class_log_probabilities),
        reduction="batchmean",
        log_target=True,
    )
    assert distances.kl_divergence(teacher, student) == pytest.approx(float(torchs))
    assert distances.kl_divergence(teacher, teacher) == 0.0


def test_kl_divergence_stays_finite_where_probabilities_underflow(outputs: Make) -> None:
    teacher, student = outputs([[2000.0, 0.0]]), outputs([[0.0, 2000.0]])
    assert distances.kl_divergence(teacher, student) == pytest.approx(2000.0)


def test_agreement_is_that_of_the_result_table(outputs: Make) -> None:
    teacher, student = outputs(logits(0, 200, 6), subclasses=3), outputs(logits(1, 200, 2))
    expected = agreement(torch.from_numpy(student.logits), 1, torch.from_numpy(teacher.logits), 3)
    assert distances.agreement(teacher, student) == expected


def test_logits_are_compared_in_full_where_heads_are_equal_and_by_class_otherwise(outputs: Make) -> None:
    teacher, student = outputs([[0.0, 1, 2, 3]], subclasses=2), outputs([[0.0, 1, 2, 8]], subclasses=2)
    assert distances.logit_distances(teacher, student).tolist() == [5.0]
    plain = outputs([[1.0, 0.0]])
    folded = [math.log(1 + math.e), math.log(math.exp(2) + math.exp(3))]
    assert distances.logit_distances(teacher, plain)[0] == pytest.approx(math.hypot(folded[0] - 1, folded[1]))


def test_embedding_distances_by_hand(outputs: Make) -> None:
    z = np.zeros((2, 2))
    teacher, student = outputs(z, [[3.0, 4.0], [0.0, 2.0]]), outputs(z, [[0.0, 0.0], [1.0, 0.0]])
    assert distances.embedding_distance(teacher, student) == pytest.approx((5 + math.sqrt(5)) / 2)
    # The zero row stays zero, so that it is one away from a unit row; the others are at a right angle.
    assert distances.embedding_distance(teacher, student, normalised=True) == pytest.approx((1 + math.sqrt(2)) / 2)
    assert distances.embedding_distance(teacher, teacher, normalised=True) == 0.0


def test_embeddings_of_other_widths_are_refused(outputs: Make) -> None:
    with pytest.raises(ValueError, match="expected equal"):
        distances.embedding_distance(outputs([[0.0, 1]], [[1.0]]), outputs([[0.0, 1]], [[1.0, 2]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_refused(outputs: Make, bad: float) -> None:
    with pytest.raises(TrainingError, match="'student': logits of 1 of 2 rows are not finite"):
        outputs([[0.0, bad], [0.0, 1.0]])
    with pytest.raises(TrainingError, match="embedding of 2 of 2 rows are not finite"):
        outputs([[0.0, 1.0], [0.0, 1.0]], [[bad, 1.0], [bad, bad]])


def test_outputs_of_no_rows_are_refused(outputs: Make) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        outputs(np.zeros((0, 2)))
