"""`mnist`, `cifar10`, `cifar100`, `stl10`: known sets, as parquet or their authors' files in folders of that name."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from compress.datasets.author_files import AuthorFiles, SetFiles
from compress.datasets.base import Declaration, Stored
from compress.datasets.cifar_files import CIFAR_10, CIFAR_100, CifarFormat, cifar_layouts
from compress.datasets.decode import ImageOptions, Shape
from compress.datasets.idx import IdxFiles
from compress.datasets.labelled_parquet import LabelledParquet
from compress.datasets.parquet_files import embedded_class_names
from compress.datasets.parquet_folder import ParquetFolder
from compress.datasets.root import missing
from compress.datasets.stl10_files import ARCHIVE_MD5, CLASS_NAMES, Stl10Archive, Stl10Folder
from compress.kinds import Spec
from export.graph import InputSignature, Normalization
from runtime.errors import DataError

log = logging.getLogger(__name__)

_CIFAR_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class NamedSet(Spec):
    """A data set whose classes and rows are known before its files are opened.

    It may lie in several formats, of which the first that is complete is read, parquet before the authors' own. The
    same set has another fingerprint in another format. origin: where its authors publish it. in_parquet: whether
    parquet files of it are read.
    """

    class_names: ClassVar[tuple[str, ...]]
    rows: ClassVar[dict[str, int]]
    own: ClassVar[str] = "parquet"  # the source for such data of one's own
    in_parquet: ClassVar[bool] = True
    origin: ClassVar[str]

    @classmethod
    def of_any_options(cls) -> NamedSet:
        """Return the set for questions about its files, which no option changes."""
        return cls()

    def parquet(self, where: Path) -> LabelledParquet:
        """Return the set as parquet files in the folder `where`."""
        raise NotImplementedError(f"{type(self).__name__} must define parquet")

    def author_files(self, where: Path, layout: str = "") -> tuple[AuthorFiles, ...]:
        """Return the set in its authors' formats in the folder `where`, those that are read first before the others.

        layout: what the message says about missing files.
        """
        return ()

    def folder(self, root: Path | None) -> SetFiles:
        """Return the set's files under the data root. Raises DataError where no root is named."""
        where = self.where(root)
        formats = self.author_files(where, self.layout(where))
        parquet = self.parquet(where) if self.in_parquet else None
        if parquet is not None and parquet.is_complete:
            return parquet
        complete = next((files for files in formats if not files.absent), None)
        if complete is not None:
            return complete
        if parquet is not None and parquet.is_there:
            return parquet
        # What is there in part is what was meant: its message names the file that is missing.
        return next((files for files in formats if files.found), parquet or formats[0])

    def input_in_words(self) -> str:
        """Return the name of the input column and what it holds, for the message when files are missing."""
        raise NotImplementedError(f"{type(self).__name__} must define input_in_words")

    def fingerprint(self, root: Path | None) -> str:
        return self.folder(root).fingerprint()

    def where(self, root: Path | None) -> Path:
        """Return the folder's path. Raises DataError where no root is named."""
        where = (root or Path("DIR")) / self.kind
        if root is None:
            raise missing(self.kind, where, "no data root is named", self.layout(where), named_by_root=True)
        return where

    def layout(self, folder: Path) -> str:
        published = f"as published at {self.origin}:"
        formats = [f"{published}\n{files.lines()}" for files in self.author_files(folder)]
        if not self.in_parquet:
            return "\n".join(formats)
        files = [f"  {folder}/{split}-00000-of-00001.parquet   {count:,} rows" for split, count in self.rows.items()]
        columns = (
            f"Columns: {self.input_in_words()} and 'label' (whole number, 0 to {len(self.class_names) - 1}).\n"
            f"A split may lie in more parts: <split>-<part>-of-<parts>.parquet."
        )
        return "\n".join([*files, columns, *(f"or, {form}" for form in formats)])

    def check(self, folder: SetFiles) -> None:
        """Raise DataError for files of another set; warn of another number of rows."""
        if isinstance(folder, LabelledParquet):
            self.check_classes(folder)
        for split, rows in folder.rows.items():
            if (expected := self.rows.get(split)) is not None and rows != expected:
                log.warning("%s: split %s has %d rows, the published set %d", folder.folder, split, rows, expected)

    def check_classes(self, folder: LabelledParquet) -> None:
        """Raise DataError for parquet files that name other classes."""
        for shards in folder.shards.values():
            embedded = embedded_class_names(shards.schema, folder.label_column)
            if embedded is not None and embedded != self.class_names:
                raise DataError(
                    f"{shards.paths[0]} is not {self.kind}: its classes are {_first(embedded)}, "
                    f"expected {_first(self.class_names)}",
                    remedy=f"For data of your own use `source: {{{self.own}: {{path: ...}}}}`.",
                )


