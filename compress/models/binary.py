"""What the binary families share: options of their layers, first layers, activations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError
from torch import nn
from typing_extensions import Self

from compress.layers import STE, Activations, ChannelPReLU, FixedPointConv2d, LayerForm, Scale, TwoStepNorm2d, Weights
from compress.models.base import Init, ModelSpec

Arithmetic = Literal["fixed8", "real"]
Activation = Literal["prelu", "relu", "none"]

# Models that differ in these alone have the same parameters: training goes in steps from one to the other.
STEPS = ("weights", "activations", "ste")


class BinarySpec(ModelSpec):
    """Options of the binary layers: `compress.layers.LayerForm`.

    first_layer: `fixed8` snaps pixels and weights to grids of powers of two, so that sums are exact whatever the order
    (`compress.layers.FixedPointConv2d`); `real` is the papers' form, whose last bits differ between engines and with
    them some signs behind it.
    """

    init: Init = "he"
    weights: Weights = "binary"
    activations: Activations = "binary"
    ste: STE = "clipped"
    scale: Scale = "mean_abs"
    first_layer: Arithmetic = "fixed8"

    @property
    def form(self) -> LayerForm:
        return LayerForm(self.weights, self.activations, self.ste, self.scale)

    def takes_weights_of(self, other: ModelSpec) -> bool:
        """Whether the other is this model, up to which of weights and activations are binary already."""
        if not isinstance(other, type(self)):
            return False
        mine, others = ({**spec.model_dump(), **dict.fromkeys(STEPS)} for spec in (self, other))
        # Steps of integer activations are parameters, which nothing else has.
        stepped = [spec.activations if spec.activations.startswith("int") else "" for spec in (self, other)]
        return mine == others and stepped[0] == stepped[1]

    @model_validator(mode="after")
    def _form_is_possible(self) -> Self:
        if problem := self.form.problem():
            raise PydanticCustomError("form", "{problem}", {"problem": problem})
        return self


def first_convolution(
    inputs: int, outputs: int, kernel: int, stride: int, arithmetic: Arithmetic
) -> nn.Conv2d | FixedPointConv2d:
    """Return a convolution of pixels, padded so that stride 1 keeps height and width."""
    if arithmetic == "fixed8":
        return FixedPointConv2d.of_pixels(inputs, outputs, kernel, stride=stride)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def inner_convolution(
    inputs: int, outputs: int, kernel: int, arithmetic: Arithmetic, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d | FixedPointConv2d:
    """Return a convolution of real maps, padded so that stride 1 keeps height and width."""
    if arithmetic == "fixed8":
        return FixedPointConv2d(inputs, outputs, kernel, stride=stride, groups=groups)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def activation_of(kind: Activation, channels: int) -> nn.Module:
    """Return the activation; `prelu` learns a slope a channel."""
    if kind == "prelu":
        return ChannelPReLU(channels)
    return nn.ReLU() if kind == "relu" else nn.Identity()


def normed(convolution: nn.Module, outputs: int, activation: Activation | None = None) -> nn.Sequential:
    """Return convolution, two-step batch norm and activation."""
    layers: list[Any] = [convolution, TwoStepNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation_of(activation, outputs)] if activation else []))
