"""STL-10's own files: planes of raw pixels, column by column, and labels from 1, as the authors' page has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def image_bytes(images: np.ndarray) -> bytes:
    """Return images (N, 96, 96, 3) as STL-10 stores them: each channel apart, each of them column by column."""
    return b"".join(image[..., channel].tobytes(order="F") for image in images for channel in range(3))


def write_files(folder: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Path:
    """Write the unpacked files of `train` and `test`; labels from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(image_bytes(images[split]))
        (folder / f"{split}_y.bin").write_bytes((labels[split] + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return folder


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/stl10/stl10_binary with `rows` train and `rows` / 2 test rows, every class in turn."""
    draw = np.random.default_rng(seed)
    counts = {"train": rows, "test": rows // 2}
    images = {split: draw.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8) for split, count in counts.items()}
    labels = {split: np.arange(count) % 10 for split, count in counts.items()}
    write_files(root / "stl10" / "stl10_binary", images, labels)
