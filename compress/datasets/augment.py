"""Augmentation of whole batches on their device: uint8 (N, H, W, channels) in and out, no loop over images.

Draws come from the generator that is passed in and from nothing else, on the generator's own device: with a
CPU generator a batch on a GPU is augmented as it would be on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from compress.kinds import Spec

Augment = Callable[[Tensor, torch.Generator], Tensor]
Pixels = Annotated[int, Field(ge=1, le=256)]


class Augmentation(Spec):
    """A random change of images, drawn anew for each image and epoch."""

    def apply(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch of the same shape and dtype; the one given is left as it is."""
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
    def reach(self) -> int:
        return self.padding

    def apply(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        # The crop at (y, x) of the padded image is the image moved by (padding - y, padding - x).
        return shift(batch, self.padding - _integers(batch, 2, 2 * self.padding + 1, generator), self.padding)


class Flip(Augmentation):
    """Mirror left and right, each image with probability one half."""

    kind = "flip"

    def apply(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = _integers(batch, 1, 2, generator).bool()  # (N, 1)
        return torch.where(mirrored[:, :, None, None], batch.flip(2), batch)


class Translate(Augmentation):
    """Move by -`pixels` to `pixels` rows and columns, evenly; what comes into the image is zero."""

    kind = "translate"

    pixels: Pixels

    @property
    def reach(self) -> int:
        return self.pixels

    def apply(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return shift(batch, _integers(batch, 2, 2 * self.pixels + 1, generator) - self.pixels, self.pixels)


AUGMENTATIONS: dict[str, type[Spec]] = {
    "crop": Crop,
    "flip": Flip,
    "translate": Translate,
}


def build_augmentation(specs: Sequence[Augmentation]) -> Augment | None:
    """Return the augmentations as one callable `(batch, generator) -> batch`, None if there are none."""
    if not specs:
        return None

    def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
        for spec in specs:
            batch = spec.apply(batch, generator)
        return batch

    return augment


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


def _integers(batch: Tensor, columns: int, count: int, generator: torch.Generator) -> Tensor:
    """Return integers (N, columns), evenly from 0 to count - 1, on the batch's device."""
    drawn = torch.randint(count, (len(batch), columns), generator=generator, device=generator.device)
    return drawn.to(batch.device, non_blocking=True)
