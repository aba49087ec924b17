"""Decoded images on disk: one `.npy` a split, with its checksum beside it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.datasets.decode import DECODE_VERSION, ImageOptions, Images, Shape
from runtime.files import folder_atomically, json_text, sha256_of_file

log = logging.getLogger(__name__)

_PIXELS = "pixels.npy"
_RECORD = "record.json"


def cache_key(file_hashes: Sequence[str], options: ImageOptions, shape: Shape, **extra: str) -> str:
    """Return the sha256 hex that names the decoded form of files with these sha256, in this order."""
    description = {
        "version": DECODE_VERSION,
        "files": list(file_hashes),
        "options": options.model_dump(mode="json", include={"size", "mode"}),
        "shape": list(shape),
        **extra,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def cached_images(cache: Path | None, key: str, rows: int, shape: Shape, decode: Callable[[], Images]) -> Images:
    """Return the images that `cache` holds under `key`, memory-mapped, else those of `decode()`, kept.

    What lies in the cache is checked (checksum, dtype, shape); a damaged entry is built again with a logged
    warning.
    """
    if cache is None:
        return decode()
    entry = cache / key
    if entry.exists():
        try:
            return _read(entry, (rows, *shape))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("cached images in %s are damaged and are built again: %s", entry, error)
    images = decode()
    _keep(entry, images)
    return images


def _read(entry: Path, shape: tuple[int, ...]) -> Images:
    record: dict[str, Any] = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    if (came := sha256_of_file(entry / _PIXELS)) != record["sha256"]:
        raise ValueError(f"{_PIXELS} has sha256 {came[:12]}…, expected {record['sha256'][:12]}…")
    pixels = np.load(entry / _PIXELS, mmap_mode="r", allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(f"{_PIXELS} is {pixels.dtype} {pixels.shape}, expected uint8 {shape}")
    return Images(pixels, {int(row): str(reason) for row, reason in record["bad"].items()})


def _keep(entry: Path, images: Images) -> None:
    try:
        with folder_atomically(entry) as folder:
            np.save(folder / _PIXELS, images.pixels, allow_pickle=False)
            record = {
                "sha256": sha256_of_file(folder / _PIXELS),
                "bad": {str(row): reason for row, reason in images.bad.items()},
            }
            (folder / _RECORD).write_text(json_text(record), encoding="utf-8")
    except OSError as error:
        # The images are in memory, and another process may have put the same entry there: no reason to fail.
        if not (entry / _RECORD).exists():
            log.warning("decoded images could not be kept in %s: %s", entry, error)
