"""ILSVRC 2012 as it is unpacked: JPEGs of many sizes, a directory a class, named by their WordNet ids."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
# Width and height, in turn: wide, tall, square and smaller than the 224 pixels that are shown.
SIZES = ((50, 37), (37, 50), (40, 40), (20, 30))


def jpeg(width: int, height: int, *, seed: int, mode: str = "RGB") -> bytes:
    """Return a smooth random picture: a JPEG of noise would be as large as the pixels."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/imagenet with `rows` train and `rows` / 2 val images of four classes in turn.

    The third image is grey and the fourth CMYK: the published set has both.
    """
    modes = {2: "L", 3: "CMYK"}
    for split, count in (("train", rows), ("val", rows // 2)):
        for row in range(count):
            wnid = WNIDS[row % len(WNIDS)]
            name = f"{wnid}_{row}.JPEG" if split == "train" else f"ILSVRC2012_val_{row + 1:08d}.JPEG"
            path = root / "imagenet" / split / wnid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = jpeg(*SIZES[row % 4], seed=seed + 1000 * row + len(split), mode=modes.get(row, "RGB"))
            path.write_bytes(content)
