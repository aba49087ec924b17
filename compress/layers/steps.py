"""Real values on a grid of integers times a step, with gradients for the values and for the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# How many steps are tried, up to the one that reaches the largest value.
CANDIDATES = 100
# Values that a step is chosen by, of a tensor and at least of each of its rows: more would change it by less than one
# of the candidates does.
MOST_VALUES, LEAST_OF_A_ROW = 1 << 16, 1 << 10


def snapped(x: Tensor, step: Tensor, growth: Tensor, *, lowest: int, highest: int, factor: Tensor) -> Tensor:
    """Return step · clamp(round(x / step), lowest, highest), halves to even, of x's shape and dtype; in float32 inside.

    step: a scalar, or (channels, 1, ...) for a step of each first-axis channel of x. Gradients go straight through the
    rounding and are 0 where x lies beyond the grid. `growth` (as many numbers as steps) is what a step is learned by:
    it stands for log(step). Its gradient is `factor` times Σ g · (step · q − x) within the grid and Σ g · step · q
    beyond it, q being the level: that of Esser et al. 2020, "Learned step size quantization", for a logarithm.
    """
    on_grid: Tensor = _Snapped.apply(x, step, growth, lowest, highest, factor)
    return on_grid


class _Snapped(torch.autograd.Function):
    """Of single operations, Brevitas' included, each would be noted and walked back by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, growth: Tensor, lowest: int, highest: int, factor: Tensor) -> Tensor:
        scaled = x.float() / step
        rounded = scaled.round()
        levels = rounded.clamp(lowest, highest)
        beyond = rounded != levels
        by_step = torch.where(beyond, levels, torch.sub(levels, scaled, out=rounded))
        ctx.save_for_backward(beyond, by_step.to(x.dtype), step, factor)
        ctx.shape = growth.shape
        return levels.mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        beyond, by_step, step, factor = ctx.saved_tensors
        axes = tuple(range(1 if step.ndim else 0, gradient.ndim))
        of_steps = (gradient * by_step).sum(axes, dtype=torch.float32)
        of_growth = (of_steps * step.flatten() * factor).reshape(ctx.shape)
        return gradient.masked_fill(beyond, 0), None, of_growth, None, None, None


@torch.no_grad()
def best_steps(x: Tensor, *, lowest: int, highest: int) -> Tensor:
    """Return the step (channels,) with the smallest squared error for each row of x (channels, values).

    Of `CANDIDATES` the largest reaches the largest |x|; of equals the largest is taken. A row of zeros has 1. Of many
    values some are looked at, evenly spaced.
    """
    reach = x.abs().amax(1).float() / highest
    reach = torch.where(reach > 0, reach, 1.0)
    rows, values = x.shape
    x = x[:, :: -(-values // max(MOST_VALUES // rows, LEAST_OF_A_ROW))].float()
    best, least = reach, torch.full_like(reach, torch.inf)
    for share in range(CANDIDATES, 0, -1):
        step = reach * (share / CANDIDATES)
        error = (x - (x / step[:, None]).round().clamp(lowest, highest) * step[:, None]).square().sum(1)
        best = torch.where(error < least, step, best)
        least = torch.minimum(error, least)
    return best
