"""Distillation of subclasses that clusters make: each row belongs to one subclass of each class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.logits import FLOAT32_TAU, FLOAT64_TAU
from compress.objectives.functional.precision import at_least_float32
from export.fold import by_class


def cluster_distillation(student: Tensor, teacher_logits: Tensor, assigned: Tensor, tau: float) -> Tensor:
    """Return tau² · KL(p ‖ softmax(student / tau)), mean over the batch.

    p gives the whole of a class's probability softmax(teacher_logits / tau)_c to its subclass assigned_c. student:
    (N, C*S), class-major; teacher_logits: (N, C), of classes; assigned: (N, C), 0 to S - 1. Finite for finite logits:
    subclasses without probability take no part. tau is finite: most of p is 0 at any tau, so that tau² KL has no limit.
    """
    if not tau <= FLOAT64_TAU:
        raise ValueError(f"tau is {tau}; expected at most {FLOAT64_TAU:g}")
    student = at_least_float32(student)
    precision = torch.float64 if tau > FLOAT32_TAU else student.dtype  # see `kl_divergence`
    log_q = F.log_softmax(student.to(precision) / tau, dim=1)
    log_p = F.log_softmax(at_least_float32(teacher_logits).to(precision) / tau, dim=1)  # (N, C)
    subclasses = student.shape[1] // teacher_logits.shape[1]
    log_q = by_class(log_q, subclasses).gather(2, assigned[:, :, None]).squeeze(2)  # (N, C)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return (tau**2 * divergence).to(student.dtype)


def cluster_cross_entropy(student: Tensor, assigned: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of student (N, C*S) with the one subclass of a row, assigned[n, labels[n]]."""
    subclasses = student.shape[1] // assigned.shape[1]
    own = assigned.gather(1, labels[:, None]).squeeze(1)  # (N,)
    return F.cross_entropy(at_least_float32(student), labels * subclasses + own)
