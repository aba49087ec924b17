"""Convolution and linear layer of few bits: latent float weights in training, small integers and one scale after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.layers.form import LEARNED, OVER_POSITIONS, LayerForm
from compress.layers.norm import TwoStepNorm1d, TwoStepNorm2d, over_positions
from compress.layers.quantizers import IntegerLevels, TernaryLevels
from compress.layers.signs import sign, straight_through_sign

BINARY = LayerForm()


class QuantizedLayer(nn.Module):
    """What BinaryConv2d and BinaryLinear share: forms of weights and inputs, scale, and the batch norm behind.

    Both compute y = norm(sum(q(x) * q(W)) * scale). In evaluation mode this is

        y = sum(q(x) * q(W)) * scale + bias

    in three operations: integers, one product, one sum. scale and bias hold the layer's scale and the norm's factors,
    merged once (`constants`). Sums of signs are exact in float32 whatever the order; those of 8-bit levels where they
    stay below 2^24.

    Parameters: `weight`, latent; with a learned scale `scale_channel` (outputs,) and its factors over positions; with
    int activations `input_step`; `norm` where there is one. None of them hangs on `weights` and `activations` being
    real or binary, so training can go in steps: real, binary activations, both (Martinez et al. 2020, "Training binary
    neural networks with real-to-binary convolutions", section 4). Real weights under a learned scale count in units of
    their channel's mean |W|, which is what their signs have.
    """

    weight: nn.Parameter
    input_step: nn.Parameter
    scale_channel: nn.Parameter
    form: LayerForm
    norm: TwoStepNorm1d | TwoStepNorm2d | None
    progress: float
    spatial_axes: int
    packed_name: str

    @property
    def packs_as(self) -> str | None:
        """Return the packed operator that this layer becomes; None where it has more than one bit."""
        return self.packed_name if self.form.is_binary else None

    @property
    def mac_bits(self) -> int:
        """Return the bits of a multiply-accumulate's larger factor."""
        return max(self.form.weight_bits, self.form.input_bits)

    @property
    def weight_bits(self) -> int:
        return self.form.weight_bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            weight, scale, bias = self.constants()
            return self._sums(x, self._inputs(x), weight) * scale + bias
        y = self._sums(x, self._inputs(x), self._scaled(self._levels()))
        if self.form.scale in OVER_POSITIONS:
            y = y * self._factors_of_positions()
        if self.form.activations in STEPPED:
            y = y * self.input_step
        return y if self.norm is None else self.norm(y)

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return q(W), scale (outputs, 1, 1) or (outputs, H, W), and bias (outputs, 1, 1); (outputs,) of a Linear."""
        weight, scale = self._levels(), self._channel_scale()
        if self.form.activations in STEPPED:
            scale = scale * self.input_step
        shift = torch.zeros_like(scale)
        if self.norm is not None:
            factor, shift = self.norm.factors()
            scale = scale * factor
        scale = over_positions(scale, self.spatial_axes)
        if self.form.scale in OVER_POSITIONS:
            scale = scale * self._factors_of_positions()
        return weight, scale, over_positions(shift, self.spatial_axes)

    def _set_up(self, form: LayerForm, positions: tuple[int, ...] | None) -> None:
        """Make what `form` needs; positions: (H, W) of the output."""
        if problem := form.problem():
            raise ValueError(problem)
        self.form = form
        self.progress = 0.0
        if form.weights in ("ternary", *STEPPED):
            self.levels = TernaryLevels() if form.weights == "ternary" else IntegerLevels(form.weight_bits)
        if form.activations in STEPPED:
            self.input_levels = IntegerLevels(form.input_bits)
            self.input_step = nn.Parameter(torch.zeros(()))  # found in the first batch
        outputs, terms = self.weight.shape[0], self.weight[0].numel()
        if form.scale in LEARNED:
            # Sums of so many signs then have a variance of about 1.
            self.scale_channel = nn.Parameter(torch.full((outputs,), terms**-0.5))
        if form.scale in OVER_POSITIONS:
            if positions is None:
                raise ValueError(f"scale: {form.scale} needs the size of the layer's input")
            for name, shape in _shapes_over_positions(form, outputs, *positions).items():
                self.register_parameter(name, nn.Parameter(torch.ones(shape)))

    def _inputs(self, x: Tensor) -> Tensor:
        if self.form.activations == "real":
            return x
        if self.form.activations == "binary":
            return straight_through_sign(x, self.form.ste, self.progress)
        if self.training:
            self._find_step(x)
        levels: Tensor = self.input_levels(x, self.input_step)
        return levels

    def _levels(self) -> Tensor:
        """Return q(W): signs, small integers, or real weights."""
        weight, form = self.weight, self.form
        if form.weights == "binary":
            return straight_through_sign(weight, form.weight_ste, self.progress)
        if form.weights == "ternary":
            return self.levels(weight)
        if form.weights == "real":
            return weight / self._per_output(self._mean_abs()) if form.scale in LEARNED else weight
        return self.levels(weight, self._per_output(self._weight_step()))

    def _scaled(self, levels: Tensor) -> Tensor:
        """Return q(W) times the channels' scale: in training it costs less there than in the map."""
        return levels * self._per_output(self._channel_scale(levels))

    def _channel_scale(self, levels: Tensor | None = None) -> Tensor:
        """Return the scale (outputs,) without its factors over positions."""
        if self.form.scale in LEARNED:
            # Of signs, zeros and ones, and weights in units of their mean |W|; integers are brought to these units.
            steps = self._weight_step() / self._mean_abs() if self.form.weights in STEPPED else 1.0
            return self.scale_channel * steps
        if self.form.weights in STEPPED:
            return self._weight_step()
        if self.form.weights == "real" or self.form.scale == "none":
            return self.weight.new_ones(len(self.weight))
        if self.form.weights == "binary":
            return self._mean_abs()
        kept = (self._levels() if levels is None else levels).detach() != 0
        axes = tuple(range(1, self.weight.ndim))
        return (self.weight.abs() * kept).sum(axes) / kept.sum(axes).clamp(min=1)

    def _mean_abs(self) -> Tensor:
        # In float64, so that the float32 does not hang on the order of the sum.
        mean = self.weight.double().abs().mean(tuple(range(1, self.weight.ndim)))
        return mean.to(self.weight.dtype)

    def _weight_step(self) -> Tensor:
        largest = self.weight.detach().abs().amax(tuple(range(1, self.weight.ndim)))
        step = largest / (2 ** (self.form.weight_bits - 1) - 1)
        return torch.where(step > 0, step, 1.0)

    def _per_output(self, values: Tensor) -> Tensor:
        return over_positions(values, self.weight.ndim - 1)

    def _factors_of_positions(self) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def _find_step(self, x: Tensor) -> None:
        """Start from 2 mean|x| / sqrt(levels) (Esser et al. 2020, "Learned step size quantization", section 2.1)."""
        start = 2 * x.abs().mean().to(self.input_step.dtype) / self.input_levels.largest**0.5
        self.input_step.copy_(torch.where(self.input_step > 0, self.input_step, start))

    def _sums(self, x: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


class BinaryConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc]
    """A convolution of few bits, with the batch norm behind it where `norm` says so.

    x: (N, inputs, H, W), real; the layer takes its sign or levels itself. pad_value: what stands outside the image
    behind the sign, 0 (adds nothing), 1 or −1. size: H and W of the input, for scales over positions.
    """

    scale_height: nn.Parameter
    scale_width: nn.Parameter
    scale_positions: nn.Parameter
    spatial_axes = 2
    packed_name = "BinaryConv"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        pad_value: int = 0,
        form: LayerForm = BINARY,
        norm: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        if pad_value not in (0, 1, -1):
            raise ValueError(f"pad_value is {pad_value}; expected 0, 1 or -1")
        self.pad_value = pad_value
        self._set_up(form, None if size is None else self._output_size(size))
        self.norm = TwoStepNorm2d(outputs) if norm else None

    @torch.no_grad()
    def for_export(self) -> nn.Module:
        return ConstantConv2d(self)

    def _output_size(self, size: tuple[int, int]) -> tuple[int, ...]:
        geometry: Any = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)

    def _factors_of_positions(self) -> Tensor:
        """Return (outputs or 1, H, W)."""
        if self.form.scale == "learned_factors":
            return self.scale_height[:, None] * self.scale_width
        return self.scale_positions

    def _sums(self, x: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        sums = _convolved(self, inputs, weight)
        return sums * self._map_k(x) if self.form.scale == "xnor_k" else sums

    def _map_k(self, x: Tensor) -> Tensor | float:
        return activation_map(self, x) if self.form.activations == "binary" else 1.0


class BinaryLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """A linear layer of few bits, x (N, inputs) → (N, outputs), with the batch norm behind it where `norm` says so."""

    spatial_axes = 0
    packed_name = "BinaryGemm"

    def __init__(self, inputs: int, outputs: int, *, form: LayerForm = BINARY, norm: bool = False) -> None:
        super().__init__(inputs, outputs, bias=False)
        if form.scale in ("xnor_k", *OVER_POSITIONS):
            raise ValueError(f"scale: {form.scale} is of convolutions; expected none, mean_abs or learned")
        self._set_up(form, None)
        self.norm = TwoStepNorm1d(outputs) if norm else None

    @torch.no_grad()
    def for_export(self) -> nn.Module:
        return ConstantLinear(self)

    def _sums(self, x: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return F.linear(inputs, weight)


class _Constant(nn.Module):
    """What a layer evaluates to, of constants: q(W), scale and bias are buffers of the shapes that they are used in."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    input_step: Tensor

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.form = layer.form
        self.packs_as = layer.packs_as
        for name, value in zip(("weight", "scale", "bias"), layer.constants(), strict=True):
            self.register_buffer(name, value.detach().clone())
        if self.form.activations in STEPPED:
            self.largest = layer.input_levels.largest
            self.register_buffer("input_step", layer.input_step.detach().clone())

    def _inputs(self, x: Tensor) -> Tensor:
        if self.form.activations == "binary":
            return sign(x)
        if self.form.activations == "real":
            return x
        return (x / self.input_step).round().clamp(-self.largest, self.largest)


class ConstantConv2d(_Constant):
    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__(layer)
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self.dilation, self.groups, self.pad_value = layer.dilation, layer.groups, layer.pad_value

    def forward(self, x: Tensor) -> Tensor:
        y = _convolved(self, self._inputs(x), self.weight)
        if self.form.scale == "xnor_k" and self.form.activations == "binary":
            y = y * activation_map(self, x)
        return y * self.scale + self.bias


class ConstantLinear(_Constant):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self._inputs(x), self.weight) * self.scale + self.bias


def activation_map(layer: Any, x: Tensor) -> Tensor:
    """Return K (N, 1, H', W'): the mean over channels of |x|, averaged by the kernel's window (zeros outside)."""
    mean = x.abs().mean(1, keepdim=True)
    window = mean.new_full((1, 1, *layer.kernel_size), 1 / (layer.kernel_size[0] * layer.kernel_size[1]))
    return F.conv2d(mean, window, None, layer.stride, layer.padding, layer.dilation)


def _convolved(layer: Any, inputs: Tensor, weight: Tensor) -> Tensor:
    padding = layer.padding
    if layer.pad_value:
        above, before = padding
        inputs, padding = F.pad(inputs, (before, before, above, above), value=float(layer.pad_value)), 0
    return F.conv2d(inputs, weight, None, layer.stride, padding, layer.dilation, layer.groups)


# Forms whose levels are multiples of a step.
STEPPED = ("int2", "int4", "int8")


def _shapes_over_positions(form: LayerForm, outputs: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
    if form.scale == "learned_dense":
        return {"scale_positions": (outputs, height, width)}
    if form.scale == "learned_map":
        return {"scale_positions": (1, height, width)}
    return {"scale_height": (height,), "scale_width": (width,)}
