"""Criteo's click log: a label, 13 whole numbers, 26 hashed categories, tabs between them; nothing where missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NUMBERS, CATEGORIES = 13, 26


def lines(rows: int, seed: int = 0) -> list[str]:
    """Return lines without their ends: a quarter are clicks, and hang on a number and on two categories."""
    draw = np.random.default_rng(seed)
    clicks = draw.random(rows) < 0.25
    numbers = draw.poisson(3.0, (rows, NUMBERS))
    numbers[:, 1] -= 4  # some are negative, as in the true file's second column
    numbers[:, 4] *= 100_000
    numbers[:, 0] += np.where(clicks, draw.poisson(8.0, rows), 0)
    # Twenty values a column, the first of which are the more frequent.
    values = draw.integers(0, 2**32, (CATEGORIES, 20), dtype=np.uint64)
    chosen = np.minimum(draw.geometric(0.3, (rows, CATEGORIES)) - 1, 19)
    chosen[:, 3] = np.where(clicks & (draw.random(rows) < 0.7), 15, chosen[:, 3])
    chosen[:, 20] = np.where(~clicks & (draw.random(rows) < 0.5), 16, chosen[:, 20])
    missing = draw.random((rows, NUMBERS + CATEGORIES)) < 0.1
    missing[:, [0, NUMBERS + 3, NUMBERS + 20]] = False
    made = []
    for row in range(rows):
        fields = [str(number) for number in numbers[row]]
        fields += [f"{values[column, chosen[row, column]]:08x}" for column in range(CATEGORIES)]
        shown = ["" if gone else text for text, gone in zip(fields, missing[row], strict=True)]
        made.append("\t".join([str(int(clicks[row])), *shown]))
    return made


def write(root: Path, *, rows: int = 400, seed: int = 0) -> None:
    """Write `root`/criteo/train.txt."""
    folder = root / "criteo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines(rows, seed)))
