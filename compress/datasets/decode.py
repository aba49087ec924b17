"""Encoded images → one uint8 array, with the rows that do not decode told apart."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from compress.datasets.arrays import UInt8Array
from compress.kinds import Spec
from runtime.errors import DataError

# Part of every cache key: raise it when the same bytes decode to other pixels.
DECODE_VERSION = 1
# Rows that are decoded to learn the common shape; the rows a thread decodes at a time.
PROBED = 101
CHUNK = 256

Encoded = bytes | Path | None
Shape = tuple[int, int, int]
Side = Annotated[int, Field(ge=1, le=4096)]
# Left, top, right and bottom of a part of an image, in its pixels; and what chooses it for a (width, height).
Box = tuple[float, float, float, float]
Cut = Callable[[int, int], Box | None]

# Pillow's modes that hold 8-bit grey or colour without loss, and what they become.
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
# What an explicit `mode` may convert besides: alpha is dropped. 16-bit and float images are refused, because
# Pillow clips them.
_CONVERTIBLE = {*_MODES, "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class ImageOptions(Spec):
    """How images are decoded. Without options all must have one size and mode, which the data decides.

    size: (H, W) to resize to (antialiased bilinear). mode: convert to one channel or to three.
    """

    size: tuple[Side, Side] | None = None
    mode: Literal["grey", "rgb"] | None = None

    def shape(self) -> Shape | None:
        """Return (H, W, channels) where the options alone decide it."""
        if self.size is None or self.mode is None:
            return None
        return (*self.size, 1 if self.mode == "grey" else 3)

    def box(self, width: int, height: int) -> Box | None:
        """Return the part of an upright image of this size that is resized, None for all of it."""
        return None


class CentreCrop(ImageOptions):
    """A centred part of each image, resized to `size`: as much of it as has that aspect ratio, times `share`."""

    size: tuple[Side, Side]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0

    def box(self, width: int, height: int) -> Box:
        scale = self.share * min(height / self.size[0], width / self.size[1])
        half_height, half_width = scale * self.size[0] / 2, scale * self.size[1] / 2
        return (width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height)


class _UnusableImageError(Exception):
    pass


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded rows. pixels: uint8 (N, H, W, channels), zero at the rows in `bad`; bad: reason by row."""

    pixels: UInt8Array
    bad: dict[int, str]


def common_shape(encoded: Iterable[Encoded], options: ImageOptions, where: str) -> Shape:
    """Return the (H, W, channels) that most of the first images have.

    Most, and not the first: one image of another size must be the one that is reported. Raises DataError when
    none of them decodes.
    """
    shapes: Counter[Shape] = Counter()
    reasons: list[str] = []
    for image in islice(encoded, PROBED):
        try:
            shapes[_shape_of(_pixels(image, options, options.box))] += 1
        except _UnusableImageError as error:
            reasons.append(str(error))
    if not shapes:
        first = f"the first says: {reasons[0]}" if reasons else "there are no rows"
        raise DataError(f"{where}: none of the first {len(reasons)} images can be decoded; {first}")
    return shapes.most_common(1)[0][0]


def decode_images(encoded: Iterable[Encoded], rows: int, shape: Shape, options: ImageOptions) -> Images:
    """Decode `rows` images of `shape` (H, W, channels) on all cores.

    encoded: yields bytes, a file, or None for null, one a row.
    """
    pixels = np.zeros((rows, *shape), dtype=np.uint8)
    bad: dict[int, str] = {}

    def decode(chunk: tuple[int, Sequence[Encoded]]) -> dict[int, str]:
        first, images = chunk
        failures = decode_into(pixels[first : first + len(images)], images, options)
        return {first + offset: reason for offset, reason in failures.items()}

    for failures in _on_all_cores(decode, encoded):
        bad.update(failures)
    return Images(pixels, bad)


