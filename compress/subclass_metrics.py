"""How much subclasses tell: entropies, effective label bits, accuracy under the best relabelling.

Müller et al. 2020 ("Subclass distillation"), section 4.1.1. All computed in float64; subclasses are class-major, as in
`export.fold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from torch import Tensor

Floats = NDArray[np.float64]


def effective_label_bits(accuracy: ArrayLike, subclasses: int) -> Floats:
    """Return the bits that a subclass of the best permutation tells about the true one, of accuracies P.

    log2 S + P log2 P + (1 - P) log2((1 - P) / (S - 1)), with 0 log 0 = 0: the capacity of a channel that is right with
    probability P and wrong in S - 1 equally likely ways. The formula is printed with a slip; this form gives the
    paper's own example, 0.94 bits at P = 0.73 and S = 5. S = 1 tells nothing: 0 bits.
    """
    p = np.asarray(accuracy, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"accuracies are {p.min():g} to {p.max():g}; expected 0 to 1")
    if subclasses < 1:
        raise ValueError(f"subclasses is {subclasses}; expected at least 1")
    if subclasses == 1:
        return np.zeros_like(p)
    noise = (entr(p) + entr(1 - p)) / np.log(2) + (1 - p) * np.log2(subclasses - 1)
    bits: Floats = np.log2(subclasses) - noise
    return bits


def utilisation_entropy_bits(logits: Tensor) -> float:
    """Return the entropy in bits of how often each subclass is the largest of (N, C*S) logits; log2(C*S) at most."""
    counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).double()
    return float(torch.special.entr(counts / counts.sum()).sum()) / np.log(2)


def prediction_entropy_bits(logits: Tensor) -> float:
    """Return the mean entropy in bits of softmax over (N, C*S) logits: low where each prediction is sure."""
    log_p = logits.double().log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean()) / np.log(2)


@dataclass(frozen=True)
class BestPermutation:
    """Accuracy under the best one-to-one relabelling of predicted subclasses.

    accuracy: over all labels. within_class: over relabellings that keep each subclass in its class. confusion:
    (C*S, labels) counts, row the predicted subclass and column the true label.
    """

    accuracy: float
    within_class: float
    confusion: NDArray[np.int64]


def best_permutation(predicted: ArrayLike, true: ArrayLike, *, classes: int, subclasses: int) -> BestPermutation:
    """Match predicted subclasses (N,) with true ones (N,), both 0 to C*S - 1, by the Hungarian method."""
    members = np.arange(classes * subclasses).reshape(classes, subclasses)
    return best_matching(predicted, true, members=members.tolist(), subclasses=subclasses)


def best_matching(
    predicted: ArrayLike, true: ArrayLike, *, members: Sequence[Sequence[int]], subclasses: int
) -> BestPermutation:
    """Match predicted subclasses (N,), 0 to C*S - 1, with true labels (N,) of which each class has its own number.

    members: the labels of each class, every label from 0 once. Each subclass is matched with one label at most, and
    each label with one subclass: where a class has fewer labels than S, the rows of its spare subclasses are wrong;
    where it has more, the rows of the labels that are left over.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    width, labels = len(members) * subclasses, sum(map(len, members))
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise ValueError(f"predicted is {predicted.shape} and true {true.shape}; expected both (N,), N at least 1")
    for name, values, count in (("predicted", predicted, width), ("true", true, labels)):
        if values.min() < 0 or values.max() >= count:
            raise ValueError(f"{name} is {values.min()} to {values.max()}; expected 0 to {count - 1}")
    confusion = np.bincount(predicted * labels + true, minlength=width * labels).reshape(width, labels)
    blocks = [confusion[c * subclasses : (c + 1) * subclasses, list(own)] for c, own in enumerate(members)]
    return BestPermutation(
        _matched(confusion) / len(true), sum(map(_matched, blocks)) / len(true), confusion.astype(np.int64)
    )


def _matched(confusion: NDArray[Any]) -> int:
    return int(confusion[linear_sum_assignment(confusion, maximize=True)].sum())
