"""Contrastive representation distillation against memories of all training rows (CRD).

Letters: N batch, n training rows, K negatives, D width of an embedding. Tian et al. 2020, "Contrastive Representation
Distillation", with the memory of Wu et al. 2018. Scores stay logarithms: exp(1 / tau) overflows float32 at tau 0.01.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.precision import at_least_float32


def unit_rows(x: Tensor) -> Tensor:
    """Return rows (N, D) divided by their length; a row of zeros, which has no direction, stays zero.

    Dividing by 1 there keeps value and gradient finite; published code gives NaN.
    """
    x = at_least_float32(x)
    squared = x.square().sum(dim=1, keepdim=True)
    return x / torch.where(squared > 0, squared, 1).sqrt()


def memory_scores(anchors: Tensor, memory: Tensor, index: Tensor, tau: float) -> Tensor:
    """Return v·m / tau (N, K + 1) of anchors (N, D) with the rows `index` (N, K + 1) of a memory (n, D).

    All N·n products and a gather: the memory's rows, gathered first, would be (N, K + 1, D) numbers.
    """
    return (anchors @ memory.T).gather(1, index) / tau


def log_partition(scores: Tensor, rows: int) -> Tensor:
    """Return log Z of the first batch's scores (N, K + 1): Z is the mean of their exponentials times n = `rows`."""
    return scores.detach().flatten().logsumexp(0) + math.log(rows / scores.numel())


def noise_contrast(scores: Tensor, log_z: Tensor, rows: int, eps: float = 1e-7) -> Tensor:
    """Return the contrastive loss of scores (N, K + 1), the positive first; n = `rows`; summed over K, mean over batch.

    With p = exp(score) / Z it is -log(p / (p + K/n)) for the positive and -log((K/n) / (p + K/n)) for each negative
    (Tian et al. 2020). eps, which published code adds to both denominators, is kept: it is part of that code's values.
    """
    negatives = scores.shape[1] - 1
    noise = math.log(negatives / rows)
    log_p = scores - log_z  # (N, K + 1)
    # log(p + K/n + eps): softplus of the difference, so that neither side can overflow.
    floor = math.log(negatives / rows + eps)
    log_total = floor + F.softplus(log_p - floor)
    positive = log_p[:, 0] - log_total[:, 0]
    negative = (noise - log_total[:, 1:]).sum(1)
    return -(positive + negative).mean()


def moved_memory(memory: Tensor, rows: Tensor, anchors: Tensor, momentum: float) -> Tensor:
    """Return a memory (n, D) whose `rows` (N,) went from their old value towards anchors (N, D), at length one.

    A new tensor, because the old one is part of the graph that the loss just made.
    """
    moved = unit_rows(momentum * memory[rows] + (1 - momentum) * anchors.detach().to(memory.dtype))
    return memory.index_copy(0, rows, moved)


def other_class_rows(
    labels: Tensor, order: Tensor, first: Tensor, count: Tensor, negatives: int, generator: torch.Generator
) -> Tensor:
    """Return positions (N, K) of training rows of other classes than `labels` (N,), drawn with replacement.

    order (n,): positions of all rows, sorted by class. first, count (C,): where each class's run begins in it and how
    long it is. Any class leaves at least one row of another.
    """
    own_first, own_count = first[labels, None], count[labels, None]  # (N, 1)
    share = torch.rand(len(labels), negatives, generator=generator, device=labels.device, dtype=torch.float64)
    drawn = (share * (len(order) - own_count)).long()  # a place among all rows but the own class's run
    return order[torch.where(drawn >= own_first, drawn + own_count, drawn)]
