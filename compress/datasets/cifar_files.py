"""CIFAR-10 and CIFAR-100 as their authors publish them (Krizhevsky 2009): binary or python batches, packed or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from compress.datasets.author_files import AuthorFiles, Wanted, labelled_images, read_archive
from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Int64Array, UInt8Array, unit_normalization
from compress.datasets.cifar_pickle import UnsafePickleError, read_batch
from compress.datasets.decode import Shape
from export.graph import InputSignature
from runtime.errors import DataError

SHAPE: Shape = (32, 32, 3)
_PIXELS = 32 * 32 * 3

Batch = tuple[UInt8Array, Int64Array]


@dataclass(frozen=True)
class CifarFormat:
    """One of the two formats in which the authors publish a set.

    folder: what the archive unpacks to. md5: of the archive, from the authors' page. batches: the files of each split.
    read: makes images (N, 32, 32, 3) and labels (N,) of a batch's bytes and its path. row_bytes: size of a row, None
    where rows have no size of their own.
    """

    folder: str
    archive: str
    md5: str
    batches: Mapping[str, tuple[str, ...]]
    read: Callable[[bytes, str], Batch]
    row_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CifarFiles(AuthorFiles):
    """What the unpacked batches and the archive share."""

    class_names: tuple[str, ...]
    format: CifarFormat

    def contents(self) -> Mapping[str, tuple[bytes, str]]:
        """Return the bytes of each batch by its name, and its path for messages."""
        raise NotImplementedError(f"{type(self).__name__} must define contents")

    @cached_property
    def splits(self) -> dict[str, Batch]:
        contents = self.contents()
        batches = {
            split: [self.format.read(*contents[name]) for name in names] for split, names in self.format.batches.items()
        }
        return {
            split: (np.concatenate([images for images, _ in rows]), np.concatenate([labels for _, labels in rows]))
            for split, rows in batches.items()
        }

    def counted(self) -> dict[str, int]:
        return {split: len(labels) for split, (_, labels) in self.splits.items()}

    def inspect(self) -> Declaration:
        signature = InputSignature(shape=SHAPE)
        return Declaration(len(self.class_names), self.class_names, signature, unit_normalization(3), self.rows)

    def stored(self, cache: Path | None) -> dict[str, StoredRows]:
        # Nothing is worth keeping in a cache: the pixels are stored as they are.
        return {split: labelled_images(*rows, len(self.class_names)) for split, rows in self.splits.items()}


@dataclass(frozen=True, kw_only=True)
class CifarFolder(CifarFiles):
    """The unpacked batches, in the folder that the archive makes or in the set's own."""

    form: ClassVar[str] = "cifar batches"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(self._wanted(name) for names in self.format.batches.values() for name in names)

    @property
    def form_in_words(self) -> str:
        return f"the layout of {self.format.folder}"

    def contents(self) -> Mapping[str, tuple[bytes, str]]:
        paths = {name: self.path(self._wanted(name)) for names in self.format.batches.values() for name in names}
        return {name: (path.read_bytes(), str(path)) for name, path in paths.items()}

    def counted(self) -> dict[str, int]:
        size = self.format.row_bytes
        if size is None:
            return super().counted()
        return {
            split: sum(self.path(self._wanted(name)).stat().st_size // size for name in names)
            for split, names in self.format.batches.items()
        }

    def _wanted(self, name: str) -> Wanted:
        return Wanted((f"{self.format.folder}/{name}", name))


@dataclass(frozen=True, kw_only=True)
class CifarArchive(CifarFiles):
    """The archive as it was downloaded; nothing of it is written to disk."""

    form: ClassVar[str] = "cifar archive"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (Wanted((self.format.archive,)),)

    @property
    def form_in_words(self) -> str:
        return f"the archive {self.format.archive}"

    def contents(self) -> Mapping[str, tuple[bytes, str]]:
        names = [name for names in self.format.batches.values() for name in names]
        return read_archive(self.path(self.wanted[0]), self.format.md5, self.format.folder, names)


def cifar_layouts(
    formats: tuple[CifarFormat, ...], title: str, folder: Path, class_names: tuple[str, ...], layout: str
) -> tuple[CifarFiles, ...]:
    """Return the ways in which a set may lie, those that are read first before the others."""
    return tuple(
        kind(title=title, folder=folder, layout=layout, class_names=class_names, format=form)
        for form in formats
        for kind in (CifarFolder, CifarArchive)
    )


def read_binary(content: bytes, where: str, *, label_bytes: int) -> Batch:
    """Return images and labels of rows of `label_bytes` bytes, of which the last is the label, and 3,072 pixels.

    The pixels are a red, a green and a blue plane. Raises DataError for a part of a row.
    """
    row_bytes = label_bytes + _PIXELS
    if not content or len(content) % row_bytes:
        raise DataError(
            f"{where} has {len(content):,} bytes, expected a multiple of {row_bytes:,}, the size of a row",
            remedy="It may be truncated or of another set: copy it again and compare the sizes.",
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, row_bytes)
    return _images(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int64)


def read_python(content: bytes, where: str, *, labels: str) -> Batch:
    """Return images and labels of a pickled batch, which is interpreted and never unpickled.

    labels: the key of the labels. Raises DataError for anything that is not such a batch.
    """
    try:
        batch = read_batch(content)
    except UnsafePickleError as error:
        raise DataError(
            f"{where} is not a batch of CIFAR and is not unpickled: {error}",
            remedy="Take the authors' file, or the binary version, which is read first.",
        ) from error
    pixels, classes = batch.get("data"), batch.get(labels)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels):
        shape = pixels.shape if isinstance(pixels, np.ndarray) else "nothing"
        raise DataError(f"{where}: 'data' is {shape}, expected bytes of shape (N, {_PIXELS})")
    if not isinstance(classes, list) or not all(type(label) is int for label in classes):
        raise DataError(f"{where}: '{labels}' is no list of whole numbers; it holds {', '.join(batch)}")
    if len(classes) != len(pixels):
        raise DataError(f"{where} has {len(pixels):,} images, but {len(classes):,} labels")
    return _images(pixels), np.array(classes, dtype=np.int64)


def _images(planes: UInt8Array) -> UInt8Array:
    channels, height, width = SHAPE[2], *SHAPE[:2]
    return np.ascontiguousarray(planes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1))


_CIFAR_10_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

CIFAR_10 = (
    CifarFormat(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        batches={"train": tuple(f"{name}.bin" for name in _CIFAR_10_BATCHES), "test": ("test_batch.bin",)},
        read=partial(read_binary, label_bytes=1),
        row_bytes=1 + _PIXELS,
    ),
    CifarFormat(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        batches={"train": _CIFAR_10_BATCHES, "test": ("test_batch",)},
        read=partial(read_python, labels="labels"),
    ),
)
CIFAR_100 = (
    CifarFormat(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        batches={"train": ("train.bin",), "test": ("test.bin",)},
        read=partial(read_binary, label_bytes=2),
        row_bytes=2 + _PIXELS,
    ),
    CifarFormat(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        batches={"train": ("train",), "test": ("test",)},
        read=partial(read_python, labels="fine_labels"),
    ),
)
