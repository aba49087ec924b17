"""Sentences of random words that tell their class a little, for the writers of text sets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_WORDS = ("the", "a", "film", "story", "it", "was", "of", "and", "with", "this", "for", "as", "but", "scene", "plot")


def sentences(labels: list[int], *, classes: int, seed: int, words: int = 8) -> Iterator[str]:
    """Yield a sentence each label. Two of its words in three are of any class, the third is mostly of its own."""
    draw = np.random.default_rng(seed)
    for label in labels:
        told = label if draw.random() < 0.9 else int(draw.integers(classes))
        yield " ".join(
            f"{('bad', 'good', 'fair', 'dull', 'fine')[told]}{draw.integers(3)}"
            if place % 3 == 2
            else _WORDS[draw.integers(len(_WORDS))]
            for place in range(words)
        )
