"""Weights and activations as small integers, by Brevitas; signs are our own.

Brevitas' binary quantizer gives the same signs as `signs.sign`, NaN and −0.0 included, but has one gradient, the
identity; the polynomial and the annealed tanh would need another one. Ternary and 2 to 8 bits are Brevitas'.
Imported when a layer needs it: it takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Of weights in units of their channel's mean |W| (Li, Zhang & Liu 2016, equation 6: 0.7 of it).
TERNARY_THRESHOLD = 0.7


class IntegerLevels(nn.Module):
    """x / step, rounded and clamped to −(2^(bits−1) − 1) ... 2^(bits−1) − 1, with straight-through gradients."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        from brevitas.core.function_wrapper import Identity
        from brevitas.core.quant import IntQuant

        self.bits = bits
        self.largest = 2 ** (bits - 1) - 1
        self.quantizer: Any = IntQuant(narrow_range=True, signed=True, input_view_impl=Identity())

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        zero, bits = step.new_zeros(()), step.new_full((), float(self.bits))
        levels: Tensor = self.quantizer.to_int(step, zero, bits, x)
        return levels


class TernaryLevels(nn.Module):
    """−1, 0 and 1 of weights (outputs, ...): 0 where |W| <= 0.7 of its channel's mean."""

    def __init__(self) -> None:
        super().__init__()
        from brevitas.core.quant import TernaryQuant
        from brevitas.core.scaling import ConstScaling

        self.quantizer: Any = TernaryQuant(ConstScaling(1.0), TERNARY_THRESHOLD)

    def forward(self, weight: Tensor) -> Tensor:
        mean = weight.detach().abs().mean(tuple(range(1, weight.ndim)), keepdim=True)
        relative = weight / mean.clamp(min=torch.finfo(weight.dtype).tiny)
        levels: Tensor = self.quantizer(relative)[0]
        # Brevitas' 0 is a product with a mask, without gradient: a weight that got there would stay there.
        return levels + torch.where(levels == 0, relative - relative.detach(), 0.0)
