"""Poolings whose rounding does not hang on the engine."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class HalvingPool(nn.Module):
    """Mean over 2×2 positions: (N, channels, H, W) → (N, channels, H/2, W/2), halves rounded up.

    Evaluates as (a + b + c + d) * 0.25 in reading order. Odd sides repeat their last row or column, which makes the
    mean there that of the positions there are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        above, below = x[..., 0::2, :], x[..., 1::2, :]
        return (above[..., 0::2] + above[..., 1::2] + below[..., 0::2] + below[..., 1::2]) * 0.25
