"""SST-2 as GLUE packs it: tab-separated, a header, a blank after each sentence, quotes as they stand."""

from __future__ import annotations

from pathlib import Path

from true_formats.words import sentences


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/sst2/SST-2 with `rows` train and `rows` / 2 dev rows, the classes in turn."""
    folder = root / "sst2" / "SST-2"
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, count) in enumerate((("train", rows), ("dev", rows // 2))):
        labels = [row % 2 for row in range(count)]
        texts = sentences(labels, classes=2, seed=2 * seed + place)
        lines = [f"{text} \t{label}\n" for text, label in zip(texts, labels, strict=True)]
        (folder / f"{name}.tsv").write_bytes("".join(["sentence\tlabel\n", *lines]).encode())
