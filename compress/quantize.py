"""A stage's `quantize:`, a real-valued model whose convolutions and linear layers train on grids of few bits."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import nn

from compress.kinds import Spec, as_recipe_value
from compress.layers.quant import QuantConv2d, QuantLinear
from compress.models.base import Classifier, ModelSpec, model_input, once_a_model
from export.graph import InputSignature

Bits = Literal[8, 4, 3, 2]


class QuantizeSpec(Spec):
    """Bits of the weights of every convolution and linear layer, and of what goes into them; the rest stays float.

    first_last: bits of both in the first layer to run and in the last one: 8, `same` as all others, or `float`, which
    leaves these two as they are. Weights have a step for each output channel, inputs one; all are learned.
    """

    weights: Bits
    activations: Bits = 8
    first_last: Literal[8, "same", "float"] = 8

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"

    def bits_of(self, place: int, layers: int) -> tuple[int, int] | None:
        """Return the bits of weights and inputs of layer number `place` of so many, None where it stays float."""
        if self.first_last == "same" or place not in (0, layers - 1):
            return self.weights, self.activations
        return (8, 8) if self.first_last == 8 else None


class QuantizedSpec(ModelSpec):
    """A model as `model` builds it, with its layers on the grids of `quantize`.

    Not a kind of its own: a stage's `quantize:` makes it of the stage's model, with whose kind and key it goes.
    """

    model: ModelSpec
    quantize: QuantizeSpec

    def build(self, *, signature: InputSignature, outputs: int) -> Classifier:
        """Raises ValueError as the model's own `build` does, and where no layer is left to quantise."""
        model = self.model.build(signature=signature, outputs=outputs)
        names = _layers_in_order(self.model, signature=signature, outputs=outputs)
        bits = {name: self.quantize.bits_of(place, len(names)) for place, name in enumerate(names)}
        if not any(bits.values()):
            raise ValueError(
                f"{self.model.kind} has {len(names)} layers, and first_last: float leaves none to quantise"
            )
        for name, both in bits.items():
            if both is not None:
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, _quantized(model.get_submodule(name), *both))
        return model

    def load_pretrained(self, model: Classifier) -> None:
        self.model.load_pretrained(model)

    def takes_weights_of(self, other: ModelSpec) -> bool:
        """Return whether the other is the same model in float, or quantised alike."""
        return self.model.takes_weights_of(other) or self == other

    def outside(self) -> Hashable:
        return self.model.outside()

    def in_recipe(self) -> dict[str, Any]:
        """Return what a stage writes for it: `model` and `quantize`."""
        return {"model": as_recipe_value(self.model), "quantize": self.quantize.model_dump(mode="json")}


@once_a_model
def _layers_in_order(spec: ModelSpec, *, signature: InputSignature, outputs: int) -> tuple[str, ...]:
    """Return the names of the layers that can be quantised, in the order in which they first run.

    A layer that pads with anything but zeros is none, nor is one of a class derived from PyTorch's: it may compute
    something else. Nor is one of a frozen part, which stays as it was published.
    """
    with torch.device("meta"):
        model = spec.build(signature=signature, outputs=outputs).eval()
        names = {each: name for name, each in model.named_modules() if type(each) in (nn.Conv2d, nn.Linear)}
        ran: dict[nn.Module, None] = {}
        handles = [each.register_forward_pre_hook(lambda module, _: ran.setdefault(module)) for each in names]
        try:
            model(model_input(signature, 2))
        finally:
            for handle in handles:
                handle.remove()
    fit = (each for each in ran if getattr(each, "padding_mode", "zeros") == "zeros" and each.weight.requires_grad)
    return tuple(names[each] for each in fit)


def _quantized(layer: nn.Module, weight_bits: int, input_bits: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d(layer, weight_bits=weight_bits, input_bits=input_bits)
    assert isinstance(layer, nn.Linear)  # _layers_in_order
    return QuantLinear(layer, weight_bits=weight_bits, input_bits=input_bits)
