"""Weights that were trained elsewhere, read without unpickling code, and put into a model of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from runtime.errors import DataError

SHOWN = 8  # keys of a kind that a message names
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys below which training scripts put the weights
_PARALLEL = "module."  # what torch's DataParallel puts before every name
_COUNTER = "num_batches_tracked"  # of a batch norm in training; not read in evaluation


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a state dict that `torch.save` wrote, by name.

    Raises DataError where it is something else, or would have to be unpickled.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "Name the file of the weights.") from None
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(data)
        except SafetensorError as error:
            raise DataError(f"{path}: not a whole safetensors file ({error})", "Save or copy it again.") from None
    return _state_dict(path)


def load_into(model: nn.Module, weights: Mapping[str, Tensor], path: Path, model_name: str) -> None:
    """Put `weights` into `model`. Raises DataError naming all that is missing, left over or of another shape."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights and not key.endswith(_COUNTER)]
    extra = [key for key in weights if key not in expected and not key.endswith(_COUNTER)]
    misshapen = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    lines = [f"  missing {key} {_shape(expected[key])}{_near(key, extra)}" for key in missing[:SHOWN]]
    lines += _more(missing, "missing")
    lines += [f"  unexpected {key} {_shape(weights[key])}" for key in extra[:SHOWN]]
    lines += _more(extra, "unexpected")
    lines += [
        f"  {key} is {_shape(weights[key])}, expected {_shape(expected[key])}" for key in misshapen[:SHOWN]
    ] + _more(misshapen, "of another shape")
    if lines:
        counts = f"{len(missing)} missing, {len(extra)} unexpected, {len(misshapen)} of another shape"
        raise DataError(
            "\n".join([f"{path}: not the weights of {model_name}: {counts}", *lines]),
            "Check the model's options, --input, --classes and --subclasses, or rename the tensors.",
        )
    if broken := [key for key, value in weights.items() if key in expected and not bool(value.isfinite().all())]:
        raise DataError(f"{path}: {broken[0]} has numbers that are not finite", "Export the weights of another epoch.")
    model.load_state_dict({**expected, **{key: value for key, value in weights.items() if key in expected}})


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is refused and what is damaged raise types of many modules
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            f"{path}: torch does not read it as weights alone: {reason}",
            "Save the tensors only: torch.save(model.state_dict(), path), or safetensors.torch.save_file.",
        ) from None
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not value or not all(isinstance(each, Tensor) for each in value.values()):
        keys = ", ".join(map(str, list(value)[:4])) if isinstance(value, Mapping) else ""
        came = f"a mapping with {keys or 'no keys'}" if isinstance(value, Mapping) else type(value).__name__
        raise DataError(f"{path}: holds {came}; expected tensors by name", "torch.save(model.state_dict(), path)")
    if all(key.startswith(_PARALLEL) for key in value):
        return {key.removeprefix(_PARALLEL): each for key, each in value.items()}
    return dict(value)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _near(key: str, others: list[str]) -> str:
    near = get_close_matches(key, others, n=1, cutoff=0.5)
    return f" (there is {near[0]})" if near else ""


def _more(keys: list[str], what: str) -> list[str]:
    return [f"  and {len(keys) - SHOWN} more {what}"] if len(keys) > SHOWN else []
