"""A teacher's responses before its ReLUs: where they come from, and how negative they are.

Models give their maps behind the ReLU. What stood before it is the output of a layer, which is found by watching one
forward pass: the layer whose output, rectified, is the map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from compress.models.base import Classifier
from compress.objectives.functional.regressors import measured_margin, normal_margin, response_sums
from runtime.errors import TrainingError

Seen = list[tuple[nn.Module, Tensor]]


def batch_norm_margins(teacher: Classifier, x: Tensor, positions: Sequence[int]) -> list[Tensor]:
    """Return a margin (D,) for each of the teacher's maps, from the last batch norm before it.

    That is the one whose rectified output is the map; where something stands between (a residual sum), the last one
    with an output of the map's shape. x: a few inputs (n, channels, H, W).
    """
    norms = [module for module in teacher.modules() if isinstance(module, _BatchNorm)]
    with _watched(norms) as seen, torch.no_grad():
        features = teacher(x).features
    margins = []
    for position in positions:
        feature = features[position]
        same_shape = [module for module, output in seen if output.shape == feature.shape]
        norm = _source(feature, seen) or (same_shape[-1] if same_shape else None)
        if norm is None:
            raise TrainingError(
                f"ofd: the teacher has no batch norm before its map '{_name(teacher, position)}'",
                "Set margin: measured, or choose other layers.",
            )
        margins.append(_normal_margin_of(norm, feature.shape[1]))
    return margins


def measured_margins(teacher: Classifier, batches: Iterable[Tensor], positions: Sequence[int]) -> list[Tensor]:
    """Return a margin (D,) for each of the teacher's maps: the mean of the negative responses before its ReLU.

    batches: inputs (n, channels, H, W), the first of which also shows where the maps come from.
    """
    watched = [module for module in teacher.modules() if not list(module.children())]
    sources: list[nn.Module | None] = []  # None where the map itself stands before its ReLU
    sums: list[Tensor] = []
    for x in batches:
        with _watched(watched) as seen, torch.no_grad():
            features = teacher(x).features
        if not sources:
            sources = [_origin(teacher, features[position], seen, position) for position in positions]
            watched = [source for source in sources if source is not None]
        added = [
            response_sums(features[position] if source is None else _output_of(source, features[position], seen))
            for source, position in zip(sources, positions, strict=True)
        ]
        sums = [earlier + now for earlier, now in zip(sums, added, strict=True)] if sums else added
    return [measured_margin(total) for total in sums]


def _origin(teacher: Classifier, feature: Tensor, seen: Seen, position: int) -> nn.Module | None:
    if not is_rectified(feature):
        return None
    source = _source(feature, seen)
    if source is None:
        raise TrainingError(
            f"ofd: no layer of the teacher gives map '{_name(teacher, position)}' before its ReLU",
            "Set margin: batch_norm if it has batch norms, or choose other layers.",
        )
    return source


def _output_of(source: nn.Module, feature: Tensor, seen: Seen) -> Tensor:
    outputs = [output for module, output in seen if module is source]
    # A layer that is used twice has two outputs; the map says which one is meant.
    return next((output for output in outputs if torch.equal(F.relu(output), feature)), outputs[-1])


def is_rectified(feature: Tensor) -> bool:
    return bool((feature >= 0).all())


@contextlib.contextmanager
def _watched(modules: Iterable[nn.Module]) -> Iterator[Seen]:
    """Collect the outputs of modules in the order in which they are computed."""
    seen: Seen = []

    def keep(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((module, output.clone()))  # A ReLU in place would write over it.

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _source(feature: Tensor, seen: Seen) -> nn.Module | None:
    """Return the last layer whose output has negative numbers and, rectified, is the rectified map."""
    return next((module for module, output in reversed(seen) if _rectifies_to(output, feature)), None)


def _rectifies_to(output: Tensor, feature: Tensor) -> bool:
    return output.shape == feature.shape and not is_rectified(output) and torch.equal(F.relu(output), F.relu(feature))


def _normal_margin_of(norm: nn.Module, channels: int) -> Tensor:
    weight, bias = norm.weight, norm.bias  # None where the norm has no parameters
    scale = weight.detach() if isinstance(weight, Tensor) else torch.ones(channels)
    shift = bias.detach() if isinstance(bias, Tensor) else torch.zeros(channels)
    return normal_margin(scale, shift)


def _name(teacher: Classifier, position: int) -> str:
    return teacher.feature_names[position] if position < len(teacher.feature_names) else str(position + 1)
