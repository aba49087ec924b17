"""`idx`: images and labels in the file format of MNIST (LeCun, Cortes & Burges 1998)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import pyarrow as pa

from compress.datasets.author_files import AuthorFiles, Wanted, opened, read_at_most
from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Stored, UInt8Array, unit_normalization
from compress.datasets.decode import Shape
from compress.datasets.parquet import ClassNames, Name
from compress.datasets.parquet_files import ClassLabels
from compress.datasets.root import locate
from compress.kinds import Spec
from export.graph import InputSignature
from runtime.errors import DataError

_UBYTE = 0x08  # the third byte of the magic number: unsigned bytes; the fourth is the number of dimensions
# The stem of each split's files; MNIST calls its test rows t10k, EMNIST test.
_STEMS = {"train": ("train",), "test": ("t10k", "test")}


def read_idx(path: Path, dimensions: int) -> UInt8Array:
    """Return the array of unsigned bytes in an idx file, gzipped or not.

    Raises DataError for another magic number, and for more or fewer bytes than the header announces.
    """
    with opened(path) as file:
        shape = _header(file, dimensions, path)
        size = math.prod(shape)
        content = read_at_most(file, size + 1)
    if len(content) != size:
        came = "more" if len(content) > size else f"{len(content):,}"
        raise DataError(
            f"{path}: {came} bytes follow the header, expected {size:,} ({' x '.join(map(str, shape))})",
            remedy="It may be truncated or still downloading: copy it again and compare the sizes.",
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """Return the shape that an idx file's header announces."""
    with opened(path) as file:
        return _header(file, dimensions, path)


def _header(file: IO[bytes], dimensions: int, path: Path) -> tuple[int, ...]:
    header = file.read(4 * (1 + dimensions))
    magic = bytes((0, 0, _UBYTE, dimensions))
    if header[:4] != magic:
        raise DataError(
            f"{path} is not an idx file of {dimensions} dimension(s): it begins with {header[:4].hex() or 'nothing'}, "
            f"expected {magic.hex()}",
            remedy="Images are idx3-ubyte files, labels idx1-ubyte files.",
        )
    if len(header) < 4 * (1 + dimensions):
        raise DataError(f"{path} ends in its header, after {len(header)} bytes", remedy="Copy it again.")
    return struct.unpack(f">{dimensions}I", header[4:])


@dataclass(frozen=True)
class IdxFiles(AuthorFiles):
    """The four files of an MNIST-style set, or the two of train.

    prefix: what the file names begin with (`emnist-letters-`). transposed: the images lie on their side, as in EMNIST.
    shape: what is known before the files are opened; then the files must agree. test: whether test files must be there.
    """

    form: ClassVar[str] = "idx"

    class_names: tuple[str, ...] | None = None
    prefix: str = ""
    transposed: bool = False
    shape: Shape | None = None
    test: bool = True

    @property
    def splits(self) -> tuple[str, ...]:
        test = self.test or any(self._wanted("test", what).find(self.folder) for what in ("images", "labels"))
        return ("train", "test") if test else ("train",)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(self._wanted(split, what) for split in self.splits for what in ("images", "labels"))

    @property
    def form_in_words(self) -> str:
        return "the idx format of MNIST"

    def lines(self) -> str:
        return f"{super().lines()}\nEach of them may be compressed, with .gz at its end."

    def counted(self) -> dict[str, int]:
        return {split: idx_shape(self.path(self._wanted(split, "images")), 3)[0] for split in self.splits}

    def inspect(self) -> Declaration:
        names = self.labels.names
        return Declaration(
            len(names),
            names,
            InputSignature(shape=self.image_shape),
            unit_normalization(self.image_shape[2]),
            self.rows,
        )

    @cached_property
    def image_shape(self) -> Shape:
        """Return (H, W, 1) of train. Raises DataError where it is not the known one."""
        return self._shape_of("train", self.shape)

    @cached_property
    def labels(self) -> ClassLabels:
        """Return the classes: those named, else the distinct labels of train."""
        if self.class_names is not None:
            return ClassLabels(self.class_names)
        return ClassLabels.of_values(pa.array(read_idx(self.path(self._wanted("train", "labels")), 1), pa.int64()))

    def stored(self, cache: Path | None) -> dict[str, StoredRows]:
        # Nothing is worth keeping in a cache: the pixels are stored as they are.
        return {split: self._rows(split) for split in self.splits}

    def _rows(self, split: str) -> StoredRows:
        self._shape_of(split, self.image_shape)
        images_path, labels_path = (self.path(self._wanted(split, what)) for what in ("images", "labels"))
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise DataError(f"{images_path} has {len(images):,} images, but {labels_path} {len(labels):,} labels")
        if not len(labels):
            raise DataError(f"{labels_path}: split {split} has no rows")
        codes, bad = self.labels.encode(pa.array(labels, pa.int64()))
        if self.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        return StoredRows(images[..., np.newaxis], codes, bad)

    def _shape_of(self, split: str, expected: Shape | None) -> Shape:
        path = self.path(self._wanted(split, "images"))
        height, width = idx_shape(path, 3)[1:]
        shape = (width, height, 1) if self.transposed else (height, width, 1)
        if expected is not None and shape != expected:
            came, known = (f"{form[0]}x{form[1]}" for form in (shape, expected))
            raise DataError(f"{path}: images are {came}, expected {known}")
        return shape

    def _wanted(self, split: str, what: str) -> Wanted:
        rank = 3 if what == "images" else 1
        # The authors' page has -idx3-ubyte; some unpackers make .idx3-ubyte of it.
        return Wanted(
            tuple(
                f"{self.prefix}{stem}-{what}{separator}idx{rank}-ubyte{suffix}"
                for stem in _STEMS[split]
                for separator in ("-", ".")
                for suffix in ("", ".gz")
            )
        )


class Idx(Spec):
    """A folder of idx files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST: images of one grey channel.

    path: the folder, relative to the data root where one is named; it holds `train-images-idx3-ubyte`,
    `train-labels-idx1-ubyte` and the same with `t10k` or `test`, each of them plain or as .gz. Without test files a
    fixed stratified fifth of train is test. class_names: of the labels 0, 1, ...; else the distinct labels of train.
    prefix: what the file names begin with, such as `emnist-letters-`. transposed: turn rows into columns (EMNIST).
    """

    kind = "idx"

    path: Name
    class_names: ClassNames | None = None
    prefix: str = ""
    transposed: bool = False

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names) if self.class_names else None,
            class_names=self.class_names,
            normalization=unit_normalization(1),
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self._files(root).inspect()

    def fingerprint(self, root: Path | None) -> str:
        return self._files(root).fingerprint()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        files = self._files(root)
        return Stored(
            name=Path(self.path).name,
            class_names=files.labels.names,
            normalization=unit_normalization(1),
            fingerprint=files.fingerprint(),
            splits=files.read(cache, allowed_bad_rows),
        )

    def _files(self, root: Path | None) -> IdxFiles:
        return IdxFiles(
            title="idx",
            folder=locate(self.path, root),
            by_root=not Path(self.path).expanduser().is_absolute(),
            class_names=self.class_names,
            prefix=self.prefix,
            transposed=self.transposed,
            test=False,
        )
