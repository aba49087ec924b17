"""Losses between single features: FitNet hints, embeddings, and SRRL's terms with AdaIN; means over the batch.

Letters: N batch, D width of an embedding or channels of a map, H W positions of a map, C classes, S subclasses per
class. What the student gives has been through its connector. Teacher tensors are constants to every function here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.logits import cross_entropy, kl_divergence, soft_cross_entropy
from compress.objectives.functional.precision import at_least_float32
from export.fold import fold_logits

FitNetVariant = Literal["paper", "repdistiller"]
EmbeddingVariant = Literal["squared", "norm"]
SRRLReduction = Literal["paper", "code"]
SoftmaxRegression = Literal["l2", "ce", "kl", "label"]

# That of PyTorch's instance norm.
STATISTICS_EPS = 1e-5


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (N, channels, H, W) with the smaller height and the smaller width of both.

    The larger is averaged adaptively. A vector (N, width) counts as a map of one position, so it makes the other side
    its average over positions, also a vector.
    """
    if student.dim() == 2 or teacher.dim() == 2:
        return _vector(student), _vector(teacher)
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return _averaged(student, size), _averaged(teacher, size)


def _vector(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else at_least_float32(x).mean((2, 3))


def _averaged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(at_least_float32(x), size)


def fitnet(student: Tensor, teacher: Tensor, variant: FitNetVariant = "paper") -> Tensor:
    """Return the hint loss of a regressed student map and a teacher map of one shape (N, D, H, W) or (N, D).

    paper: half the squared distance, summed over a map (Romero et al. 2015, "FitNets", equation 3). repdistiller: the
    mean over all numbers, as that published code has it.
    """
    squared = _squared_difference(student, teacher)
    return 0.5 * squared.flatten(1).sum(1).mean() if variant == "paper" else squared.mean()


def embedding_distance(student: Tensor, teacher: Tensor, variant: EmbeddingVariant = "squared") -> Tensor:
    """Return the distance of embeddings (N, D), mean over the batch.

    squared: |a - W ã|² (Müller et al. 2020, equation 5). norm: |f_t - W f_s|, not squared (Loo et al., equation 2);
    where both are equal its gradient, which has no value there, is zero.
    """
    if variant == "squared":
        return _squared_difference(student, teacher).sum(1).mean()
    return (at_least_float32(student) - at_least_float32(teacher)).norm(dim=1).mean()


def srrl_feature_matching(student: Tensor, teacher: Tensor, reduction: SRRLReduction = "paper") -> Tensor:
    """Return |h_t - h_s|² of penultimate features (N, D): equation 3 of Yang et al. 2021 (SRRL).

    paper: summed over D, mean over the batch. code: the mean over both.
    """
    return _squares(_squared_difference(student, teacher), reduction)


def srrl_softmax_regression(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    bias: Tensor,
    form: SoftmaxRegression = "l2",
    *,
    reduction: SRRLReduction = "paper",
    tau: float = 1.0,
    labels: Tensor | None = None,
    subclasses: int = 1,
) -> Tensor:
    """Return how far h_s is from h_t, both (N, D), as the teacher's classifier sees them.

    weight (C*S, D) and bias (C*S,) are that frozen classifier; p and q are its softmax for h_t and h_s. Yang et al.
    2021 (SRRL):
    l2: |W h_t - W h_s|² (equation 7), summed over the logits; with `reduction: code` the mean over them.
    ce: -sum p log q at temperature tau, which is 1 in the paper (equations 4 and 5).
    kl: tau² KL(p ‖ q) at temperature tau (appendix A.2, which prints neither the factor nor which side is the first).
    label: -log of the probability q of the true class (appendix A.2), from `labels` (N,); subclass logits are folded.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    weight, bias = at_least_float32(weight), at_least_float32(bias)
    if form == "l2":
        # One product with the difference: the bias cancels, and close features keep their digits.
        return _squares(F.linear(student - teacher, weight).square(), reduction)
    regressed, taught = F.linear(student, weight, bias), F.linear(teacher, weight, bias)  # (N, C*S)
    return srrl_logits(regressed, taught, form, tau=tau, labels=labels, subclasses=subclasses)


def srrl_logits(
    regressed: Tensor,
    teacher: Tensor,
    form: SoftmaxRegression = "l2",
    *,
    reduction: SRRLReduction = "paper",
    tau: float = 1.0,
    labels: Tensor | None = None,
    subclasses: int = 1,
) -> Tensor:
    """Return how far logits (N, C*S) are apart, in the forms of `srrl_softmax_regression`.

    regressed: what the teacher's last layers make of the student's features. teacher: the teacher's own logits.
    """
    if form == "l2":
        return _squares(_squared_difference(regressed, teacher), reduction)
    if form == "label":
        if labels is None:
            raise ValueError("the form 'label' reads labels, and none came")
        return cross_entropy(fold_logits(at_least_float32(regressed), subclasses), labels)
    if form == "ce":
        return soft_cross_entropy(regressed, teacher, tau, rescale="none")
    return kl_divergence(regressed, teacher, tau)


def channel_statistics(x: Tensor, eps: float = STATISTICS_EPS) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (N, D) over the positions of a map (N, D, H, W); a vector (N, D) has one position.

    The deviation is that of the population, sqrt(variance + eps), as in instance norm: at one position, or where a
    channel is constant, it is sqrt(eps), with a gradient.
    """
    x = at_least_float32(x)
    variance, mean = torch.var_mean(x.flatten(2) if x.dim() > 2 else x[:, :, None], dim=2, correction=0)
    return mean, (variance + eps).sqrt()


def adaptive_instance_norm(teacher: Tensor, mean: Tensor, deviation: Tensor, eps: float = STATISTICS_EPS) -> Tensor:
    """Return the teacher's map with other statistics: deviation · (t - mean of t) / deviation of t + mean.

    teacher: (N, D, H, W) or (N, D). mean, deviation: (N, D), the student's `channel_statistics`. Huang & Belongie 2017
    (AdaIN), which Yang et al. 2020 ("Knowledge distillation via adaptive instance normalization") condition on the
    student. A channel of the teacher that is constant becomes the student's mean.
    """
    teacher = at_least_float32(teacher)
    per_position = (...,) + (None,) * (teacher.dim() - 2)
    own_mean, own_deviation = channel_statistics(teacher, eps)
    scale = deviation / own_deviation
    return (teacher - own_mean[per_position]) * scale[per_position] + mean[per_position]


def statistics_matching(student: Tensor, teacher: Tensor, reduction: SRRLReduction = "paper") -> Tensor:
    """Return the squared distance of two maps' `channel_statistics`: of their means, and of their deviations, added.

    student, teacher: (N, D, ...) with the same channels; the number of positions need not agree. paper: summed over D,
    mean over the batch. code: the mean over both. At one position it is `srrl_feature_matching`.
    """
    pairs = zip(channel_statistics(student), channel_statistics(teacher), strict=True)
    mean, deviation = (_squares(_squared_difference(own, taught), reduction) for own, taught in pairs)
    return mean + deviation


def _squares(squared: Tensor, reduction: SRRLReduction) -> Tensor:
    return squared.sum(1).mean() if reduction == "paper" else squared.mean()


def _squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    return (at_least_float32(student) - at_least_float32(teacher)).square()
