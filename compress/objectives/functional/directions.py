"""Directions: rows divided by their norm, as the published losses do it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_NORM = 1e-12


def unit(x: Tensor, dim: int, *, p: float = 2.0, guard: bool = True) -> Tensor:
    """Return x / max(|x|_p, 1e-12) along `dim`.

    guard: rows shorter than 1e-12 get no gradient. That quotient is steep there, 1e12, which the published losses pass
    on: one row of zeros then outweighs a whole batch, and overflows float16. The value is the same with and without.
    """
    directions = F.normalize(x, p=p, dim=dim, eps=SMALLEST_NORM)
    if not guard:
        return directions
    short = torch.linalg.vector_norm(x.detach(), ord=p, dim=dim, keepdim=True) < SMALLEST_NORM
    return torch.where(short, directions.detach(), directions)
