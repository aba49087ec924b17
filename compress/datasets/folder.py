"""`folder`: image files, one directory a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from compress.datasets.bad_rows import StoredRows, usable_rows
from compress.datasets.base import Declaration, Stored, unit_normalization
from compress.datasets.cache import cache_key, cached_images
from compress.datasets.decode import ImageOptions, Shape, common_shape, decode_images
from compress.datasets.holdout import with_test, with_test_rows
from compress.datasets.root import locate, missing
from export.graph import InputSignature
from runtime.errors import DataError
from runtime.files import sha256_of_file

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
SPLITS = ("train", "validation", "test")


class Folder(ImageOptions):
    """A folder of image files, one directory a class.

    path: holds `train/<class>/*.png`, with validation/ and test/ optional beside train/, or `<class>/*.png`;
    relative to the data root where one is named. Without test/ a fixed stratified fifth is test. Class and
    file names are sorted; a row id is an image's place in that order.
    """

    kind = "folder"

    path: Annotated[str, Field(min_length=1)]

    def declare(self) -> Declaration:
        shape = self.shape()
        return Declaration(
            signature=InputSignature(shape=shape) if shape else None,
            normalization=unit_normalization(shape[2]) if shape else None,
        )

    def inspect(self, root: Path | None) -> Declaration:
        tree = self._tree(root)
        shape = self._image_shape(tree)
        rows = {split: len(files) for split, files in tree.files.items()}
        names = tree.class_names
        return Declaration(
            len(names), names, InputSignature(shape=shape), unit_normalization(shape[2]), with_test_rows(rows)
        )

    def fingerprint(self, root: Path | None) -> str:
        return self._tree(root).fingerprint()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        tree = self._tree(root)
        shape = self._image_shape(tree)
        stored = {split: self._rows(tree, split, shape, cache) for split in tree.files}
        splits = usable_rows(f"folder ({tree.folder})", stored, allowed_bad_rows)
        return Stored(
            name=Path(self.path).name,
            class_names=tree.class_names,
            normalization=unit_normalization(shape[2]),
            fingerprint=tree.fingerprint(),
            splits=with_test(splits, str(tree.folder)),
        )

    def _tree(self, root: Path | None) -> ClassTree:
        return ClassTree(locate(self.path, root), by_root=not Path(self.path).expanduser().is_absolute())

    def _image_shape(self, tree: ClassTree) -> Shape:
        train = tree.files["train"]
        # Spread over the classes: files are in class order, and one class may be the odd one.
        spread = train[:: max(1, len(train) // 101)]
        return self.shape() or common_shape(spread, self, str(tree.folder))

    def _rows(self, tree: ClassTree, split: str, shape: Shape, cache: Path | None) -> StoredRows:
        files = tree.files[split]
        classes = {name: index for index, name in enumerate(tree.class_names)}
        labels = np.array([classes[file.parent.name] for file in files], dtype=np.int64)
        key = cache_key(tree.hashes[split], self, shape, names="\n".join(f"{f.parent.name}/{f.name}" for f in files))
        decode = partial(decode_images, files, len(files), shape, self)
        images = cached_images(cache, key, len(files), shape, decode)
        return StoredRows(images.pixels, labels, images.bad)


@dataclass(frozen=True)
class ClassTree:
    """The image files below a folder, by split and class."""

    folder: Path
    by_root: bool = True

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({file.parent.name for file in self.files["train"]}))

    @cached_property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Return the files of each split, by class and name. Raises DataError for a tree of another form."""
        if not self.folder.is_dir():
            raise self._missing("the folder does not exist")
        # A class may be called "train": only directories below it make it the split.
        if not _directories(self.folder / "train"):
            return {"train": self._images(self.folder)}
        files = {split: self._images(self.folder / split) for split in SPLITS if (self.folder / split).is_dir()}
        classes = sorted({file.parent.name for file in files["train"]})
        for split, images in files.items():
            for unknown in sorted({image.parent.name for image in images} - set(classes)):
                near = get_close_matches(unknown, classes, n=1, cutoff=0.5)
                raise DataError(
                    f"{self.folder / split}: train has no class '{unknown}', only {', '.join(classes[:20])}",
                    remedy=f"Did you mean '{near[0]}'?" if near else "Add it to train, or remove it.",
                )
        return files

    @cached_property
    def hashes(self) -> dict[str, tuple[str, ...]]:
        with ThreadPoolExecutor() as pool:
            return {split: tuple(pool.map(sha256_of_file, files)) for split, files in self.files.items()}

    def fingerprint(self) -> str:
        """Return the sha256 hex of every image's split, class, name and content."""
        digest = hashlib.sha256(b"folder 1\n")
        for split, files in self.files.items():
            for file, file_hash in zip(files, self.hashes[split], strict=True):
                digest.update(f"{split}/{file.parent.name}/{file.name} {file_hash}\n".encode())
        return digest.hexdigest()

    def _images(self, folder: Path) -> tuple[Path, ...]:
        files: list[Path] = []
        for directory in _directories(folder):
            images = _sorted(f for f in directory.iterdir() if f.suffix.lower() in SUFFIXES)
            if not images:
                raise DataError(
                    f"{directory}: no images",
                    remedy=f"Put images of the class there ({', '.join(sorted(SUFFIXES))}).",
                )
            files += images
        if not files:
            raise self._missing(f"no class directories with images in {folder.name}/")
        return tuple(files)

    def _missing(self, problem: str) -> DataError:
        layout = (
            f"  {self.folder}/train/<class>/*.png        (validation/ and test/ beside train/ are optional)\n"
            f"or\n  {self.folder}/<class>/*.png              (a fixed, stratified fifth of them is test)"
        )
        return missing("folder", self.folder, problem, layout, named_by_root=self.by_root)


def _directories(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return _sorted(entry for entry in folder.iterdir() if entry.is_dir())


def _sorted(entries: Iterable[Path]) -> list[Path]:
    # By name and not by Path, whose order differs between systems; hidden entries are other tools' own.
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
