"""Results on disk: a folder a stage, keyed by content, whole or absent.

`runs/stages/<key>/` holds `weights.safetensors`, `log.jsonl` and, written last, `stage.json` with the hashes of both.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from runtime.errors import RecipeError
from runtime.files import sha256_of_bytes, sha256_of_file, write_atomically, write_json

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class StageArtifact:
    """A finished stage. `record` is its stage.json."""

    folder: Path
    record: dict[str, Any]
    weights_file: str = WEIGHTS

    @property
    def key(self) -> str:
        return self.record["key"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.record["metrics"]

    @property
    def weights_bytes(self) -> int:
        return (self.folder / self.weights_file).stat().st_size

    def weights(self) -> dict[str, Tensor]:
        return load((self.folder / self.weights_file).read_bytes())

    def log(self) -> list[dict[str, Any]]:
        """Return one record per epoch."""
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]


class StageStore:
    """All finished stages below `runs/stages`, shared by every recipe."""

    def __init__(self, runs: Path) -> None:
        self.root = runs / "stages"

    def folder(self, key: str) -> Path:
        return self.root / key

    def find(self, key: str, warn: Callable[[str], None]) -> StageArtifact | None:
        """Return the finished, intact stage `key`, or None. A damaged one is removed, with a warning."""
        folder = self.folder(key)
        if not (folder / "stage.json").exists():
            return None
        damage = _damage(folder, key)
        if damage is None:
            return StageArtifact(folder, json.loads((folder / "stage.json").read_text()))
        warn(f"warning: the stored stage {folder} is damaged ({damage}) and will be made again")
        (folder / "stage.json").unlink()
        return None

    def save(
        self,
        key: str,
        weights: Mapping[str, Tensor],
        *,
        resolved: Mapping[str, Any],
        metrics: Mapping[str, Any],
    ) -> StageArtifact:
        """Write a finished stage; its log must be there already. Checkpoints are dropped."""
        folder = self.folder(key)
        data = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
        write_atomically(folder / "weights.safetensors", data)
        record = {
            "format_version": FORMAT_VERSION,
            "key": key,
            "resolved": dict(resolved),
            "metrics": dict(metrics),
            "versions": versions(),
            "sha256": {
                "weights.safetensors": sha256_of_bytes(data),
                "log.jsonl": sha256_of_file(folder / "log.jsonl"),
            },
        }
        record["record_sha256"] = _record_hash(record)
        write_json(folder / "stage.json", record)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        return StageArtifact(folder, record)


def read_artifact(path: Path) -> StageArtifact:
    """Return the finished stage at `path`: a folder, or a file of weights with its stage.json beside it.

    Its log may be missing. Raises RecipeError where it is not there or not intact.
    """
    folder, weights = (path.parent, path.name) if path.suffix == ".safetensors" else (path, WEIGHTS)
    try:
        record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        intact = record["format_version"] == FORMAT_VERSION and record["record_sha256"] == _record_hash(record)
        if not intact:
            raise RecipeError(f"{path}: stage.json is damaged or of another version of edgefold")
        if sha256_of_file(folder / weights) != record["sha256"][WEIGHTS]:
            raise RecipeError(f"{path}: {weights} is not what stage.json says", "Copy both files again.")
    except OSError as error:
        missing = Path(error.filename or folder).name
        raise RecipeError(
            f"{path}: {missing} cannot be read: {error.strerror}",
            "Name the folder of a finished stage, from the working folder: `runs/stages/<key>`.",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"{path}: stage.json cannot be read", "Copy the finished stage again.") from None
    return StageArtifact(folder, record, weights)


def _damage(folder: Path, key: str) -> str | None:
    try:
        record = json.loads((folder / "stage.json").read_text())
        if record["format_version"] != FORMAT_VERSION or record["key"] != key:
            return "stage.json is of another stage or version"
        if record["record_sha256"] != _record_hash(record):
            return "stage.json does not match its checksum"
        for name, expected in record["sha256"].items():
            if sha256_of_file(folder / name) != expected:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "stage.json cannot be read"
    return None


def _record_hash(record: Mapping[str, Any]) -> str:
    """Return the sha256 of all that stage.json says, but for this very hash."""
    content = {name: value for name, value in record.items() if name != "record_sha256"}
    return sha256_of_bytes(json.dumps(content, sort_keys=True).encode())


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


@contextlib.contextmanager
def locked(path: Path, what: str, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`; when another process has it, say so and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"{what} is in use by another edgefold process; waiting for it to end (Ctrl-C to give up)")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
