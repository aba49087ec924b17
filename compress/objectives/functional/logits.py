"""The objectives' mathematics: pure functions of tensors, each the mean over the batch.

Letters as in the design: N batch, C classes, S subclasses per class, tau temperature. Teacher tensors are constants
to every function here; callers hand them over without a graph. Half-precision input is computed in float32.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from compress.objectives.functional.precision import at_least_float32
from export.fold import by_class

Rescale = Literal["tau2", "max", "none"]

# Softened logits differ by about 1/tau, and the divergence by 1/tau²: float32 keeps four digits of it up to about here,
FLOAT32_TAU = 16.0
# float64 up to about here, and beyond that the limit is exact to better than 1e-5 of itself.
FLOAT64_TAU = 1e7


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of class logits (N, C) with labels (N,).

    With `smoothing` b the target is 1 - b on the true class and b / (C - 1) on each other one, as the papers print it
    (PyTorch's own option spreads b / C over all classes, the true one included).
    """
    logits = at_least_float32(logits)
    if smoothing == 0.0:
        return F.cross_entropy(logits, labels)
    log_p = F.log_softmax(logits, dim=1)  # (N, C)
    true = log_p.gather(1, labels[:, None]).squeeze(1)  # (N,)
    others = (log_p.sum(1) - true) / max(log_p.shape[1] - 1, 1)
    return -((1 - smoothing) * true + smoothing * others).mean()


def kl_divergence(student: Tensor, teacher: Tensor, tau: float, rescale: Rescale = "tau2") -> Tensor:
    """Return factor · KL(softmax(teacher / tau) ‖ softmax(student / tau)) of logits (N, K).

    The factor is tau² (Hinton et al. 2015), max(tau, tau²) (Kim et al. 2021, equation 7) or 1. At tau = infinity, where
    tau² KL has a limit, that limit: half the population variance over classes of student - teacher (Kim et al. 2021,
    the antiderivative of its gradient); with "none" it is zero.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if tau > FLOAT64_TAU:
        limit = 0.5 * (student - teacher).var(dim=1, correction=0).mean()
        return limit * (1.0 if rescale != "none" else tau**-2)
    result_type = student.dtype
    if tau > FLOAT32_TAU:
        student, teacher = student.double(), teacher.double()
    divergence: Tensor = _SoftenedKL.apply(student / tau, teacher / tau)
    return (_factor(tau, rescale) * divergence).to(result_type)


class _SoftenedKL(torch.autograd.Function):
    """KL(softmax(teacher) ‖ softmax(student)) of logits (N, K), mean over the batch; once differentiable, by student.

    The value is the sum of p log(p/q) + q - p. The added q - p sums to zero over K and makes every share
    non-negative; without it the shares of nearly equal distributions cancel to noise of either sign, far larger than
    the divergence itself. The gradient is written down, (q - p) / N, because the many small operations of the value
    would otherwise cost a small student as much as its own step.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)  # (N, K)
        p, q = log_p.exp(), log_q.exp()
        ctx.save_for_backward(p, q)
        ratio = log_p - log_q
        shares = torch.where(ratio.abs() < 1, p * (ratio + torch.expm1(-ratio)), p * ratio + (q - p))
        return shares.sum(1).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, q = ctx.saved_tensors
        return (q - p) * (gradient / len(p)), None


def soft_cross_entropy(student: Tensor, teacher: Tensor, tau: float, rescale: Rescale = "tau2") -> Tensor:
    """Return -factor · sum of softmax(teacher / tau) · log softmax(student / tau) for logits (N, K).

    Equation 3 of Müller et al. 2020 ("Subclass distillation"). It has the gradient of `kl_divergence` and is larger
    by the entropy of the teacher. `tau` is finite: the entropy times tau² has no limit.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    result_type = student.dtype
    if tau > FLOAT32_TAU:
        student, teacher = student.double(), teacher.double()
    p = F.softmax(teacher / tau, dim=1)
    loss = -(p * F.log_softmax(student / tau, dim=1)).sum(1).mean()
    return (_factor(tau, rescale) * loss).to(result_type)


def logit_mse(student: Tensor, teacher: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return the squared distance of logits (N, K), mean over the batch.

    `sum` adds over the K logits (Kim et al. 2021, equation 9), `mean` averages over them (their published code).
    """
    squared = (at_least_float32(student) - at_least_float32(teacher)).square()
    return squared.sum(1).mean() if reduction == "sum" else squared.mean()


def subclass_auxiliary(
    logits: Tensor, tau: float, form: Literal["unitnorm", "literal"] = "unitnorm", eps: float = 1e-9
) -> Tensor:
    """Return the loss that spreads a batch over the invented subclasses, from subclass logits (N, C*S).

    Müller et al. 2020, equations 6 and 7: mean_i log((1/N) sum_j exp(v_i·v_j / tau)) minus the self term, where v_i are
    the example's logits, normalised over all C*S of them. The printed constant 1/tau is the self term of rows of unit
    norm, which is what the published notebook computes: `unitnorm`. `literal` takes equation 6 at its word (unit
    variance, so |v_i|² = C*S).
    """
    logits = at_least_float32(logits)
    width = logits.shape[1]
    variance, mean = torch.var_mean(logits, dim=1, correction=0, keepdim=True)
    v = (logits - mean) / (variance + eps).sqrt()  # (N, C*S), unit variance
    if form == "unitnorm":
        v = v / math.sqrt(width)
    self_term = (1.0 if form == "unitnorm" else width) / tau
    similarity = v @ v.T / tau  # (N, N)
    return similarity.logsumexp(dim=1).mean() - self_term - math.log(logits.shape[0])


def intra_subclass(student: Tensor, teacher: Tensor, subclasses: int, tau: float, rescale: Rescale = "none") -> Tensor:
    """Return the cross-entropy within each class's subclasses, summed over classes, for logits (N, C*S).

    One softmax for each group of S logits, so neither labels nor class probabilities take part: Müller et al. 2020,
    section 4.4, last paragraph. The paper states no tau² factor, hence `rescale: none`.
    """
    log_q = F.log_softmax(by_class(at_least_float32(student), subclasses) / tau, dim=2)  # (N, C, S)
    p = F.softmax(by_class(at_least_float32(teacher), subclasses) / tau, dim=2)
    return -_factor(tau, rescale) * (p * log_q).sum((1, 2)).mean()


def _factor(tau: float, rescale: Rescale) -> float:
    if rescale == "none":
        return 1.0  # Before tau², which overflows at temperatures that are fine without it.
    return tau**2 if rescale == "tau2" else max(tau, tau**2)
