"""The Large Movie Review Dataset: a file a review, named by number and stars, a directory a class."""

from __future__ import annotations

from pathlib import Path

from true_formats.words import sentences


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/imdb/aclImdb with `rows` train and `rows` test reviews, half of each class, and unlabelled ones."""
    for place, split in enumerate(("train", "test")):
        for label, name in enumerate(("neg", "pos")):
            folder = root / "imdb" / "aclImdb" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            texts = sentences([label] * (rows // 2), classes=2, seed=4 * seed + 2 * place + label, words=20)
            for number, text in enumerate(texts):
                stars = (3, 8)[label]
                (folder / f"{number}_{stars}.txt").write_bytes(f"{text}.<br /><br />The end.".encode())
    unlabelled = root / "imdb" / "aclImdb" / "train" / "unsup"
    unlabelled.mkdir(exist_ok=True)
    (unlabelled / "0_0.txt").write_bytes(b"No one knows.")
