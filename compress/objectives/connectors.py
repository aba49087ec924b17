"""Layers that bring the student's features to the teacher's width. They train with the student and are not exported."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from compress.objectives.functional.precision import at_least_float32


class Connector(nn.Module):
    """1×1 convolution, batch norm (if `normalise`) and ReLU: (N, inputs, H, W) -> (N, outputs, H, W).

    On a vector (N, inputs), a map of one position, that is Linear, batch norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, normalise: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=bias)
        self.norm = BatchNorm(outputs) if normalise else None

    def forward(self, x: Tensor) -> Tensor:
        mapped = self.conv(as_map(at_least_float32(x)))
        if self.norm is not None:
            mapped = self.norm(mapped)
        mapped = F.relu(mapped)
        return mapped.flatten(1) if x.dim() == 2 else mapped


class Projection(nn.Module):
    """1×1 convolution without bias and batch norm, for losses that want responses before a ReLU.

    (N, inputs, H, W) -> (N, outputs, H, W); a vector (N, inputs) stays a vector.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.norm(self.conv(as_map(at_least_float32(x))))
        return mapped.flatten(1) if x.dim() == 2 else mapped


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where the batch has one value a channel.

    One value has no deviation, and PyTorch raises an error there. The running statistics stay as they are then.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def as_map(x: Tensor) -> Tensor:
    """Return a vector (N, width) as a map (N, width, 1, 1), and maps as they are."""
    return x[:, :, None, None] if x.dim() == 2 else x
