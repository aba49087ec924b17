"""What a model holds and computes, from shapes alone: parameters, bytes, multiply-accumulates, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.base import ModelSpec, model_input, once_a_model
from compress.units import count
from export.graph import InputSignature

# Of a layer that does not say its bits by `mac_bits` and `weight_bits`, as those of `compress.layers` do.
FULL_PRECISION_BITS = 32


@dataclass(frozen=True)
class LayerProfile:
    """One layer with parameters of its own.

    output_shape: without the batch axis. macs: multiply-accumulates for one input row, by the bits of the larger
    factor: of 1 bit only where weight and activation are.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: Mapping[int, int]


@dataclass(frozen=True)
class Profile:
    """A model's layers in the order in which they first run, and their sums.

    bytes: of the parameters, by data type (`float32`), or by bits where a layer deploys its weights in fewer (`1 bit`:
    the same eight to a byte). macs: of Conv2d and Linear layers, for one input row, by the
    bits of the factors. As in the published counts, biases, norms, activations, poolings and sums are left out; so
    are the gathers of an Embedding, which multiply nothing. notes: what a reader of the sums should be told.
    """

    layers: tuple[LayerProfile, ...]
    bytes: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> dict[int, int]:
        total = Counter[int]()
        for layer in self.layers:
            total.update(layer.macs)
        return dict(total)

    @property
    def total_macs(self) -> int:
        return sum(self.macs.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "bytes": dict(self.bytes),
            "macs": self.macs,
            "notes": list(self.notes),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "output_shape": list(layer.output_shape),
                    "parameters": layer.parameters,
                    "macs": dict(layer.macs),
                }
                for layer in self.layers
            ],
        }


@once_a_model
def profile_of(spec: ModelSpec, *, signature: InputSignature, outputs: int) -> Profile:
    """Return the profile of a model for one row of `signature`, without allocating or computing anything.

    Raises ValueError as `spec.build` does.
    """
    with torch.device("meta"):
        model = spec.build(signature=signature, outputs=outputs).eval()
        return profile_of_module(model, model_input(signature, 1))


def profile_of_module(model: nn.Module, x: Tensor) -> Profile:
    """Return the profile of any module on one row x (1, ...).

    A layer that runs several times counts its multiply-accumulates each time and its parameters once, and is listed
    with its last output; one with parameters that never runs is listed last, with an empty output shape.
    """
    named = {module: name for name, module in model.named_modules()}
    holders = [module for module in named if next(module.parameters(recurse=False), None) is not None]
    ran: dict[nn.Module, tuple[int, ...]] = {}
    macs: Counter[nn.Module] = Counter()

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        ran[module] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        macs[module] += _macs(module, ran[module])

    handles = [module.register_forward_hook(record) for module in holders]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    counted: set[Tensor] = set()
    layers = []
    for module in (*ran, *(module for module in holders if module not in ran)):
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in counted]
        counted.update(own)
        layers.append(
            LayerProfile(
                name=named[module],
                kind=type(module).__name__,
                output_shape=ran.get(module, ()),
                parameters=sum(parameter.numel() for parameter in own),
                macs={getattr(module, "mac_bits", FULL_PRECISION_BITS): macs[module]} if macs[module] else {},
            )
        )
    return Profile(
        tuple(layers),
        _bytes(model),
        _notes(holders, any("Attention" in type(module).__name__ for module in named), layers),
    )


def _macs(module: nn.Module, output_shape: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of one call on one row; 0 for what is no convolution or linear layer."""
    if isinstance(module, nn.Conv2d):
        return math.prod(output_shape) * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return math.prod(output_shape) * module.in_features
    return 0


def _bytes(model: nn.Module) -> dict[str, int]:
    total = Counter[str]()
    layers: Any = [module for module in model.modules() if hasattr(module, "weight_bits")]
    few: dict[Tensor, int] = {layer.weight: layer.weight_bits for layer in layers}
    for parameter in model.parameters():
        bits = few.get(parameter, FULL_PRECISION_BITS)
        if bits < FULL_PRECISION_BITS:
            total[f"{bits} bit"] += -(-parameter.numel() * bits // 8)
        else:
            total[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    return dict(total)


def _notes(layers: list[nn.Module], attends: bool, profiles: Sequence[LayerProfile]) -> tuple[str, ...]:
    notes = []
    macs = Counter[int]()
    for profile in profiles:
        macs.update(profile.macs)
    if macs.keys() - {FULL_PRECISION_BITS}:
        shares = ", ".join(f"{count(number)} of {bits} bit" for bits, number in sorted(macs.items()))
        notes.append(f"MACs by the bits of the larger factor: {shares}")
    if any(isinstance(layer, nn.Embedding) for layer in layers):
        notes.append("gathers of embedding rows, and their sum, count as 0 MACs")
    if attends:
        notes.append("the products of attention (queries with keys, weights with values) count as 0 MACs")
    return tuple(notes)
