"""Augmentation of whole batches on their device: uint8 (N, H, W, channels) in and out, no loop over images.

What becomes of an image is one of a number of choices. They are drawn apart from their application, so that an outcome
can be made again: whatever is computed of it (a teacher's outputs) can be kept where there are few.

Draws come from the generator that is passed in and from nothing else, on the generator's own device: with a
CPU generator a batch on a GPU is augmented as it would be on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from compress.kinds import Spec

Pixels = Annotated[int, Field(ge=1, le=256)]


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


AUGMENTATIONS: dict[str, type[Spec]] = {
    "crop": Crop,
    "flip": Flip,
    "translate": Translate,
}


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
