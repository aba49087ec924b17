"""Layers that are exported as something simpler than what trains: the protocol between a model and the exporter.

A submodule with a method `for_export(self) -> nn.Module` is replaced by what that returns: a module of plain buffers
that does exactly the arithmetic of evaluation mode. A module with the class attribute `packs_as` is a binary layer, and
says which operator of the packed graph it has to become (`runtime/ops/README.md`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import nn

PACKED_OPERATORS = ("BinaryConv", "BinaryGemm")


def binary_layers(module: nn.Module) -> Mapping[str, str]:
    """Return the operator of each binary layer by the layer's name, in the order of the modules."""
    found = ((name, getattr(each, "packs_as", None)) for name, each in module.named_modules())
    return {name: operator for name, operator in found if operator is not None}


def with_exported_layers(module: nn.Module) -> nn.Module:
    """Return `module` itself, or a copy of it in which every submodule with `for_export` is replaced."""
    if not any(hasattr(each, "for_export") for each in module.modules()):
        return module
    module = copy.deepcopy(module)
    replaced: dict[nn.Module, nn.Module] = {}  # a layer that stands in two places stays one
    _replace_below(module, replaced)
    return module


def _replace_below(module: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    for name, child in module.named_children():
        if not hasattr(child, "for_export"):
            _replace_below(child, replaced)
            continue
        if child not in replaced:
            make: Callable[[], nn.Module] = child.for_export  # type: ignore[assignment]
            replaced[child] = make().train(child.training)
        setattr(module, name, replaced[child])
