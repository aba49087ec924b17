"""The sentence polarity data set: a file a class, a sentence a line, in the signs of Windows."""

from __future__ import annotations

from pathlib import Path

from true_formats.words import sentences


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/rotten_tomatoes/rt-polaritydata with `rows` sentences, half of each class."""
    folder = root / "rotten_tomatoes" / "rt-polaritydata"
    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(("neg", "pos")):
        texts = sentences([label] * (rows // 2), classes=2, seed=2 * seed + label)
        lines = [f"{text} clichéd … \n" for text in texts]
        (folder / f"rt-polarity.{name}").write_bytes("".join(lines).encode("cp1252"))
