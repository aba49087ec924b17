"""Training checkpoints: whole or absent, checked by hash, nothing unpickled.

A checkpoint is `<step>.safetensors` (every tensor) and `<step>.json` (the rest, and the hash of the tensors), written
in this order: without its JSON a checkpoint does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from runtime.files import sha256_of_bytes, write_atomically, write_json

FORMAT_VERSION = 1
KEPT = 2  # The newest may be the one that a power cut damaged.


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, key: str
) -> None:
    """Write one checkpoint and drop all but the newest `KEPT`."""
    # Cloned, because safetensors refuses tensors that share memory (tied weights, views).
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    write_atomically(folder / f"{step:010d}.safetensors", data)
    record = {
        "format_version": FORMAT_VERSION,
        "key": key,
        "sha256": sha256_of_bytes(data),
        "state": dict(state),
    }
    write_json(folder / f"{step:010d}.json", record)
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink()  # The JSON first: tensors without it are ignored.
    for file in folder.glob("*.safetensors"):
        if not file.with_suffix(".json").exists():  # dropped above, or left by a process that was killed
            file.unlink()


def newest_checkpoint(folder: Path, *, key: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint of stage `key`, and the names of damaged ones that were passed over."""
    damaged: list[str] = []
    for record in sorted(folder.glob("*.json"), reverse=True):
        checkpoint = _read(record, key)
        if checkpoint is not None:
            return checkpoint, damaged
        damaged.append(record.stem)
    return None, damaged


def _read(path: Path, key: str) -> Checkpoint | None:
    try:
        record = json.loads(path.read_text())
        data = path.with_suffix(".safetensors").read_bytes()
        if (
            record["format_version"] != FORMAT_VERSION
            or record["key"] != key
            or record["sha256"] != sha256_of_bytes(data)
        ):
            return None
        return Checkpoint(int(path.stem), load(data), record["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors, `<parameter number>.<name>`."""
    return {
        f"{number}.{name}": value
        for number, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back; rates and other settings stay as the recipe built them."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, slot = name.split(".", 1)
        state.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}
