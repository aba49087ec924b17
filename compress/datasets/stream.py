"""Images that stay in their files and are decoded when they are asked for: data that is larger than memory.

Threads decode: Pillow holds no lock while it decodes and resizes, and a thread writes its rows straight into the batch,
where a process would have to send them. What a row becomes hangs on its file and, for a random part of it, on seed,
epoch and row alone; so results are the same for any number of threads, and after an interruption.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from compress.datasets.arrays import Int64Array, Positions, UInt8Array
from compress.datasets.decode import Cut, ImageOptions, Shape, decode_into
from compress.datasets.image_files import ImageFiles
from runtime.errors import DataError

THREADS = os.cpu_count() or 1
# Batches that are decoded or being decoded while another is used, and the rows that a thread decodes at a time.
AHEAD = 2
CHUNK = 8

# Gives the part of an image that is shown, by the row as it is stored.
CutOfRow = Callable[[int], Cut]


@dataclass(frozen=True, eq=False)
class ImageStream:
    """The inputs of a split in image files: an index gives decoded rows, uint8 (n, H, W, channels), as of an array.

    files: of all rows as stored. rows: int64 (N,), which of them are here. image_shape: (H, W, channels).
    """

    files: ImageFiles
    rows: Int64Array
    image_shape: Shape
    options: ImageOptions

    dtype: ClassVar[np.dtype[np.uint8]] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """The bytes that all rows would take if they were decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, positions: Positions) -> ImageStream:
        """Return a stream of the rows at `positions`; nothing is decoded."""
        return ImageStream(self.files, self.rows[positions], self.image_shape, self.options)

    def __getitem__(self, positions: Positions, /) -> UInt8Array:
        return next(self.ahead([positions]))

    def ahead(self, batches: Iterable[Positions], cut: CutOfRow | None = None) -> Iterator[UInt8Array]:
        """Yield the rows of each batch, in the order of `batches`, while the next ones are being decoded.

        cut: the part of each image; without it that of the options. Raises DataError where a file does not decode.
        """
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
        begun: deque[_Batch] = deque()
        try:
            for positions in batches:
                begun.append(self._begin(pool, self.rows[positions], cut))
                if len(begun) > AHEAD:
                    yield begun.popleft().finished()
            while begun:
                yield begun.popleft().finished()
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, rows: Int64Array, cut: CutOfRow | None) -> _Batch:
        pixels = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        starts = range(0, len(rows), CHUNK)
        work = partial(self._decode, cut)
        return _Batch(pixels, [pool.submit(work, pixels[i : i + CHUNK], rows[i : i + CHUNK]) for i in starts])

    def _decode(self, cut: CutOfRow | None, target: UInt8Array, rows: Int64Array) -> None:
        ids = rows.tolist()
        files = [self.files[row] for row in ids]
        bad = decode_into(target, files, self.options, None if cut is None else [cut(row) for row in ids])
        if bad:
            first = min(bad)
            raise DataError(
                f"{self.files.folder}: row {ids[first]} ({bad[first]})",
                remedy="It was whole when the data was checked: it has changed since, or the disk fails. Restore it.",
            )


@dataclass(frozen=True, eq=False)
class _Batch:
    pixels: UInt8Array
    work: list[Future[None]]

    def finished(self) -> UInt8Array:
        for future in self.work:
            future.result()
        return self.pixels
