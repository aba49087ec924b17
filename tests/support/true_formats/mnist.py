"""MNIST's own files: IDX, as LeCun's page describes the format."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array of unsigned bytes as IDX: two zero bytes, 0x08, the rank, big-endian sizes, the data."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/mnist with `rows` train and `rows` / 2 test rows, every class in turn."""
    folder = root / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for stem, count in (("train", rows), ("t10k", rows // 2)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
