"""Decoded images and encoded texts on disk: one `.npy` a split, with its checksum beside it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compress.datasets.base import UInt8Array
from compress.datasets.decode import DECODE_VERSION, ImageOptions, Images, Shape
from runtime.files import folder_atomically, json_text, sha256_of_file

log = logging.getLogger(__name__)

_PIXELS = "pixels.npy"  # of text, too: what older versions have kept stays valid
_RECORD = "record.json"

T = TypeVar("T", bound=np.generic)
Made = tuple[npt.NDArray[T], dict[int, str]]


def cache_key(file_hashes: Sequence[str], options: ImageOptions, shape: Shape, **extra: str) -> str:
    """Return the sha256 hex that names the decoded form of files with these sha256, in this order."""
    description = {
        "version": DECODE_VERSION,
        "files": list(file_hashes),
        "options": options.model_dump(mode="json", include={"size", "mode", "share"}),
        "shape": list(shape),
        **extra,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def cached_images(cache: Path | None, key: str, rows: int, shape: Shape, decode: Callable[[], Images]) -> Images:
    """Return the images that `cache` holds under `key`, memory-mapped, else those of `decode()`, kept."""

    def make() -> tuple[UInt8Array, dict[int, str]]:
        images = decode()
        return images.pixels, images.bad

    return Images(*cached_rows(cache, key, (rows, *shape), np.uint8, make))


def cached_rows(
    cache: Path | None, key: str, shape: tuple[int, ...], dtype: type[T], make: Callable[[], Made[T]]
) -> Made[T]:
    """Return what `cache` holds under `key`, memory-mapped, else what `make()` gives, kept.

    That is an array of `shape` and `dtype`, a row each, and what is wrong with the rows that cannot be used. What lies
    in the cache is checked (checksum, dtype, shape); a damaged entry is built again with a logged warning.
    """
    if cache is None:
        return make()
    entry = cache / key
    if entry.exists():
        try:
            return _read(entry, shape, dtype)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("cached rows in %s are damaged and are built again: %s", entry, error)
    array, bad = make()
    _keep(entry, array, bad)
    return array, bad


def _read(entry: Path, shape: tuple[int, ...], dtype: type[T]) -> Made[T]:
    record: dict[str, Any] = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    if (came := sha256_of_file(entry / _PIXELS)) != record["sha256"]:
        raise ValueError(f"{_PIXELS} has sha256 {came[:12]}…, expected {record['sha256'][:12]}…")
    array = np.load(entry / _PIXELS, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{_PIXELS} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    return array, {int(row): str(reason) for row, reason in record["bad"].items()}


def _keep(entry: Path, array: npt.NDArray[Any], bad: dict[int, str]) -> None:
    try:
        with folder_atomically(entry) as folder:
            np.save(folder / _PIXELS, array, allow_pickle=False)
            record = {
                "sha256": sha256_of_file(folder / _PIXELS),
                "bad": {str(row): reason for row, reason in bad.items()},
            }
            (folder / _RECORD).write_text(json_text(record), encoding="utf-8")
    except OSError as error:
        # The rows are in memory, and another process may have put the same entry there: no reason to fail.
        if not (entry / _RECORD).exists():
            log.warning("decoded rows could not be kept in %s: %s", entry, error)
