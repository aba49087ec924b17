"""Pieces that several convolutional families share."""

from __future__ import annotations

from torch import Tensor, nn


def normed_convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return convolution, batch norm and `activation`, padded so that stride 1 keeps height and width."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class ChannelShuffle(nn.Module):
    """Deal the channels of `groups` groups out in turn: a1 a2 b1 b2 → a1 b1 a2 b2 (Zhang et al. 2018, figure 1)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        # (N, g * c, h, w) → (N, g, c, h, w) → (N, c, g, h, w) → (N, c * g, h, w)
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def require_sides(model: str, input_shape: tuple[int, int, int], least: int) -> None:
    """Raise ValueError where height or width is below `least`, the factor by which the model shrinks both."""
    _, height, width = input_shape
    if min(height, width) < least:
        raise ValueError(f"{model} needs images of at least {least} pixels a side, came {height}×{width}")
