"""CIFAR-100's binary version: rows of a coarse and a fine label byte and three planes of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from true_formats.cifar10 import binary_rows


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/cifar100/cifar-100-binary with `rows` train and `rows` / 2 test rows, every fine class in turn."""
    folder = root / "cifar100" / "cifar-100-binary"
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for name, count in (("train.bin", rows), ("test.bin", rows // 2)):
        images = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        fine = [row % 100 for row in range(count)]
        (folder / name).write_bytes(binary_rows(images, [label // 5 for label in fine], fine))
