"""STL-10 as its authors publish it (Coates, Ng & Lee 2011): raw pixels and labels, in the unpacked folder or packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from compress.datasets.author_files import AuthorFiles, Wanted, labelled_images, read_archive
from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Int64Array, UInt8Array, unit_normalization
from export.graph import InputSignature
from runtime.errors import DataError

FOLDER = "stl10_binary"
ARCHIVE = "stl10_binary.tar.gz"
# The authors' page gives none; torchvision and TensorFlow Datasets check the archive by this one.
ARCHIVE_MD5 = "91f7769df0f17e558f3565bffb0c7dfb"
CLASS_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96
_ROW = 3 * SIDE * SIDE
_SPLITS = ("train", "test")
_NAMES = "class_names.txt"
_FILES = (*(f"{split}_{what}.bin" for split in _SPLITS for what in ("X", "y")), _NAMES)


@dataclass(frozen=True, kw_only=True)
class Stl10Files(AuthorFiles):
    """What the unpacked files and the archive share. size: the side that images are shrunk to."""

    size: int = SIDE

    def contents(self) -> Mapping[str, tuple[bytes, str]]:
        """Return the bytes of each file by its name, and its path for messages."""
        raise NotImplementedError(f"{type(self).__name__} must define contents")

    @cached_property
    def splits(self) -> dict[str, tuple[UInt8Array, Int64Array]]:
        """Return images (N, 96, 96, 3) and labels (N,) from 0 of each split."""
        contents = self.contents()
        _check_names(*contents[_NAMES])
        splits = {}
        for split in _SPLITS:
            images, labels = read_images(*contents[f"{split}_X.bin"]), contents[f"{split}_y.bin"]
            if len(images) != len(labels[0]):
                raise DataError(
                    f"{contents[f'{split}_X.bin'][1]} has {len(images):,} images, "
                    f"but {labels[1]} {len(labels[0]):,} labels",
                    remedy="One of them may be truncated: copy both again and compare the sizes.",
                )
            # 1 to 10 as stored.
            splits[split] = images, np.frombuffer(labels[0], dtype=np.uint8).astype(np.int64) - 1
        return splits

    def counted(self) -> dict[str, int]:
        return {split: len(labels) for split, (_, labels) in self.splits.items()}

    def inspect(self) -> Declaration:
        signature = InputSignature(shape=(self.size, self.size, 3))
        return Declaration(len(CLASS_NAMES), CLASS_NAMES, signature, unit_normalization(3), self.rows)

    def stored(self, cache: Path | None) -> dict[str, StoredRows]:
        # Nothing is worth keeping in a cache: the pixels are stored as they are.
        return {
            split: labelled_images(shrunk(images, self.size), labels, len(CLASS_NAMES), first=1)
            for split, (images, labels) in self.splits.items()
        }


@dataclass(frozen=True, kw_only=True)
class Stl10Folder(Stl10Files):
    """The unpacked files, in the folder that the archive makes or in the set's own."""

    form: ClassVar[str] = "stl10 binary"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(Wanted((f"{FOLDER}/{name}", name)) for name in _FILES)

    @property
    def form_in_words(self) -> str:
        return f"the layout of {FOLDER}"

    def contents(self) -> Mapping[str, tuple[bytes, str]]:
        paths = {name: self.path(wanted) for name, wanted in zip(_FILES, self.wanted, strict=True)}
        return {name: (path.read_bytes(), str(path)) for name, path in paths.items()}

    def counted(self) -> dict[str, int]:
        found = dict(zip(_FILES, self.wanted, strict=True))
        return {split: self.path(found[f"{split}_y.bin"]).stat().st_size for split in _SPLITS}


@dataclass(frozen=True, kw_only=True)
class Stl10Archive(Stl10Files):
    """The archive as it was downloaded; nothing of it is written to disk."""

    form: ClassVar[str] = "stl10 archive"

    md5: str = ARCHIVE_MD5

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (Wanted((ARCHIVE,)),)

    @property
    def form_in_words(self) -> str:
        return f"the archive {ARCHIVE}"

    def contents(self) -> Mapping[str, tuple[bytes, str]]:
        return read_archive(self.path(self.wanted[0]), self.md5, FOLDER, _FILES)


def read_images(content: bytes, where: str) -> UInt8Array:
    """Return images (N, 96, 96, 3): as stored, a red, a green and a blue plane, each column by column.

    Raises DataError for a part of an image.
    """
    if not content or len(content) % _ROW:
        raise DataError(
            f"{where} has {len(content):,} bytes, expected a multiple of {_ROW:,}, the size of an image",
            remedy="It may be truncated or of another set: copy it again and compare the sizes.",
        )
    planes = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)  # (N, channels, W, H)
    return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def shrunk(images: UInt8Array, size: int) -> UInt8Array:
    """Return images (N, size, size, 3) of images (N, H, W, 3), antialiased bilinear, as encoded ones are resized."""
    if images.shape[1:3] == (size, size):
        return images
    small = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for image, target in zip(images, small, strict=True):
        target[:] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return small


def _check_names(content: bytes, where: str) -> None:
    came = tuple(content.decode("utf-8", errors="replace").split())
    if came != CLASS_NAMES:
        raise DataError(
            f"{where} is not that of STL-10: it names {', '.join(came[:10]) or 'nothing'}, "
            f"expected {', '.join(CLASS_NAMES)}",
            remedy="Take the file that came with the images.",
        )
