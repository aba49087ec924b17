"""What the invented subclasses have found: their share, the hidden label they agree with, the inputs they like best."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from compress.datasets.stream import ImageStream

IMAGES_PER_SUBCLASS = 10
TEXTS_PER_SUBCLASS = 5
TEXT_LENGTH = 160  # characters shown


@dataclass(frozen=True)
class Subclass:
    """One invented subclass on a split. `share` is of all rows; `purity` is of its own rows.

    The inputs that activate it most, strongest first: `strip` (a PNG data address) of images, `texts` of texts.
    """

    name: str
    class_name: str
    share: float
    hidden_name: str | None
    purity: float | None
    strip: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """All subclasses of one stage. `counts` (hidden labels, C*S) is None where there are no hidden labels."""

    stage: str
    subclasses: tuple[Subclass, ...]
    counts: np.ndarray | None
    hidden_names: tuple[str, ...]

    @property
    def of_texts(self) -> bool:
        return any(subclass.texts for subclass in self.subclasses)


def build_gallery(
    stage: str,
    logits: np.ndarray,
    images: np.ndarray | ImageStream | None,
    *,
    texts: np.ndarray | None = None,
    class_names: Sequence[str],
    hidden: np.ndarray | None,
    hidden_names: Sequence[str] | None,
) -> Gallery:
    """Describe each subclass from logits (N, C*S) on images (N, H, W, channels) or texts (N,), and hidden labels."""
    width = logits.shape[1]
    per_class = width // len(class_names)
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    winner = logits.argmax(1)
    names = tuple(hidden_names or ())
    counts = None
    if hidden is not None and names:
        counts = np.bincount(hidden * width + winner, minlength=len(names) * width).reshape(len(names), width)
    subclasses = []
    for index in range(width):
        favourites = np.argsort(-probabilities[:, index], kind="stable")
        rows = int((winner == index).sum())
        agrees = None if counts is None or rows == 0 else int(counts[:, index].argmax())
        subclasses.append(
            Subclass(
                name=f"{class_names[index // per_class]} · {index % per_class + 1}",
                class_name=class_names[index // per_class],
                share=rows / len(logits),
                hidden_name=None if agrees is None else names[agrees],
                purity=None if agrees is None or counts is None else float(counts[agrees, index] / rows),
                strip=_strip(images[favourites[:IMAGES_PER_SUBCLASS]]) if rows and images is not None else "",
                texts=shortened(texts[favourites[:TEXTS_PER_SUBCLASS]]) if rows and texts is not None else (),
            )
        )
    return Gallery(stage, tuple(subclasses), counts, names)


def picture(image: np.ndarray) -> str:
    """Return an image (H, W, channels) as a PNG data address, stretched to all of 0 to 255."""
    return _strip(image[None])


def shortened(texts: np.ndarray) -> tuple[str, ...]:
    """Return texts (N,) as single lines of at most `TEXT_LENGTH` characters."""
    lines = [" ".join(str(text).split()) for text in texts]
    return tuple(line if len(line) <= TEXT_LENGTH else f"{line[: TEXT_LENGTH - 1]}…" for line in lines)


def _strip(images: np.ndarray) -> str:
    """Return images (n, H, W, channels) side by side as a PNG data address, each stretched to all of 0 to 255."""
    images = images.astype(np.float32)
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    stretched = (255 * (images - low) / np.maximum(high - low, 1)).astype(np.uint8)
    gap = np.full((*stretched.shape[:2], 1, stretched.shape[3]), 255, np.uint8)
    row = np.concatenate(
        [part for image, space in zip(stretched, gap, strict=True) for part in (image, space)], axis=1
    )[:, :-1]
    if row.shape[2] not in (1, 3):
        row = row[:, :, :1]
    buffer = io.BytesIO()
    Image.fromarray(row.squeeze(2) if row.shape[2] == 1 else row).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
