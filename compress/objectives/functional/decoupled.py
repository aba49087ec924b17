"""Losses of logits beside the divergence itself: decoupled distillation and smooth L1; means over the batch.

Letters: N batch, C classes, K logits. Teacher tensors are constants to every function here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.logits import FLOAT32_TAU, kl_divergence
from compress.objectives.functional.precision import at_least_float32


def decoupled_kd(
    student: Tensor, teacher: Tensor, labels: Tensor, *, tau: float, tckd: float = 1.0, nckd: float = 8.0
) -> Tensor:
    """Return tau² (tckd · TCKD + nckd · NCKD) of class logits (N, C), C >= 2, with labels (N,).

    Zhao et al. 2022 ("Decoupled Knowledge Distillation"), the DKD loss. TCKD is KL(teacher ‖ student) of the two
    probabilities {true class, all others}; NCKD that of the softmax over the other classes alone. With two classes the
    latter is zero.
    """
    student_pair, student_others = _decoupled(student, labels, tau)
    teacher_pair, teacher_others = _decoupled(teacher, labels, tau)
    target = kl_divergence(student_pair, teacher_pair, 1.0)
    others = kl_divergence(student_others, teacher_others, 1.0)
    return (tau**2 * (tckd * target + nckd * others)).to(at_least_float32(student).dtype)


def _decoupled(logits: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return softened logits of {true class, all others} (N, 2) and of the other classes alone (N, C - 1).

    Published code sums probabilities and takes their logarithm, which is -Inf once float32 rounds one to 0, and removes
    the true class by subtracting 1000, which is too little at small tau. A logsumexp and a gather are exact.
    """
    softened = at_least_float32(logits)
    # As in `kl_divergence`: softened logits differ by about 1/tau, which float32 no longer resolves.
    softened = (softened.double() if tau > FLOAT32_TAU else softened) / tau
    rows, classes = softened.shape
    is_other = torch.arange(classes, device=labels.device) != labels[:, None]  # (N, C)
    others = softened[is_other].view(rows, classes - 1)
    true = softened.gather(1, labels[:, None])  # (N, 1)
    return torch.cat([true, others.logsumexp(dim=1, keepdim=True)], dim=1), others


def logit_smooth_l1(
    student: Tensor, teacher: Tensor, threshold: float = 1.0, reduction: Literal["sum", "mean"] = "mean"
) -> Tensor:
    """Return the smooth L1 distance of logits (N, K): d² / (2 t) where |d| < t, |d| - t / 2 beyond, t the threshold.

    `mean` averages over the K logits and the batch (the published code of Kim et al. 2021); `sum` adds over the logits.
    """
    distance = F.smooth_l1_loss(at_least_float32(student), at_least_float32(teacher), reduction="none", beta=threshold)
    return distance.sum(1).mean() if reduction == "sum" else distance.mean()
