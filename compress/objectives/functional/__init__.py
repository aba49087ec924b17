"""The objectives' mathematics: pure functions of tensors, one file a family."""

from __future__ import annotations

from compress.objectives.functional.logits import (
    FLOAT32_TAU,
    FLOAT64_TAU,
    Rescale,
    cross_entropy,
    intra_subclass,
    kl_divergence,
    logit_mse,
    soft_cross_entropy,
    subclass_auxiliary,
)

__all__ = [
    "FLOAT32_TAU",
    "FLOAT64_TAU",
    "Rescale",
    "cross_entropy",
    "intra_subclass",
    "kl_divergence",
    "logit_mse",
    "soft_cross_entropy",
    "subclass_auxiliary",
]
