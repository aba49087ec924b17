"""A sign that is never zero, and the gradients that are put in the place of its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

STE = Literal["clipped", "polynomial", "tanh"]

# The sharpness of the tanh runs from the one to the other, geometrically (Qin et al. 2020, section 3.3).
SOFTEST, SHARPEST = 0.1, 10.0


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0 (so for 0 and −0.0) and −1 elsewhere (so for NaN), in x's dtype."""
    return torch.where(x >= 0, x.new_ones(()), x.new_full((), -1.0))


def straight_through_sign(x: Tensor, ste: STE, progress: float = 0.0) -> Tensor:
    """Return sign(x) whose gradient is that of a smoother function.

    clipped: d/dx = 1 where |x| < 1, else 0 (Courbariaux et al. 2016, "Binarized neural networks"; XNOR-Net).
    polynomial: d/dx = 2 − 2|x| where |x| < 1, else 0 (Liu et al. 2018, "Bi-Real net", section 3.2).
    tanh: of k tanh(t x), d/dx = k t (1 − tanh²(t x)) with t from 0.1 to 10 by `progress`, the share of training that is
    done, and k = max(1/t, 1): from nearly the identity to nearly the sign (Qin et al. 2020, "Forward and backward
    information retention for accurate binary neural networks", equations 9 to 11).
    """
    signs: Tensor = _StraightThroughSign.apply(x, ste, progress)
    return signs


def sharpness(progress: float) -> float:
    """Return t of the tanh after the share `progress` of training."""
    return SOFTEST * (SHARPEST / SOFTEST) ** progress


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ste: STE, progress: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ste, ctx.progress = ste, progress
        # As `sign`, in a tenth of its time on a CPU.
        return torch.ge(x, 0, out=torch.empty_like(x)).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.ste == "clipped":
            return torch.ops.aten.hardtanh_backward(gradient, x, -1.0, 1.0), None, None
        if ctx.ste == "polynomial":
            return gradient * (2 - 2 * x.abs()).clamp(min=0), None, None
        t = sharpness(ctx.progress)
        return gradient * ((1 - (t * x).tanh().square()) * (max(1 / t, 1.0) * t)), None, None
