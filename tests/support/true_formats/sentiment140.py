"""Sentiment140: polarity, id, date, query, user, text; all quoted, latin-1, no header; test has neutral rows, too."""

from __future__ import annotations

from pathlib import Path

from true_formats.words import sentences


def write(root: Path, *, rows: int = 40, seed: int = 0) -> None:
    """Write `root`/sentiment140 with `rows` train rows in class order and `rows` test rows, a third neutral."""
    folder = root / "sentiment140"
    folder.mkdir(parents=True, exist_ok=True)
    train = [2 * row // rows for row in range(rows)]
    test = [(0, 2, 1)[row % 3] for row in range(rows)]
    files = {"training.1600000.processed.noemoticon.csv": train, "testdata.manual.2009.06.14.csv": test}
    for place, (name, labels) in enumerate(files.items()):
        texts = sentences(labels, classes=3, seed=2 * seed + place)
        lines = [
            f'"{(0, 4, 2)[label]}","{row}","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","me","@café {text}, &quot;"\n'
            for row, (text, label) in enumerate(zip(texts, labels, strict=True))
        ]
        (folder / name).write_bytes("".join(lines).encode("latin-1"))
