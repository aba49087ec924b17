"""Convolution and linear layer that train on the grids that are deployed: integers times learned steps.

The step of the input is one number and that of the weights one for each output channel, as INT8 engines want them. They
are real numbers and no powers of two: the best power of two misses the best step by up to a factor of √2, which 2 to
4 bits feel, and a batch norm that is folded into the weights makes other numbers of the steps anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.layers.norm import over_positions
from compress.layers.steps import best_steps, snapped
from runtime.errors import ExportError

EIGHT_BITS = 8
TINY = torch.finfo(torch.float32).tiny
# What a QuantLayer has and the float layer has not.
OF_STEPS = ("weight_growth", "input_growth", "weight_start", "input_start", "input_lowest")


class QuantLayer(nn.Module):
    """What QuantConv2d and QuantLinear share: y = product(on_grid(x), on_grid(W)) + bias.

    The first batch in training mode sets the steps to those with the smallest squared error (`steps.best_steps`); until
    then this is the float layer. From then on they are learned: a step is `start` · exp(`growth`), and growth has the
    gradient of log(step) over Σ W² of the layer, of a weight's step over that of its channel. So a step changes by a
    share of the order of its weights' own, at any number of bits; with the factor of the paper (`steps.snapped`) 8-bit
    steps diverged within ten batches. Weight decay draws growth to 0, and so the step to where it began.

    W has ±(2^(bits − 1) − 1) levels. Inputs of 8 bits have −128 to 127, signed and around zero, which is what TensorRT
    takes. Inputs of fewer bits, which travel in 8, have levels from 0 on where the first batch has no negative value,
    as behind a ReLU, and as many on both sides of zero elsewhere.

    Parameters: `weight` and `bias` as those of the float layer, so that its state fits; `weight_growth` (outputs,) and
    `input_growth` (). Buffers: `weight_start` (outputs,), `input_start` () and `input_lowest` (), the lowest level.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_bits: int
    input_bits: int
    weight_growth: nn.Parameter
    input_growth: nn.Parameter
    weight_start: Tensor
    input_start: Tensor
    input_lowest: Tensor
    _lowest: int | None

    @property
    def mac_bits(self) -> int:
        """Return the bits of a multiply-accumulate's larger factor."""
        return max(self.weight_bits, self.input_bits)

    @property
    def weight_highest(self) -> int:
        """Return the highest level of the weights; the lowest is its negative."""
        return int(2 ** (self.weight_bits - 1) - 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.has_steps():
            if not self.training or self.weight.is_meta:
                return self._product(x, self.weight)
            self._find_steps(x)
        return self._product(self._snapped_input(x), self.snapped_weight())

    def has_steps(self) -> bool:
        """Return whether the steps are set. Looks at the device once, not in every call."""
        if self._lowest is None and not self.weight.is_meta and self.input_start > 0:
            self._lowest = int(self.input_lowest)
        return self._lowest is not None

    def input_levels(self) -> tuple[int, int]:
        """Return the lowest and the highest level of inputs."""
        assert self._lowest is not None  # has_steps()
        return self._lowest, self._lowest + int(2**self.input_bits) - 1

    def input_step(self) -> Tensor:
        return self.input_start * self.input_growth.detach().exp()

    def weight_step(self) -> Tensor:
        """Return (outputs, 1, ...)."""
        return over_positions(self.weight_start * self.weight_growth.detach().exp(), self.weight.ndim - 1)

    def snapped_weight(self) -> Tensor:
        highest = self.weight_highest
        factor = 1 / self._squares().clamp(min=TINY)
        return snapped(
            self.weight, self.weight_step(), self.weight_growth, lowest=-highest, highest=highest, factor=factor
        )

    @torch.no_grad()
    def for_export(self) -> nn.Module:
        """Raises ExportError before the first batch in training mode."""
        if not self.has_steps():
            raise ExportError(
                "a quantised layer has no steps yet, so nothing can be exported",
                "Train the stage: its first batch sets them.",
            )
        return SnappedLayer(self)

    def _set_up(self, like: Any, weight_bits: int, input_bits: int) -> None:
        self.weight_bits, self.input_bits = weight_bits, input_bits
        self.weight, self.bias = like.weight, like.bias  # the very parameters, with what they were initialised with
        outputs = like.weight.new_zeros(len(like.weight))
        self.weight_growth, self.input_growth = nn.Parameter(outputs.clone()), nn.Parameter(outputs.new_zeros(()))
        self.register_buffer("weight_start", outputs)
        self.register_buffer("input_start", outputs.new_zeros(()))
        self.register_buffer("input_lowest", outputs.new_zeros(()))
        self._lowest = None

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take a float layer's state as well: steps then wait for the next batch."""
        if not any(f"{prefix}{name}" in state for name in OF_STEPS):
            state.update({f"{prefix}{name}": torch.zeros_like(getattr(self, name)) for name in OF_STEPS})
        super()._load_from_state_dict(state, prefix, *rest)
        self._lowest = None

    def _snapped_input(self, x: Tensor) -> Tensor:
        lowest, highest = self.input_levels()
        factor = 1 / self._squares().sum().clamp(min=TINY)
        return snapped(x, self.input_step(), self.input_growth, lowest=lowest, highest=highest, factor=factor)

    def _squares(self) -> Tensor:
        """Return Σ W² of each output channel."""
        return self.weight.detach().square().sum(tuple(range(1, self.weight.ndim)))

    @torch.no_grad()
    def _find_steps(self, x: Tensor) -> None:
        half = int(2 ** (self.input_bits - 1))
        lowest = 0 if self.input_bits < EIGHT_BITS and bool((x >= 0).all()) else -half
        highest = lowest + 2 * half - 1
        self.input_lowest.fill_(lowest)
        self._lowest = lowest
        self.input_start.copy_(best_steps(x.reshape(1, -1), lowest=lowest, highest=highest)[0])
        levels = self.weight_highest
        self.weight_start.copy_(best_steps(self.weight.flatten(1), lowest=-levels, highest=levels))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


class QuantConv2d(QuantLayer, nn.Conv2d):  # type: ignore[misc]
    """`like`, a convolution padded with zeros, on grids of so many bits; takes over its parameters."""

    def __init__(self, like: nn.Conv2d, *, weight_bits: int, input_bits: int) -> None:
        geometry: Any = {name: getattr(like, name) for name in ("stride", "padding", "dilation", "groups")}
        size: Any = like.kernel_size
        # On the meta device, where nothing is drawn: the random state stays that of the float model.
        geometry |= {"bias": like.bias is not None, "device": "meta"}
        super().__init__(like.in_channels, like.out_channels, size, **geometry)
        self._set_up(like, weight_bits, input_bits)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QuantLinear(QuantLayer, nn.Linear):  # type: ignore[misc]
    """`like` on grids of so many bits; takes over its parameters."""

    def __init__(self, like: nn.Linear, *, weight_bits: int, input_bits: int) -> None:
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None, device="meta")
        self._set_up(like, weight_bits, input_bits)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class SnappedLayer(nn.Module):
    """What a QuantLayer evaluates to, of constants; `export.to_qdq` finds the steps in what is exported of it."""

    weight: Tensor
    step: Tensor

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self.register_buffer("weight", layer.snapped_weight().detach().clone())
        self.register_buffer("step", layer.input_step().detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.lowest, self.highest = layer.input_levels()
        self.geometry: Any = None
        if isinstance(layer, nn.Conv2d):
            self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = (x / self.step).round().clamp(self.lowest, self.highest) * self.step
        bias: Any = self.bias
        if self.geometry is None:
            return F.linear(x, self.weight, bias)
        return F.conv2d(x, self.weight, bias, *self.geometry)
