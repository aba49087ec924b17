"""`imagenet`: ILSVRC 2012, a directory a class, streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from compress.datasets.author_files import AuthorFiles, Wanted
from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Stored
from compress.datasets.decode import CentreCrop, Shape, Side
from compress.datasets.folder import ClassTree
from compress.datasets.named import NamedSet
from export.graph import InputSignature, Normalization
from runtime.errors import DataError

CLASSES = 1000
# The share of the shorter side that is shown: 224 of 256 pixels, as in the published evaluations.
SHARE = 224 / 256
NORMALIZATION = Normalization(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class WantedFolder(Wanted):
    """A folder that a format needs."""

    def find(self, folder: Path) -> Path | None:
        return next((folder / name for name in self.names if (folder / name).is_dir()), None)


class ImageNetTree(ClassTree):
    """The two splits: the 50,000 images that come as `val` are test, because the labels of test are not public."""

    directories: ClassVar[Mapping[str, str]] = {"train": "train", "test": "val"}

    @cached_property
    def contents(self) -> dict[str, Sequence[str]]:
        """What tells each file's content: its size. To read 150 GB would take longer than most runs."""
        return {split: files.sizes() for split, files in self.files.items()}


@dataclass(frozen=True, kw_only=True)
class ImageNetFiles(AuthorFiles):
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`. size: the side of the images as a recipe sees them."""

    form: ClassVar[str] = "imagenet folders"

    size: int

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (WantedFolder(("train",)), WantedFolder(("val",)))

    @property
    def form_in_words(self) -> str:
        return "the layout train/<wnid>, val/<wnid>"

    def lines(self) -> str:
        return (
            f"  {self.folder}/train/<wnid>/*.JPEG   n01440764 to n15075141\n"
            f"  {self.folder}/val/<wnid>/*.JPEG     in the same directories: sorted by class, not in one folder"
        )

    @cached_property
    def tree(self) -> ImageNetTree:
        """Return the image files. Raises DataError for another layout, which shows this one."""
        for wanted in self.wanted:
            path = self.path(wanted)
            if not any(entry.is_dir() for entry in path.iterdir()):
                raise DataError(
                    f"{path} has no directories, expected one a class, such as {path}/n01440764",
                    remedy=f"Sort its images into such directories. The layout is\n{self.lines()}",
                )
        return ImageNetTree(self.folder)

    @property
    def image_shape(self) -> Shape:
        return (self.size, self.size, 3)

    def counted(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.tree.files.items()}

    def fingerprint(self) -> str:
        return self.tree.fingerprint()

    def inspect(self) -> Declaration:
        names = self.tree.class_names
        signature = InputSignature(shape=self.image_shape)
        return Declaration(len(names), names, signature, NORMALIZATION, self.rows, streamed=True)

    def stored(self, cache: Path | None) -> dict[str, StoredRows]:
        options = CentreCrop(size=(self.size, self.size), mode="rgb", share=SHARE)
        return {
            split: self.tree.rows(split, self.image_shape, options, cache, streamed=True) for split in self.tree.files
        }

    def examined(self) -> dict[str, tuple[int, int]]:
        # Files are counted and not decoded: that is done once, before the first training.
        return {split: (rows, 0) for split, rows in self.counted().items()}


class ImageNet(NamedSet):
    """Photographs of a thousand classes, 1,281,167 train and 50,000 test rows (ILSVRC 2012; Russakovsky et al. 2015).

    Images are decoded when they are asked for: the centred square of 224/256 of the shorter side, resized to `size`
    (antialiased bilinear). Test is what the authors call val, in a directory a class as train is. Classes are named by
    their wnids; a part of them is a data set, too.
    """

    kind = "imagenet"
    own = "folder"
    in_parquet = False
    origin = "https://image-net.org/download.php"
    rows: ClassVar = {"train": 1_281_167, "test": 50_000}

    size: Side = 224

    def declare(self) -> Declaration:
        signature = InputSignature(shape=(self.size, self.size, 3))
        return Declaration(CLASSES, None, signature, NORMALIZATION, dict(self.rows), streamed=True)

    def inspect(self, root: Path | None) -> Declaration:
        return self.folder(root).inspect()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        (files,) = self.author_files(self.where(root), self.layout(self.where(root)))
        self.check(files)
        return Stored(
            name=self.kind,
            class_names=files.tree.class_names,
            normalization=NORMALIZATION,
            fingerprint=files.fingerprint(),
            splits=files.read(cache, allowed_bad_rows),
        )

    def author_files(self, where: Path, layout: str = "") -> tuple[ImageNetFiles, ...]:
        return (ImageNetFiles(self.kind, where, layout, size=self.size),)
