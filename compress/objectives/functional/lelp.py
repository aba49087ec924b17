"""LELP: distillation of subclasses that linear projections of the teacher's embeddings make (`compress.lelp`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.functional.logits import FLOAT32_TAU, FLOAT64_TAU, kl_divergence
from compress.objectives.functional.precision import at_least_float32


def lelp(
    student: Tensor,
    teacher_logits: Tensor,
    embedding: Tensor,
    means: Tensor,
    projections: Tensor,
    *,
    tau: float,
    beta: float,
) -> Tensor:
    """Return tau² · KL(p ‖ softmax(student / tau)) over all C·S subclasses, mean over the batch.

    Loo et al. 2024, algorithms 2 and 3, with p of `lelp_log_targets`. student: (N, C*S), class-major; teacher_logits:
    (N, C), of classes; embedding: (N, D), the teacher's; means: (C, D); projections: (C, S, D). tau is finite: the
    shares within a class do not depend on it, so that tau² KL has no limit.
    """
    if not tau <= FLOAT64_TAU:
        raise ValueError(f"tau is {tau}; expected at most {FLOAT64_TAU:g}")
    student = at_least_float32(student)
    precision = torch.float64 if tau > FLOAT32_TAU else student.dtype  # see `kl_divergence`
    log_p = lelp_log_targets(teacher_logits.to(precision), embedding, means, projections, tau=tau, beta=beta)
    return kl_divergence(student, tau * log_p.to(precision), tau)  # softmax(log p) is p


def lelp_log_targets(
    teacher_logits: Tensor, embedding: Tensor, means: Tensor, projections: Tensor, *, tau: float, beta: float
) -> Tensor:
    """Return log p (N, C*S), p_cs = softmax_c(teacher_logits / tau) · softmax_s(coordinates / beta).

    By logarithms, so that a class or subclass that the teacher all but rules out keeps a finite target.
    """
    classes = F.log_softmax(at_least_float32(teacher_logits) / tau, dim=1)  # (N, C)
    coordinates = lelp_coordinates(embedding, means, projections)
    within = F.log_softmax(coordinates / beta, dim=2)  # (N, C, S)
    return (classes[:, :, None] + within).flatten(1)


def lelp_coordinates(embedding: Tensor, means: Tensor, projections: Tensor) -> Tensor:
    """Return v_cs · (h - mu_c) as (N, C, S), of embeddings h (N, D), means (C, D) and projections v (C, S, D)."""
    # About the middle of the means: a part that all embeddings share would cost digits, and h - mu_c of every class
    # would be N·C·D numbers.
    middle = means.mean(0)
    offset = torch.einsum("csd,cd->cs", projections, means - middle)
    centred = at_least_float32(embedding).to(projections.dtype) - middle
    return F.linear(centred, projections.flatten(0, 1)).unflatten(1, projections.shape[:2]) - offset
