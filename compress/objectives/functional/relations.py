"""Losses between the relations of a batch's examples: RKD, similarity preservation, correlation congruence, PKT.

Letters: N batch, D width of an embedding. Student and teacher need not have the same width, because N×N numbers are
compared (all but `consecutive` correlation). Teacher tensors are constants to every function here. A batch of one has
no relations; where the published mean over none is NaN, these losses are zero.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.directions import unit
from compress.objectives.functional.precision import at_least_float32

SimilarityRows = Literal["l2", "l1"]
CorrelationVariant = Literal["paper", "torchdistill", "repdistiller"]
CorrelationKernel = Literal["gaussian", "bilinear"]

# RKD's published code takes no distance of two examples as smaller: the root of 1e-12.
SMALLEST_DISTANCE = 1e-6


def relational(
    student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0, guard: bool = True
) -> Tensor:
    """Return distance · L_D + angle · L_A of embeddings (N, D): Park et al. 2019, "Relational knowledge distillation".

    L_D compares the distances of all pairs, each divided by its side's mean distance, L_A the cosines of the angles of
    all triplets, both with the Huber loss of width 1. The means run over all N² and N³ entries, also those of an
    example with itself, as the published code has it. For `guard` see `unit`; here the rows are differences, so it is
    about two equal embeddings.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    loss = 0.0 * student.sum()  # keeps the graph where there is nothing to compare
    if len(student) == 1:
        return loss
    if distance > 0:
        loss = loss + distance * F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
    if angle > 0:
        loss = loss + angle * F.smooth_l1_loss(_cosines(student, guard), _cosines(teacher, guard))
    return loss


def _relative_distances(x: Tensor) -> Tensor:
    """Return the distances (N, N) of rows (N, D), divided by their mean over pairs of two examples."""
    # From differences: |x|² + |y|² - 2 x·y has no digit left of the distance of close rows in float32.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(SMALLEST_DISTANCE)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    distances = distances.masked_fill(itself, 0.0)
    mean = distances.sum() / (len(x) * (len(x) - 1))
    return distances / mean


def _cosines(x: Tensor, guard: bool) -> Tensor:
    """Return the cosines (N, N, N) at the first example between the directions to the two others."""
    directions = unit(x[None] - x[:, None], 2, guard=guard)  # (N, N, D)
    return directions @ directions.transpose(1, 2)


def similarity_preserving(
    student: Tensor, teacher: Tensor, rows: SimilarityRows = "l2", *, guard: bool = True
) -> Tensor:
    """Return |G_t - G_s|²_F / N² of features (N, ...): equation 4 of Tung & Mori 2019 (similarity-preserving KD).

    G are the products (N, N) of the flattened features, each row divided by its norm: the L2 norm of the paper, or the
    L1 norm that torchdistill takes. For `guard` see `unit`.
    """
    own, taught = (
        unit(flat @ flat.T, 1, p=2.0 if rows == "l2" else 1.0, guard=guard)
        for flat in (at_least_float32(student).flatten(1), at_least_float32(teacher).flatten(1))
    )
    return (own - taught).square().mean()


def correlation_congruence(
    student: Tensor,
    teacher: Tensor,
    variant: CorrelationVariant = "paper",
    *,
    kernel: CorrelationKernel = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Return how far the correlations of embeddings (N, D) are apart: Peng et al. 2019 (CCKD).

    paper: |K_s - K_t|²_F / N². torchdistill: the norm, not squared, over N². K is the kernel's matrix (N, N): bilinear,
    x·y, or gaussian, the Taylor series of exp(-gamma |x - y|²) up to `order`, which is that of unit vectors:
    exp(-2 gamma) sum_p (2 gamma)^p / p! (x·y)^p. repdistiller: no kernel; of |f_s - f_t|, of one width on both sides,
    the products of consecutive examples, summed over D, mean over N - 1.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if variant == "repdistiller":
        apart = (student - teacher).abs()
        # Not .mean(): a batch of one has no consecutive examples.
        return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)
    own, taught = (_correlations(x, kernel, gamma, order) for x in (student, teacher))
    difference = own - taught
    # The norm's gradient at zero, which has no value, is zero in PyTorch.
    return difference.square().mean() if variant == "paper" else difference.norm() / len(student) ** 2


def _correlations(x: Tensor, kernel: CorrelationKernel, gamma: float, order: int) -> Tensor:
    products = x @ x.T
    if kernel == "bilinear":
        return products
    # Horner's scheme, without the constant p = 0: it is the same on both sides.
    series = torch.zeros_like(products)
    for p in range(order, 0, -1):
        series = products * (2 * gamma / p) * (1 + series)
    return math.exp(-2 * gamma) * series


def probabilistic_transfer(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the mean over all N² of p_t log(p_t / p_s) for embeddings (N, D): Passalis & Tefas 2018 (PKT).

    p are the cosine similarities of a batch, brought to [0, 1], each row divided by its sum. The
    mean instead of the sum, the similarity of an example with itself and `eps` are those of the published code.
    """
    own, taught = (_neighbours(at_least_float32(x), eps) for x in (student, teacher))
    return (taught * ((taught + eps) / (own + eps)).log()).mean()


def _neighbours(x: Tensor, eps: float) -> Tensor:
    # A row of zeros has no direction: it is similar to none and gets no gradient. The published code divides its
    # gradient by the root of zero.
    zero = (x == 0).all(1, keepdim=True)
    directions = (x / (x.masked_fill(zero, 1.0).norm(dim=1, keepdim=True) + eps)).masked_fill(zero, 0.0)
    # Rounding takes the cosine of opposite rows below -1, and the logarithm would then have no value.
    similarities = ((directions @ directions.T + 1) / 2).clamp_min(0)
    return similarities / similarities.sum(1, keepdim=True)
