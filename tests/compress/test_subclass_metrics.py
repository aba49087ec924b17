from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from compress.subclass_metrics import (
    best_matching,
    best_permutation,
    effective_label_bits,
    prediction_entropy_bits,
    utilisation_entropy_bits,
)


@pytest.mark.parametrize(
    ("accuracy", "subclasses", "bits"),
    [
        (0.73, 5, 0.94),  # the paper's example
        (1.0, 5, math.log2(5)),
        (1.0, 2, 1.0),
        (0.0, 2, 1.0),  # always wrong of two is always right
        (0.2, 5, 0.0),  # chance
        (0.5, 2, 0.0),
        (0.0, 5, math.log2(5) - math.log2(4)),
        (0.3, 1, 0.0),
    ],
)
def test_effective_label_bits(accuracy: float, subclasses: int, bits: float) -> None:
    assert float(effective_label_bits(accuracy, subclasses)) == pytest.approx(
        bits, abs=0.005 if bits == 0.94 else 1e-12
    )


def test_effective_label_bits_of_many() -> None:
    assert effective_label_bits([0.2, 1.0], 5).tolist() == pytest.approx([0.0, math.log2(5)], abs=1e-12)


@pytest.mark.parametrize(("accuracy", "subclasses"), [(1.1, 5), (-0.1, 5), (math.nan, 5), (0.5, 0)])
def test_effective_label_bits_refuses_what_is_no_accuracy(accuracy: float, subclasses: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        effective_label_bits(accuracy, subclasses)


def test_utilisation_counts_the_largest_logits() -> None:
    logits = torch.tensor([[9.0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]])
    assert utilisation_entropy_bits(logits) == pytest.approx(1.5)
    assert utilisation_entropy_bits(logits[:2]) == 0.0
    assert utilisation_entropy_bits(torch.eye(8)) == pytest.approx(3.0)


def test_prediction_entropy_is_that_of_the_probabilities() -> None:
    assert prediction_entropy_bits(torch.zeros(3, 8)) == pytest.approx(3.0)
    assert prediction_entropy_bits(torch.tensor([[0.5, 0.25, 0.25]]).log()) == pytest.approx(1.5)
    assert prediction_entropy_bits(torch.tensor([[200.0, -200.0, 0.0]])) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("classes", "subclasses"), [(1, 2), (2, 2), (3, 2), (2, 3)])
def test_best_permutation_is_the_best_of_all(classes: int, subclasses: int) -> None:
    rng = np.random.default_rng(classes * 10 + subclasses)
    width = classes * subclasses
    predicted, true = rng.integers(0, width, (2, 50))
    best = best_permutation(predicted, true, classes=classes, subclasses=subclasses)
    everywhere = max((np.array(order)[predicted] == true).mean() for order in itertools.permutations(range(width)))
    inside = max(
        (np.concatenate([c * subclasses + np.array(p) for c, p in enumerate(orders)])[predicted] == true).mean()
        for orders in itertools.product(itertools.permutations(range(subclasses)), repeat=classes)
    )
    assert (best.accuracy, best.within_class) == pytest.approx((everywhere, inside))
    assert (best.confusion == confusion_matrix(predicted, true, labels=range(width))).all()


def test_labels_of_another_class_count_only_globally() -> None:
    best = best_permutation([2, 3, 0, 1], [0, 1, 2, 3], classes=2, subclasses=2)
    assert (best.accuracy, best.within_class) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("members", "subclasses"), [(((0, 1, 2), (3,)), 2), (((2, 0), (1, 3)), 1), (((1,), (0,)), 3), (((3, 1), (0, 2)), 2)]
)
def test_best_matching_of_unequal_numbers_is_the_best_of_all(
    members: tuple[tuple[int, ...], ...], subclasses: int
) -> None:
    rng = np.random.default_rng(subclasses)
    labels, width = sum(map(len, members)), len(members) * subclasses
    true, predicted = rng.integers(0, labels, 60), rng.integers(0, width, 60)
    best = best_matching(predicted, true, members=members, subclasses=subclasses)
    # Every way to give each subclass a label of its own, or none where labels have run out.
    names = [*range(labels), *[-1] * width]
    ways = set(itertools.permutations(names, width))
    assert best.accuracy == pytest.approx(max((np.array(way)[predicted] == true).mean() for way in ways))
    inside = [
        way for way in ways
        if all(way[c * subclasses + s] in (*members[c], -1) for c in range(len(members)) for s in range(subclasses))
    ]  # fmt: skip
    assert best.within_class == pytest.approx(max((np.array(way)[predicted] == true).mean() for way in inside))
    assert best.confusion.shape == (width, labels)


@pytest.mark.parametrize(("predicted", "true"), [([], []), ([0], [0, 1]), ([4], [0]), ([0], [-1])])
def test_best_permutation_refuses_what_are_no_subclasses(predicted: list[int], true: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        best_permutation(np.array(predicted, int), np.array(true, int), classes=2, subclasses=2)
