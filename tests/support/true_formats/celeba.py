"""CelebA as its authors publish it: aligned JPEGs, the list of forty attributes, the list of splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from true_formats.imagenet import jpeg

NAMES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
WIDTH, HEIGHT = 178, 218


def values_of(rows: int, seed: int) -> np.ndarray:
    """Return 1 or -1 (rows, 40). The first four rows of every eight have Male, and every second row Smiling."""
    values = np.random.default_rng(seed).choice([-1, 1], (rows, 40))
    names = NAMES.split()
    values[:, names.index("Male")] = np.where(np.arange(rows) % 8 < 4, 1, -1)
    values[:, names.index("Smiling")] = np.where(np.arange(rows) % 2 == 0, 1, -1)
    return values


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/celeba: `rows` train images, then `rows` / 2 each of validation and test."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    total = rows + 2 * (rows // 2)
    files = [f"{row + 1:06d}.jpg" for row in range(total)]
    for row, file in enumerate(files):
        (folder / "img_align_celeba" / file).write_bytes(jpeg(WIDTH, HEIGHT, seed=1000 * seed + row))
    lines = [
        f"{file} " + " ".join(f"{value:2d}" for value in values)
        for file, values in zip(files, values_of(total, seed), strict=True)
    ]
    attributes = "\n".join([str(total), f"{NAMES} ", *lines]) + "\n"  # with the space that ends the published line
    (folder / "list_attr_celeba.txt").write_text(attributes, encoding="utf-8")
    splits = [0] * rows + [1] * (rows // 2) + [2] * (rows // 2)
    partition = "".join(f"{file} {split}\n" for file, split in zip(files, splits, strict=True))
    (folder / "list_eval_partition.txt").write_text(partition, encoding="utf-8")
