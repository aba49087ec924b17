"""`folder`: image files, one directory a class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from compress.datasets.bad_rows import StoredRows, usable_rows
from compress.datasets.base import Declaration, Stored, unit_normalization
from compress.datasets.decode import ImageOptions, Shape, common_shape
from compress.datasets.holdout import with_test, with_test_rows
from compress.datasets.image_files import ImageFiles
from compress.datasets.image_rows import Stream, image_rows, streams, streams_without_files
from compress.datasets.root import locate, missing
from export.graph import InputSignature
from runtime.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
SPLITS = ("train", "validation", "test")


class Folder(ImageOptions):
    """A folder of image files, one directory a class.

    path: holds `train/<class>/*.png`, with validation/ and test/ optional beside train/, or `<class>/*.png`;
    relative to the data root where one is named. Without test/ a fixed stratified fifth is test. Class and
    file names are sorted; a row id is an image's place in that order. stream: decode images when they are asked for,
    `auto` where all of them would take 4 GiB or more of memory.
    """

    kind = "folder"

    path: Annotated[str, Field(min_length=1)]
    stream: Stream = "auto"

    def declare(self) -> Declaration:
        shape = self.shape()
        return Declaration(
            signature=InputSignature(shape=shape) if shape else None,
            normalization=unit_normalization(shape[2]) if shape else None,
            streamed=streams_without_files(self.stream),
        )

    def inspect(self, root: Path | None) -> Declaration:
        tree = self._tree(root)
        shape = self._image_shape(tree)
        rows = {split: len(files) for split, files in tree.files.items()}
        names = tree.class_names
        return Declaration(
            len(names),
            names,
            InputSignature(shape=shape),
            unit_normalization(shape[2]),
            with_test_rows(rows),
            streams(self.stream, sum(rows.values()), shape),
        )

    def fingerprint(self, root: Path | None) -> str:
        return self._tree(root).fingerprint()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        tree = self._tree(root)
        shape = self._image_shape(tree)
        streamed = streams(self.stream, sum(map(len, tree.files.values())), shape)
        stored = {split: tree.rows(split, shape, self, cache, streamed=streamed) for split in tree.files}
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


@dataclass(frozen=True)
class ClassTree:
    """The image files below a folder, by split and class."""

    directories: ClassVar[Mapping[str, str]] = {split: split for split in SPLITS}

    folder: Path
    by_root: bool = True

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({_class_of(name) for name in self.files["train"].names}))

    @cached_property
    def files(self) -> dict[str, ImageFiles]:
        """Return the files of each split, by class and name. Raises DataError for a tree of another form."""
        if not self.folder.is_dir():
            raise self.missing("the folder does not exist")
        # A class may be called "train": only directories below it make it the split.
        if not _directories(self.folder / self.directories["train"]):
            return {"train": self._images(self.folder)}
        there = {split: self.folder / name for split, name in self.directories.items() if (self.folder / name).is_dir()}
        files = {split: self._images(folder) for split, folder in there.items()}
        classes = sorted({_class_of(name) for name in files["train"].names})
        for split, images in files.items():
            for unknown in sorted({_class_of(name) for name in images.names} - set(classes)):
                near = get_close_matches(unknown, classes, n=1, cutoff=0.5)
                raise DataError(
                    f"{there[split]}: train has no class '{unknown}', only {', '.join(classes[:20])}",
                    remedy=f"Did you mean '{near[0]}'?" if near else "Add it to train, or remove it.",
                )
        return files

    @cached_property
    def contents(self) -> dict[str, Sequence[str]]:
        """What tells each file's content, by split: its sha256."""
        return {split: files.hashes() for split, files in self.files.items()}

    def fingerprint(self) -> str:
        """Return the sha256 hex of every image's split, class, name and content."""
        digest = hashlib.sha256(b"folder 1\n")
        for split, files in self.files.items():
            for name, content in zip(files.names, self.contents[split], strict=True):
                digest.update(f"{split}/{name} {content}\n".encode())
        return digest.hexdigest()

    def rows(
        self, split: str, shape: Shape, options: ImageOptions, cache: Path | None, *, streamed: bool
    ) -> StoredRows:
        """Return a split's images of `shape` with their labels."""
        files = self.files[split]
        classes = {name: index for index, name in enumerate(self.class_names)}
        labels = np.array([classes[_class_of(name)] for name in files.names], dtype=np.int64)
        images, bad = image_rows(files, self.contents[split], shape, options, cache, streamed=streamed)
        return StoredRows(images, labels, bad)

    def _images(self, folder: Path) -> ImageFiles:
        names: list[str] = []
        for directory in _directories(folder):
            images = _sorted(name for name in os.listdir(directory) if Path(name).suffix.lower() in SUFFIXES)
            if not images:
                raise DataError(
                    f"{directory}: no images",
                    remedy=f"Put images of the class there ({', '.join(sorted(SUFFIXES))}).",
                )
            names += [f"{directory.name}/{name}" for name in images]
        if not names:
            raise self.missing(f"no class directories with images in {folder.name}/")
        return ImageFiles(folder, tuple(names))

    def missing(self, problem: str) -> DataError:
        """Return the error for data that is not there, which shows the layout."""
        layout = (
            f"  {self.folder}/train/<class>/*.png        (validation/ and test/ beside train/ are optional)\n"
            f"or\n  {self.folder}/<class>/*.png              (a fixed, stratified fifth of them is test)"
        )
        return missing("folder", self.folder, problem, layout, named_by_root=self.by_root)


def _class_of(name: str) -> str:
    return name.partition("/")[0]


def _directories(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [folder / name for name in _sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())]


def _sorted(names: Iterable[str]) -> list[str]:
    # Hidden entries are other tools' own.
    return sorted(name for name in names if not name.startswith("."))