class NamedImages(NamedSet):
    """A set of images of one known shape, with published channel statistics."""

    shape: ClassVar[Shape]
    normalization: ClassVar[Normalization]

    def image_shape(self) -> Shape:
        """Return (H, W, channels) of the images as a recipe sees them."""
        return self.shape

    def declare(self) -> Declaration:
        return Declaration(
            classes=len(self.class_names),
            class_names=self.class_names,
            signature=InputSignature(shape=self.image_shape()),
            normalization=self.normalization,
            rows=dict(self.rows),
        )

    def inspect(self, root: Path | None) -> Declaration:
        return replace(self.folder(root).inspect(), normalization=self.normalization)

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        folder = self.folder(root)
        self.check(folder)
        return Stored(
            name=self.kind,
            class_names=self.class_names,
            normalization=self.normalization,
            fingerprint=folder.fingerprint(),
            splits=folder.read(cache, allowed_bad_rows),
        )

    def parquet(self, where: Path) -> ParquetFolder:
        return ParquetFolder(
            title=self.kind,
            folder=where,
            class_names=self.class_names,
            shape=self.image_shape(),
            required=tuple(self.rows),
            layout=self.layout(where),
        )

    def input_in_words(self) -> str:
        height, width, channels = self.shape
        form = f"{height}x{width} {'grey' if channels == 1 else 'RGB'}"
        return f"'image' (struct with the field bytes, or binary: PNG, JPEG or WebP of {form})"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


class Mnist(NamedImages):
    """Handwritten digits, 28×28 grey, 60,000 train and 10,000 test rows (LeCun et al. 1998)."""

    kind = "mnist"
    origin = "http://yann.lecun.com/exdb/mnist/"
    class_names = tuple(str(digit) for digit in range(10))
    shape = (28, 28, 1)
    normalization = Normalization(scale=1 / 255, mean=(0.1307,), std=(0.3081,))
    rows: ClassVar = {"train": 60_000, "test": 10_000}

    def author_files(self, where: Path, layout: str = "") -> tuple[IdxFiles, ...]:
        return (IdxFiles(self.kind, where, layout, class_names=self.class_names, shape=self.shape),)


class Cifar10(NamedImages):
    """Photographs of ten classes, 32×32 RGB, 50,000 train and 10,000 test rows (Krizhevsky 2009)."""

    kind = "cifar10"
    origin = "https://www.cs.toronto.edu/~kriz/cifar.html"
    formats: ClassVar[tuple[CifarFormat, ...]] = CIFAR_10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    shape = (32, 32, 3)
    normalization = Normalization(scale=1 / 255, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    rows: ClassVar = {"train": 50_000, "test": 10_000}

    def author_files(self, where: Path, layout: str = "") -> tuple[AuthorFiles, ...]:
        return cifar_layouts(self.formats, self.kind, where, self.class_names, layout)


class Cifar100(NamedImages):
    """Photographs of a hundred classes, 32×32 RGB, 50,000 train and 10,000 test rows (Krizhevsky 2009)."""

    kind = "cifar100"
    origin = "https://www.cs.toronto.edu/~kriz/cifar.html"
    formats: ClassVar[tuple[CifarFormat, ...]] = CIFAR_100
    class_names = tuple(_CIFAR_100.split())
    shape = (32, 32, 3)
    normalization = Normalization(scale=1 / 255, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    rows: ClassVar = {"train": 50_000, "test": 10_000}

    def author_files(self, where: Path, layout: str = "") -> tuple[AuthorFiles, ...]:
        return cifar_layouts(self.formats, self.kind, where, self.class_names, layout)


class Stl10(NamedImages):
    """Photographs of ten classes, 96×96 RGB, 5,000 train and 8,000 test rows (Coates, Ng & Lee 2011).

    size: the side to shrink them to (antialiased bilinear), such as 32 for models of CIFAR's images. The 100,000 images
    without labels are not read.
    """

    kind = "stl10"
    origin = "https://cs.stanford.edu/~acoates/stl10/"
    class_names = CLASS_NAMES
    shape = (96, 96, 3)
    normalization = Normalization(scale=1 / 255, mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713))
    rows: ClassVar = {"train": 5_000, "test": 8_000}
    md5: ClassVar[str] = ARCHIVE_MD5

    size: Annotated[int, Field(ge=1, le=96)] = 96

    def image_shape(self) -> Shape:
        return (self.size, self.size, 3)

    def parquet(self, where: Path) -> ParquetFolder:
        files = super().parquet(where)
        if self.size == self.shape[0]:
            return files  # an image of another size is refused
        return replace(files, options=ImageOptions(size=(self.size, self.size)))

    def author_files(self, where: Path, layout: str = "") -> tuple[AuthorFiles, ...]:
        folder = Stl10Folder(self.kind, where, layout, size=self.size)
        return folder, Stl10Archive(self.kind, where, layout, size=self.size, md5=self.md5)
