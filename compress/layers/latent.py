"""What a whole model's layers have in common: latent weights, and how far training has come."""

from __future__ import annotations

from torch import nn

from compress.layers.binary import QuantizedLayer


def latent_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of which only signs (or signs and zeros) are deployed, in the model's order.

    Weight decay draws them to 0, where the gradient's noise turns signs over, and does nothing else: of their size
    nothing is deployed. So they should have none.
    """
    return [layer.weight for layer in quantized_layers(model).values() if layer.form.latent]


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def set_progress(model: nn.Module, progress: float) -> None:
    """Say which share of training is done; the tanh estimator sharpens with it."""
    for layer in quantized_layers(model).values():
        layer.progress = progress
