"""Losses between a regressed student map and a teacher map: VID, overhaul (OFD) and activation boundaries (AB).

Letters: N batch, D channels, H W positions of a map; vectors (N, D) are maps of one position. What the student gives
has been through its connector and has no ReLU behind it. Teacher tensors are constants to every function here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.precision import at_least_float32

VIDVariant = Literal["paper", "repdistiller"]
ABVariant = Literal["paper", "repdistiller"]

# Below this share of negative responses their mean is not estimated.
RARELY_NEGATIVE = 1e-3


def variational_information(
    mean: Tensor, log_scale: Tensor, teacher: Tensor, variant: VIDVariant = "paper", eps: float = 1e-5
) -> Tensor:
    """Return -log of a Gaussian at the teacher's map (N, D, H, W) or (N, D), without its constant.

    ½ ((t - mean)² / v + log v) with one variance a channel, v = log(1 + exp(log_scale)) + eps, log_scale (D,): Ahn et
    al. 2019 ("Variational Information Distillation"). paper: summed over a map, mean over the batch. repdistiller: the
    mean over all numbers, as that published code has it.
    """
    variance = by_channel(F.softplus(at_least_float32(log_scale)) + eps, mean)
    squared = (at_least_float32(teacher) - at_least_float32(mean)).square()
    share = 0.5 * (squared / variance + variance.log())
    return share.flatten(1).sum(1).mean() if variant == "paper" else share.mean()


def log_scale_of(variance: float, eps: float = 1e-5) -> float:
    """Return the `log_scale` at which `variational_information` has this variance."""
    return math.log(math.expm1(variance - eps))


def overhaul(student: Tensor, target: Tensor) -> Tensor:
    """Return the partial squared distance of maps (N, D, H, W) or (N, D), summed over a map, mean over the batch.

    `target` is the teacher's map through `margin_relu`. Where it is not positive only its sign matters, so a student
    at or below it costs nothing: the partial L2 distance of Heo et al. 2019 ("A Comprehensive Overhaul of Feature
    Distillation").
    """
    student, target = at_least_float32(student), at_least_float32(target)
    squared = (student - target).square()
    # Said of what is free, not of what costs: a NaN compares as False, and has to show in the loss.
    return torch.where((student <= target) & (target <= 0), 0, squared).flatten(1).sum(1).mean()


def margin_relu(teacher: Tensor, margin: Tensor, rectified: Tensor | bool = False) -> Tensor:
    """Return max(t, margin) of a map before its ReLU, one negative margin (D,) a channel (Heo et al. 2019).

    rectified: the map comes from behind its ReLU. A zero then stands for a negative response of unknown size and
    becomes the margin, which is the mean of those.
    """
    teacher = at_least_float32(teacher)
    margin = by_channel(margin.to(teacher.dtype), teacher)
    return torch.where((teacher <= 0) & rectified, margin, teacher.maximum(margin))


def normal_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the mean of the negative responses of a batch norm with this weight (D,) and bias (D,).

    E[x | x < 0] of x ~ N(b, w²) is b - |w| φ(b/|w|) / Φ(-b/|w|) (Heo et al. 2019). Where a response is rarely
    negative, Φ <= 0.001, it is -3 |w|, as in the published code.
    """
    # float64: a few numbers a channel, once, and near the limit Φ keeps few digits in float32.
    scale, offset = weight.double().abs(), bias.double()
    z = offset / scale.clamp_min(torch.finfo(torch.float64).tiny)  # A weight of 0 gives ±Inf, or 0 for a bias of 0.
    share = torch.special.ndtr(-z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    margin = offset - scale * density / share.clamp_min(RARELY_NEGATIVE)
    return torch.where(share <= RARELY_NEGATIVE, -3 * scale, margin).to(at_least_float32(weight).dtype)


def response_sums(responses: Tensor) -> Tensor:
    """Return what `measured_margin` adds up over batches of maps (N, D, H, W) or (N, D): (5, D), float64.

    How many there are, how many negative ones, the sum of those, the sum of all and of their squares.
    """
    x = responses.double().movedim(1, -1).flatten(0, -2)  # (M, D)
    negative = x.clamp_max(0)
    return torch.stack([torch.ones_like(x).sum(0), (x < 0).double().sum(0), negative.sum(0), x.sum(0), (x * x).sum(0)])


def measured_margin(sums: Tensor) -> Tensor:
    """Return the mean (D,) of the negative responses from their `response_sums`; -3 deviations where they are rare."""
    count, negatives, negative_sum, total, squares = sums
    deviation = (squares / count - (total / count).square()).clamp_min(0).sqrt()
    return torch.where(negatives <= RARELY_NEGATIVE * count, -3 * deviation, negative_sum / negatives.clamp_min(1))


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Return how far the student is from the teacher's side of zero, for maps (N, D, H, W) or (N, D).

    relu(margin - s)² where t > 0 and relu(margin + s)² where t <= 0, summed over a map, mean over the batch: Heo et al.
    2019 ("Knowledge Transfer via Distillation of Activation Boundaries"). Only the signs of the teacher count, so its
    map may stand before or after its ReLU.
    """
    student = at_least_float32(student)
    side = torch.where(teacher > 0, -1.0, 1.0).to(student.dtype)
    return F.relu(margin + side * student).square().flatten(1).sum(1).mean()


def activation_boundaries(
    compared: Sequence[tuple[Tensor, Tensor]], margin: float = 1.0, variant: ABVariant = "paper"
) -> Tensor:
    """Return the sum of `activation_boundary` over layers, pairs of (student, teacher) from shallow to deep.

    paper: with equal weights. repdistiller: with weights 2^(i - L + 1) of layer i of L, and 3/1000 of all, as that
    published code has it after the authors' own for CIFAR-10.
    """
    losses = [activation_boundary(student, teacher, margin) for student, teacher in compared]
    return 3e-3 * halved_sum(losses) if variant == "repdistiller" else sum(losses[1:], start=losses[0])


def halved_sum(losses: Sequence[Tensor]) -> Tensor:
    """Return the sum of losses from shallow to deep, each with half the weight of the next; the last counts whole."""
    total = losses[0]
    for loss in losses[1:]:
        total = 0.5 * total + loss
    return total


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Return values (D,) in a shape that meets the channels of a map (N, D, H, W) or vector (N, D)."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
