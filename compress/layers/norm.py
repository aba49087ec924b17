"""Batch norms that evaluate in two steps, so that every engine rounds them alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _TwoStep:
    """Evaluation as x * a + b: a product and a sum, each rounded; `factors` gives a and b.

    PyTorch's own kernel and an engine's may fuse the two or fold them into the layer before.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    eps: float
    training: bool
    spatial_axes: int

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return a and b, (channels,) each: weight * rsqrt(var + eps) and bias − mean * a."""
        a = self.weight * torch.rsqrt(self.running_var + self.eps)
        return a, self.bias - self.running_mean * a

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            normed: Tensor = super().forward(x)  # type: ignore[misc]
            return normed
        a, b = (over_positions(each, self.spatial_axes) for each in self.factors())
        return x * a + b

    @torch.no_grad()
    def for_export(self) -> nn.Module:
        return ScaleAndShift(*(over_positions(each, self.spatial_axes) for each in self.factors()))


class TwoStepNorm2d(_TwoStep, nn.BatchNorm2d):  # type: ignore[misc]
    spatial_axes = 2


class TwoStepNorm1d(_TwoStep, nn.BatchNorm1d):  # type: ignore[misc]
    """Of (N, channels)."""

    spatial_axes = 0


class ScaleAndShift(nn.Module):
    """x * a + b with constants of a shape that broadcasts."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a.detach().clone())
        self.register_buffer("b", b.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a + self.b


def over_positions(values: Tensor, axes: int) -> Tensor:
    """Return values (channels, ...) with so many axes behind the first; those that are there already count."""
    missing: Any = [1] * (axes + 1 - values.ndim)
    return values.reshape(*values.shape, *missing)
