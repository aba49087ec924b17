"""CoLA as GLUE packs it: source, label, the linguists' own mark, sentence; tab-separated, no header, no quoting."""

from __future__ import annotations

from pathlib import Path

from true_formats.words import sentences


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/cola/CoLA with `rows` train and `rows` / 2 dev rows, the classes in turn."""
    folder = root / "cola" / "CoLA"
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, count) in enumerate((("train", rows), ("dev", rows // 2))):
        labels = [row % 2 for row in range(count)]
        texts = sentences(labels, classes=2, seed=2 * seed + place)
        lines = [f"gj04\t{label}\t{'' if label else '*'}\t{text}.\n" for text, label in zip(texts, labels, strict=True)]
        (folder / f"{name}.tsv").write_bytes("".join(lines).encode())
