"""CIFAR-10's binary version: rows of a label byte and three planes of pixels, as the authors' page describes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


def planes(images: np.ndarray) -> np.ndarray:
    """Return images (N, 32, 32, 3) as rows (N, 3072): the red plane, the green, the blue."""
    return np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])


def binary_rows(images: np.ndarray, *labels: Sequence[int]) -> bytes:
    """Return rows of one byte of each of `labels`, then the image."""
    heads = zip(*labels, strict=True)
    return b"".join(bytes(head) + row.tobytes() for head, row in zip(heads, planes(images), strict=True))


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/cifar10/cifar-10-batches-bin: `rows` train rows in five batches and `rows` / 2 test rows."""
    folder = root / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    for name, part in zip(BATCHES, np.array_split(np.arange(rows), len(BATCHES)), strict=True):
        (folder / name).write_bytes(binary_rows(images[part], (part % 10).tolist()))
    test = draw.integers(0, 256, (rows // 2, 32, 32, 3), dtype=np.uint8)
    (folder / "test_batch.bin").write_bytes(binary_rows(test, [row % 10 for row in range(rows // 2)]))
