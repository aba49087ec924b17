"""Losses between feature maps: attention transfer, NST, factor transfer, FSP; means over the batch.

Letters: N batch, H W positions of a map. Maps are (N, channels, H, W); student and teacher may differ in channels, but
for `factor_transfer` with flat factors and for `flow`. Maps of different size are averaged to the smaller one first
(`same_size`). Teacher tensors are constants to every function here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.directions import unit
from compress.objectives.functional.features import same_size
from compress.objectives.functional.precision import at_least_float32

AttentionVariant = Literal["paper", "code"]
FactorVariant = Literal["flat", "attention"]
FlowVariant = Literal["paper", "repdistiller", "torchdistill"]


def attention_transfer(
    student: Tensor, teacher: Tensor, variant: AttentionVariant = "paper", *, power: int = 2
) -> Tensor:
    """Return how far the attention maps of two maps are apart: Zagoruyko & Komodakis 2017, "Paying more attention".

    An attention map is the sum over channels of |activation|^power, flattened and divided by its L2 norm. paper: the
    L2 norm of the difference, not squared (equation 2, without beta / 2). code: the mean of the squared difference
    over positions.
    """
    own, taught = (_attention(x, power) for x in same_size(student, teacher))
    # The norm's gradient at zero, which has no value, is zero in PyTorch.
    return (own - taught).norm(dim=1).mean() if variant == "paper" else (own - taught).square().mean()


def _attention(x: Tensor, power: int) -> Tensor:
    """Return the attention (N, H*W) of a map, of norm 1."""
    # The mean over channels and not the sum: half-precision activations keep away from float32's ends.
    # A map of zeros needs no guard: the gradient of its powers is zero.
    return F.normalize(at_least_float32(x).abs().pow(power).mean(1).flatten(1), dim=1)


def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two maps' channels: Huang & Wang 2017, "Like what you like".

    A sample is one channel over positions, divided by its L2 norm; the kernel is (x·y)², the polynomial one of the
    paper's best results. Means run over all pairs of channels, one with itself too.
    """
    own, taught = (F.normalize(at_least_float32(x).flatten(2), dim=2) for x in same_size(student, teacher))
    return _kernel_mean(taught, taught) + _kernel_mean(own, own) - 2 * _kernel_mean(own, taught)


def _kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().mean()


def factor_transfer(
    student: Tensor, teacher: Tensor, variant: FactorVariant = "flat", *, p1: int = 2, p2: int = 1, guard: bool = True
) -> Tensor:
    """Return the mean of |f_s / |f_s| - f_t / |f_t||^p2 of factors (N, channels, H, W): Kim et al. 2018 (FT).

    The student's factor comes from its translator, the teacher's from its paraphraser. flat: a factor is taken as one
    vector, of one size on both sides, as in the paper. attention: as the mean over channels of its power p1,
    over positions, as RepDistiller has it. For `guard` see `unit`.
    """
    if variant == "flat":
        own, taught = (unit(at_least_float32(x).flatten(1), 1, guard=guard) for x in (student, teacher))
    else:
        own, taught = (_attention(x, p1) for x in same_size(student, teacher))
    return (own - taught).abs().pow(p2).mean()


def flow(students: Sequence[Tensor], teachers: Sequence[Tensor], variant: FlowVariant = "paper") -> Tensor:
    """Return how far the flows between consecutive maps are apart, summed: Yim et al. 2017, "A gift from KD" (FSP).

    students, teachers: as many maps on both sides, with pairwise the same channels. A flow is the matrix (N, channels,
    next map's channels) of products, mean over positions; the larger of the two maps is pooled to the smaller, so the
    sizes of student and teacher need not agree. paper: squared Frobenius norm of the difference (equation 2), maxima
    pooled. repdistiller: averages pooled, mean over the matrix. torchdistill: maxima pooled, the L2 norms of the
    columns of the difference, summed.
    """
    losses = []
    for own, taught in zip(pairwise(students), pairwise(teachers), strict=True):
        difference = _flow_matrix(*own, variant) - _flow_matrix(*taught, variant)
        if variant == "paper":
            losses.append(difference.square().sum((1, 2)).mean())
        elif variant == "repdistiller":
            losses.append(difference.square().mean())
        else:
            losses.append(difference.norm(dim=1).sum(1).mean())
    return sum(losses[1:], start=losses[0])


def _flow_matrix(first: Tensor, second: Tensor, variant: FlowVariant) -> Tensor:
    pool = F.adaptive_avg_pool2d if variant == "repdistiller" else F.adaptive_max_pool2d
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    first, second = (
        at_least_float32(x) if x.shape[2:] == size else pool(at_least_float32(x), size) for x in (first, second)
    )
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / (size[0] * size[1])
