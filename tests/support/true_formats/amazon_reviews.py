"""Amazon reviews as Zhang, Zhao & LeCun publish them: class, title, text; quoted, line breaks written as \\n."""

from __future__ import annotations

from pathlib import Path

from true_formats.words import sentences


def write(root: Path, *, rows: int = 40, seed: int = 0, classes: int = 5) -> None:
    """Write `root`/amazon_reviews/amazon_review_full_csv with `rows` train and `rows` / 2 test rows, classes in turn.

    classes: 2 for amazon_review_polarity_csv.
    """
    folder = root / "amazon_reviews" / f"amazon_review_{'full' if classes == 5 else 'polarity'}_csv"
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, count) in enumerate((("train", rows), ("test", rows // 2))):
        labels = [row % classes for row in range(count)]
        texts = sentences(labels, classes=classes, seed=2 * seed + place)
        lines = [
            f'"{label + 1}","A ""title"", {row}","{text},\\nand so on"\n'
            for row, (text, label) in enumerate(zip(texts, labels, strict=True))
        ]
        (folder / f"{name}.csv").write_bytes("".join(lines).encode())