def unusable_images(encoded: Iterable[Encoded], shape: Shape, options: ImageOptions) -> dict[int, str]:
    """Return what is wrong with the images that do not decode to `shape`, by row; none of them is kept."""

    def fails(chunk: tuple[int, Sequence[Encoded]]) -> dict[int, str]:
        first, images = chunk
        scratch = np.empty((1, *shape), dtype=np.uint8)
        failures = [decode_into(scratch, [image], options) for image in images]
        return {first + offset: reason[0] for offset, reason in enumerate(failures) if reason}

    bad: dict[int, str] = {}
    for failures in _on_all_cores(fails, encoded):
        bad.update(failures)
    return bad


def _on_all_cores(
    work: Callable[[tuple[int, Sequence[Encoded]]], dict[int, str]], encoded: Iterable[Encoded]
) -> Iterator[dict[int, str]]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # A bounded window, so that a large source is never held encoded as a whole.
        chunks = _chunks(encoded)
        while window := list(islice(chunks, 64)):
            yield from pool.map(work, window)


def _chunks(encoded: Iterable[Encoded]) -> Iterator[tuple[int, Sequence[Encoded]]]:
    images = iter(encoded)
    first = 0
    while chunk := list(islice(images, CHUNK)):
        yield first, chunk
        first += len(chunk)


def decode_into(
    target: UInt8Array, images: Sequence[Encoded], options: ImageOptions, cuts: Sequence[Cut] | None = None
) -> dict[int, str]:
    """Decode images into `target` (n, H, W, channels); return what is wrong with those that cannot be, by position.

    cuts: choose the part of each image, in place of the options.
    """
    bad: dict[int, str] = {}
    for position, image in enumerate(images):
        name = f"{image.parent.name}/{image.name}: " if isinstance(image, Path) else ""
        try:
            decoded = _pixels(image, options, options.box if cuts is None else cuts[position])
        except _UnusableImageError as error:
            bad[position] = f"{name}{error}"
            continue
        if _shape_of(decoded) == target.shape[1:]:
            target[position] = decoded.reshape(target.shape[1:])
        else:
            bad[position] = f"{name}image is {_words(_shape_of(decoded))}, expected {_words(target.shape[1:])}"
    return bad


def _pixels(encoded: Encoded, options: ImageOptions, cut: Cut) -> UInt8Array:
    """Return uint8 (H, W) or (H, W, 3), upright, converted as the options say."""
    if encoded is None:
        raise _UnusableImageError("no image: null")
    try:
        data = encoded.read_bytes() if isinstance(encoded, Path) else encoded
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            mode = _target_mode(image.mode, options)
            converted = upright if upright.mode == mode else upright.convert(mode)
            if options.size is not None:
                converted = _resized(converted, options.size, cut(*converted.size))
            return np.asarray(converted)
    except _UnusableImageError:
        raise
    except FileNotFoundError as error:
        raise _UnusableImageError("the file is missing") from error
    except Exception as error:  # Pillow raises a dozen unrelated types for corrupt files, struct.error among them
        raise _UnusableImageError(f"does not decode: {_short(error)}") from error


def _resized(image: Image.Image, size: tuple[int, int], box: Box | None) -> Image.Image:
    whole = (0, 0, *image.size)
    if image.size == size[::-1] and (box or whole) == whole:
        return image
    return image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)


def _target_mode(mode: str, options: ImageOptions) -> str:
    if options.mode is not None and mode in _CONVERTIBLE:
        return "L" if options.mode == "grey" else "RGB"
    if mode not in _MODES:
        hint = "; `mode: grey` or `mode: rgb` converts it" if mode in _CONVERTIBLE else ""
        raise _UnusableImageError(f"mode is {mode}, expected 8-bit grey (L) or colour (RGB){hint}")
    return _MODES[mode]


def _shape_of(pixels: UInt8Array) -> Shape:
    return (pixels.shape[0], pixels.shape[1], 1 if pixels.ndim == 2 else pixels.shape[2])


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} {'grey' if shape[2] == 1 else 'RGB'}"


def _short(error: Exception) -> str:
    # Pillow prints the address of the buffer; a message that differs from run to run cannot be compared.
    text = str(error).split("<_io")[0].strip() or type(error).__name__
    return text[:120]
