"""What is worth knowing of binary layers while they train: signs that turn over, and channels that say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.layers.binary import QuantizedLayer
from compress.layers.latent import quantized_layers, set_progress


class BinaryWatch:
    """Follows a model's layers of latent weights or binary inputs from epoch to epoch; most models have none.

    signs: of the latent weights at the beginning of the epoch, by layer; a checkpoint must hold them.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = quantized_layers(model)
        self.model = model
        self.latent = {name: layer for name, layer in layers.items() if layer.form.latent}
        self.signed = {name: layer for name, layer in layers.items() if layer.form.activations == "binary"}
        self.signs: dict[str, Tensor] = {}

    def begin_epoch(self, progress: float, *, resumed: bool) -> None:
        """Set the layers' `progress`, the share of training that is done; note the signs, unless they were noted."""
        set_progress(self.model, progress)
        if not resumed:
            self.signs = {name: _positive(layer.weight) for name, layer in self.latent.items()}

    def end_epoch(self, x: Tensor | None) -> dict[str, Any]:
        """Return `{"binary": {...}}` for the epoch's record, {} where there is nothing to follow.

        flipped: share of the latent weights whose sign is another than when the epoch began. dead_channels: of so many
        `channels` that go into a sign, those whose sign is the same for every row and position of x, which is an input
        of the model. layers: the same of each.
        """
        if not self.latent and not self.signed:
            return {}
        flips = {
            name: ((_positive(layer.weight) != self.signs[name]).sum().item(), layer.weight.numel())
            for name, layer in self.latent.items()
        }
        dead = self._dead_channels(x) if x is not None else {}
        of_all = {**_shares(flips.values()), **_counts(dead.values())}
        names = dict.fromkeys((*flips, *dead))
        of_each = {
            name: {
                **_shares([flips[name]] if name in flips else []),
                **_counts([dead[name]] if name in dead else []),
            }
            for name in names
        }
        return {"binary": {**of_all, "layers": of_each}}

    @torch.no_grad()
    def _dead_channels(self, x: Tensor) -> dict[str, tuple[int, int]]:
        """Return (dead, all) channels of each layer's input."""
        found: dict[str, tuple[int, int]] = {}

        def look(name: str, inputs: Tensor) -> None:
            positive = _positive(inputs).transpose(0, 1).flatten(1)  # (channels, N * positions)
            constant = positive.all(1) | ~positive.any(1)
            found[name] = (int(constant.sum()), len(constant))

        handles = [_before(layer, name, look) for name, layer in self.signed.items()]
        training = self.model.training
        try:
            self.model.eval()(x)
        finally:
            self.model.train(training)
            for handle in handles:
                handle.remove()
        return found


def _before(layer: QuantizedLayer, name: str, look: Any) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        look(name, inputs[0])

    return layer.register_forward_pre_hook(hook)


def _positive(x: Tensor) -> Tensor:
    return x.detach() >= 0


def _shares(flips: Iterable[tuple[float, int]]) -> Mapping[str, float]:
    pairs = list(flips)
    weights = sum(count for _, count in pairs)
    return {"flipped": sum(turned for turned, _ in pairs) / weights} if weights else {}


def _counts(dead: Iterable[tuple[int, int]]) -> Mapping[str, int]:
    pairs = list(dead)
    channels = sum(count for _, count in pairs)
    return {"dead_channels": sum(constant for constant, _ in pairs), "channels": channels} if channels else {}
