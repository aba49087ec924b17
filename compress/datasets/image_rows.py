"""Rows of image files: decoded and held, or a stream where they are too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from compress.datasets.arrays import UInt8Array
from compress.datasets.cache import cache_key, cached_images, cached_rows
from compress.datasets.decode import ImageOptions, Shape, decode_images, unusable_images
from compress.datasets.image_files import ImageFiles
from compress.datasets.stream import ImageStream

log = logging.getLogger(__name__)

# Decoded bytes of all splits together from which on `auto` streams.
STREAMED_FROM = 4 << 30

Stream = Literal["auto", "yes", "no"]


def streams(stream: Stream, rows: int, shape: Shape) -> bool:
    """Return whether `rows` images of `shape` are streamed: as said, or where they would take too much memory."""
    return stream == "yes" or (stream == "auto" and rows * int(np.prod(shape)) >= STREAMED_FROM)


def streams_without_files(stream: Stream) -> bool | None:
    """Return whether images are streamed, None where only their number tells."""
    return None if stream == "auto" else stream == "yes"


def image_rows(
    files: ImageFiles,
    contents: Sequence[str],
    shape: Shape,
    options: ImageOptions,
    cache: Path | None,
    *,
    streamed: bool,
) -> tuple[UInt8Array | ImageStream, dict[int, str]]:
    """Return the images of `files`, as an array or a stream, and what is wrong with the rows that do not decode.

    contents: what tells each file's content. Streamed files are decoded once, too, so that a damaged one is found
    before training and not in it; what was found is kept in the cache.
    """
    rows = len(files)
    names = "\n".join(f"{file.parent.name}/{file.name}" for file in files)
    if not streamed:
        key = cache_key(contents, options, shape, names=names)
        images = cached_images(cache, key, rows, shape, partial(decode_images, files, rows, shape, options))
        return images.pixels, images.bad

    def check() -> tuple[UInt8Array, dict[int, str]]:
        log.info("%s: checking %d images, once", files.folder, rows)
        bad = unusable_images(files, shape, options)
        usable = np.ones(rows, dtype=np.uint8)
        usable[list(bad)] = 0
        return usable, bad

    key = cache_key(contents, options, shape, names=names, kept="which are usable")
    _, bad = cached_rows(cache, key, (rows,), np.uint8, check)
    return ImageStream(files, np.arange(rows, dtype=np.int64), shape, options), bad
