"""Augmentation of whole batches on their device: uint8 (N, H, W, channels) in and out, no loop over images.

What becomes of an image is one of a number of choices. They are drawn apart from their application, so that an outcome
can be made again: whatever is computed of it (a teacher's outputs) can be kept where there are few.

Draws come from the generator that is passed in and from nothing else, on the generator's own device: with a
CPU generator a batch on a GPU is augmented as it would be on a CPU.

The random part of a streamed image is another matter: it is chosen while the image is decoded, by seed, epoch and row.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor
from torch.nn import functional

from compress.datasets.decode import Box, Cut
from compress.datasets.stream import CutOfRow
from compress.kinds import Spec

Pixels = Annotated[int, Field(ge=1, le=256)]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=16)]
# Keeps these draws apart from those that other parts make from the same seed.
STREAM = 0x5B1F_0D03
# Parts that are tried before the centred one is taken.
TRIES = 10


class Augmentation(Spec):
    """A random change of images, drawn anew for each image and epoch."""

    @property
    def choices(self) -> int:
        """In how many ways an image may come out, all equally likely."""
        raise NotImplementedError(f"{type(self).__name__} must define choices")

    def apply(self, batch: Tensor, choice: Tensor) -> Tensor:
        """Return a batch of the same shape and dtype, image n in the way choice[n] (N,) of 0 to choices - 1.

        The one given is left as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply")

    @property
    def reach(self) -> int:
        """How far pixels move, at most; it must be less than the image's shorter side."""
        return 0


class Crop(Augmentation):
    """Pad by `padding` zeros on every side, then crop the original size at an even random place."""

    kind = "crop"

    padding: Pixels

    @property
    def choices(self) -> int:
        return (2 * self.padding + 1) ** 2

    @property
    def reach(self) -> int:
        return self.padding

    def apply(self, batch: Tensor, choice: Tensor) -> Tensor:
        # The crop at (y, x) of the padded image is the image moved by (padding - y, padding - x).
        return shift(batch, self.padding - _place(choice, 2 * self.padding + 1), self.padding)


class Flip(Augmentation):
    """Mirror left and right, each image with probability one half."""

    kind = "flip"

    @property
    def choices(self) -> int:
        return 2

    def apply(self, batch: Tensor, choice: Tensor) -> Tensor:
        return torch.where(choice.bool()[:, None, None, None], batch.flip(2), batch)


class Translate(Augmentation):
    """Move by -`pixels` to `pixels` rows and columns, evenly; what comes into the image is zero."""

    kind = "translate"

    pixels: Pixels

    @property
    def choices(self) -> int:
        return (2 * self.pixels + 1) ** 2

    @property
    def reach(self) -> int:
        return self.pixels

    def apply(self, batch: Tensor, choice: Tensor) -> Tensor:
        return shift(batch, _place(choice, 2 * self.pixels + 1) - self.pixels, self.pixels)


class RandomResizedCrop(Augmentation):
    """A random part of each image, resized, chosen while a streamed image is decoded (Szegedy et al. 2015).

    scale: the part's share of the area, evenly. ratio: its width by its height, evenly in the logarithm. Where ten such
    parts do not lie within the image, the largest centred part of the nearest ratio is shown.
    """

    kind = "random_resized_crop"

    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)

    @field_validator("scale", "ratio")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise PydanticCustomError("bounds", "expected the lower bound before the upper one")
        return bounds

    def in_epoch(self, *, seed: int, epoch: int) -> CutOfRow:
        """Return what chooses each row's part. It hangs on seed, epoch and row alone, so a resumed run has it too."""

        def of_row(row: int) -> Cut:
            # A hash and not a generator: to seed one for each row takes as long as to decode a small image.
            words = struct.pack("<4Q", STREAM, seed % (1 << 64), epoch, row)
            drawn = np.frombuffer(hashlib.shake_128(words).digest(8 * (2 * TRIES + 2)), dtype="<u8")
            evenly = ((drawn >> 11) * 2.0**-53).tolist()  # in [0, 1)
            return lambda width, height: self._part(width, height, evenly)

        return of_row

    def _part(self, width: int, height: int, drawn: Sequence[float]) -> Box:
        across, down, *tries = drawn
        for area, form in zip(tries[::2], tries[1::2], strict=True):
            share = self.scale[0] + area * (self.scale[1] - self.scale[0])
            ratio = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** form
            w, h = (round(math.sqrt(width * height * share * r)) for r in (ratio, 1 / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
                return (left, top, left + w, top + h)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return (left, top, left + w, top + h)


AUGMENTATIONS: dict[str, type[Spec]] = {
    "crop": Crop,
    "flip": Flip,
    "random_resized_crop": RandomResizedCrop,
    "translate": Translate,
}


def in_decoding(specs: Sequence[Augmentation]) -> RandomResizedCrop | None:
    """Return the augmentation that is made while images are decoded, None where there is none."""
    return next((spec for spec in specs if isinstance(spec, RandomResizedCrop)), None)


def of_batches(specs: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """Return the augmentations that are made of decoded images."""
    return tuple(spec for spec in specs if not isinstance(spec, RandomResizedCrop))


class Augment:
    """Augmentations in order, as one: `choices` is the product of theirs."""

    def __init__(self, specs: Sequence[Augmentation]) -> None:
        self.specs = tuple(specs)
        self.choices = math.prod(spec.choices for spec in self.specs)

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return a choice for each of `rows` images, integers (N,) on the generator's device."""
        return torch.randint(self.choices, (rows,), generator=generator, device=generator.device)

    def apply(self, batch: Tensor, choice: Tensor) -> Tensor:
        """Return the batch (N, H, W, channels) in the ways `choice` (N,) says."""
        choice = choice.to(batch.device, non_blocking=True)
        for spec in self.specs:
            batch = spec.apply(batch, choice % spec.choices)
            choice = choice // spec.choices
        return batch


def shift(batch: Tensor, offsets: Tensor, reach: int) -> Tensor:
    """Move image n of `batch` (N, H, W, channels) down by offsets[n, 0] and right by offsets[n, 1].

    offsets: integers (N, 2) from -reach to reach. What comes into the image is zero.
    """
    N, H, W, channels = batch.shape
    padded = functional.pad(batch, (0, 0, reach, reach, reach, reach)).contiguous()
    image, row, column, _ = padded.stride()
    places = 2 * reach + 1
    # Every window of every padded image as a view (N, places, places, H, W*channels). Taking one of them for
    # each image copies whole rows: five times as fast on a CPU as an index for each pixel.
    windows = padded.as_strided((N, places, places, H, W * channels), (image, row, column, row, 1))
    corners = reach - offsets
    return windows[torch.arange(N, device=batch.device), corners[:, 0], corners[:, 1]].view(N, H, W, channels)


def _place(choice: Tensor, places: int) -> Tensor:
    """Return the row and column (N, 2) of a choice (N,) among places · places."""
    return torch.stack([choice // places, choice % places], dim=1)
