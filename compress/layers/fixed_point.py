"""A convolution on grids of powers of two, whose sums are exact in float32 in whatever order an engine takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Integers up to here are exact in float32, and so are their products with a power of two.
EXACT = 1 << 24
WEIGHT_BITS = 8
# The step of normalised pixels: about their own spacing, (1 / 255) / 0.25, and four deviations to each side.
PIXEL_STEP = 2.0**-6
PIXEL_LEVELS = 255
# Of other inputs, 8 bits with sign, in steps that a running maximum chooses.
INPUT_LEVELS = 127
MOMENTUM = 0.1


class FixedPointConv2d(nn.Conv2d):
    """A convolution without bias of real values snapped to grids: x to ±`levels` steps, W to 8 bits a channel.

    Both steps are powers of two: the input's is `step`, or of the running maximum of |x| (a buffer) where that is None;
    an output channel's is the least one that holds its largest |W|. So partial sums are integers times a power of two.
    They stay exact while levels * weight levels * taps * channels per group <= 2^24, which is checked here; weights
    get fewer bits where 8 do not fit (127 levels on both sides fit up to 1040 taps × channels).

    Gradients go straight through the rounding, and are 0 where x is beyond its grid.
    """

    maximum: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        step: float | None = None,
        levels: int = INPUT_LEVELS,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.step = step
        self.levels = levels
        self.weight_bits = fitting_weight_bits(kernel * kernel * (inputs // groups), levels)
        self.input_bits = levels.bit_length() + 1
        if step is None:
            self.register_buffer("maximum", torch.zeros(()))

    @classmethod
    def of_pixels(cls, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> FixedPointConv2d:
        """Return a first layer: normalised pixels in steps of 2^-6 with |x| < 4."""
        return cls(inputs, outputs, kernel, stride=stride, step=PIXEL_STEP, levels=PIXEL_LEVELS)

    @property
    def mac_bits(self) -> int:
        """Return the bits of a multiply-accumulate's larger factor, sign included."""
        return max(self.input_bits, self.weight_bits)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.step is None:
            self._observe(x)
        return _snapped_convolution(self, x, self.input_step(), self.snapped_weight())

    def input_step(self) -> float | Tensor:
        """Return the step of the input's grid, a power of two."""
        return self.step if self.step is not None else _power_of_two_above(self.maximum / self.levels)

    def snapped_weight(self) -> Tensor:
        """Return W (outputs, inputs / groups, h, w) on its grid."""
        levels = 2 ** (self.weight_bits - 1) - 1
        step = _power_of_two_above(self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / levels)
        return round_straight_through(self.weight / step) * step

    @torch.no_grad()
    def for_export(self) -> nn.Module:
        return SnappedConv2d(self)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        now = x.abs().amax().to(self.maximum.dtype)
        self.maximum.copy_(torch.where(self.maximum > 0, self.maximum.lerp(now, MOMENTUM), now))


class SnappedConv2d(nn.Module):
    """What a FixedPointConv2d evaluates to, of constants."""

    weight: Tensor

    def __init__(self, layer: FixedPointConv2d) -> None:
        super().__init__()
        self.register_buffer("weight", layer.snapped_weight().detach().clone())
        self.step = float(layer.input_step())
        self.levels, self.stride, self.padding, self.groups = layer.levels, layer.stride, layer.padding, layer.groups
        self.dilation = layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        return _snapped_convolution(self, x, self.step, self.weight)


def _snapped_convolution(layer: Any, x: Tensor, step: float | Tensor, weight: Tensor) -> Tensor:
    """Products with `step` and its inverse are exact, so whatever makes them makes the same."""
    snapped = round_straight_through((x * (1 / step)).clamp(-layer.levels, layer.levels)) * step
    return F.conv2d(snapped, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def fitting_weight_bits(terms: int, levels: int) -> int:
    """Return how many bits, 8 at most, weights may have so that `terms` products with ±levels sum up exactly.

    Raises ValueError where not even two bits do.
    """
    for bits in range(WEIGHT_BITS, 1, -1):
        if (2 ** (bits - 1) - 1) * levels * terms <= EXACT:
            return bits
    raise ValueError(f"sums of {terms} products with ±{levels} are not exact in float32; expected fewer channels")


def _power_of_two_above(x: Tensor) -> Tensor:
    """Return the least power of two that is at least x, 1 where x is 0."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent with mantissa in [0.5, 1)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.where(x > 0, torch.ldexp(torch.ones_like(x), exponent), torch.ones_like(x))


def round_straight_through(x: Tensor) -> Tensor:
    """Return x rounded, halves to even, with the gradient of x itself."""
    rounded: Tensor = _Round.apply(x) if x.requires_grad else x.round()
    return rounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
