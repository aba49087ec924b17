"""`celeba`: faces with forty attributes; one is the label, others may be hidden classes (Liu et al. 2015)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from compress.datasets.arrays import Int64Array
from compress.datasets.author_files import AuthorFiles, Wanted
from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Members, Stored, unit_normalization
from compress.datasets.decode import CentreCrop, Shape, Side
from compress.datasets.image_files import ImageFiles
from compress.datasets.image_rows import Stream, image_rows, streams, streams_without_files
from compress.datasets.named import NamedSet
from export.graph import InputSignature
from runtime.errors import DataError
from runtime.files import sha256_of_file

_ATTRIBUTES = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry
Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
Wearing_Necktie Young
"""
ATTRIBUTES = tuple(_ATTRIBUTES.split())
_IMAGES = "img_align_celeba"
_SPLITS = ("train", "validation", "test")  # as list_eval_partition.txt counts them


@dataclass(frozen=True, kw_only=True)
class CelebaFiles(AuthorFiles):
    """The aligned images and the two lists. attributes: the label's, then the hidden ones."""

    form: ClassVar[str] = "celeba"

    attributes: tuple[str, ...]
    size: int
    stream: Stream = "auto"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        # An archive of the images may be unpacked into a folder of its own name.
        images = Wanted((f"{_IMAGES}/000001.jpg", f"{_IMAGES}/{_IMAGES}/000001.jpg"))
        return (Wanted(("list_attr_celeba.txt",)), Wanted(("list_eval_partition.txt",)), images)

    @property
    def form_in_words(self) -> str:
        return "the layout of CelebA"

    def lines(self) -> str:
        attributes, partition, _ = (f"{self.folder}/{wanted.names[0]}" for wanted in self.wanted)
        return f"  {attributes}\n  {partition}\n  {self.folder}/{_IMAGES}/000001.jpg to 202599.jpg"

    @property
    def image_shape(self) -> Shape:
        return (self.size, self.size, 3)

    @cached_property
    def listed(self) -> dict[str, tuple[ImageFiles, Int64Array]]:
        """Return the images of each split and their values (N, attributes): 1, -1 or, where the list is wrong, 0."""
        attributes, partition, first = (self.path(wanted) for wanted in self.wanted)
        names, values = read_attributes(attributes, self.attributes)
        splits = read_partition(partition, names)
        listed = {}
        for code, split in enumerate(_SPLITS):
            rows = np.flatnonzero(splits == code)
            if not len(rows):
                raise DataError(f"{partition}: no image of split {split} ({code})", remedy="Copy the file again.")
            listed[split] = ImageFiles(first.parent, tuple(names[row] for row in rows)), values[rows]
        return listed

    def counted(self) -> dict[str, int]:
        return {split: len(files) for split, (files, _) in self.listed.items()}

    def examined(self) -> dict[str, tuple[int, int]]:
        # Files are counted and not decoded: that is done once, before the first training.
        there = set(os.listdir(self.path(self.wanted[2]).parent))
        return {
            split: (len(files), sum(name not in there for name in files.names))
            for split, (files, _) in self.listed.items()
        }

    def fingerprint(self) -> str:
        """Return the sha256 hex of the lists, and of the images' names and sizes."""
        digest = hashlib.sha256(f"{self.form} 1\n".encode())
        for wanted in self.wanted[:2]:
            digest.update(f"{wanted.names[0]} {sha256_of_file(self.path(wanted))}\n".encode())
        for files, _ in self.listed.values():
            for name, size in zip(files.names, files.sizes(), strict=True):
                digest.update(f"{name} {size}\n".encode())
        return digest.hexdigest()

    def inspect(self) -> Declaration:
        names = class_names(self.attributes[0])
        signature = InputSignature(shape=self.image_shape)
        return Declaration(2, names, signature, unit_normalization(3), self.rows, self.streamed)

    @property
    def streamed(self) -> bool:
        return streams(self.stream, sum(self.counted().values()), self.image_shape)

    def stored(self, cache: Path | None) -> dict[str, StoredRows]:
        return {split: self._rows(*listed, cache) for split, listed in self.listed.items()}

    def _rows(self, files: ImageFiles, values: Int64Array, cache: Path | None) -> StoredRows:
        options = CentreCrop(size=(self.size, self.size), mode="rgb")
        images, bad = image_rows(files, files.sizes(), self.image_shape, options, cache, streamed=self.streamed)
        wrong = {
            int(row): f"{files.names[row]}: {self.attributes[column]} is neither 1 nor -1"
            for row, column in np.argwhere(values == 0)[::-1]
        }
        codes = (values > 0) @ (1 << np.arange(len(self.attributes))[::-1])  # the label is the first binary digit
        hidden = codes if len(self.attributes) > 1 else None
        return StoredRows(images, (values[:, 0] > 0).astype(np.int64), {**bad, **wrong}, hidden=hidden)


def read_attributes(path: Path, attributes: Sequence[str]) -> tuple[tuple[str, ...], Int64Array]:
    """Return the images' names and, for each of `attributes`, 1 or -1 (N, attributes); 0 where it is neither.

    The file: the number of images, the attributes' names, then a line an image. Raises DataError for another form.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    head = lines[1].split() if len(lines) > 1 else []
    if not lines or not lines[0].strip().isdecimal() or not head:
        raise DataError(f"{path} does not begin with a number of images and a line of attributes")
    count, rows = int(lines[0]), [line.split() for line in lines[2:] if line.strip()]
    if count != len(rows):
        raise DataError(
            f"{path} says {count:,} images, but {len(rows):,} lines follow",
            remedy="It may be truncated: copy it again.",
        )
    for name in attributes:
        if name not in head:
            near = get_close_matches(name, head, n=1, cutoff=0.5)
            raise DataError(
                f"{path} has no attribute '{name}'", remedy=f"Did you mean '{near[0]}'?" if near else ", ".join(head)
            )
    columns = [1 + head.index(name) for name in attributes]
    values = np.zeros((count, len(columns)), dtype=np.int64)
    known = {"1": 1, "-1": -1}
    for row, fields in enumerate(rows):
        if len(fields) != 1 + len(head):
            raise DataError(f"{path}, line {row + 3}: {len(fields)} fields, expected a name and {len(head)} values")
        values[row] = [known.get(fields[column], 0) for column in columns]
    return tuple(fields[0] for fields in rows), values


def read_partition(path: Path, names: Sequence[str]) -> Int64Array:
    """Return the split (N,) of each of `names`: 0 train, 1 validation, 2 test.

    Raises DataError where one is missing.
    """
    codes = {"0": 0, "1": 1, "2": 2}
    splits: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in codes:
            raise DataError(f"{path}, line {number}: came '{line[:60]}', expected a name and 0, 1 or 2")
        splits[fields[0]] = codes[fields[1]]
    if absent := [name for name in names if name not in splits]:
        raise DataError(
            f"{path} has no line for {len(absent):,} image(s) of list_attr_celeba.txt: {', '.join(absent[:5])}",
            remedy="It may be truncated: copy it again.",
        )
    return np.array([splits[name] for name in names], dtype=np.int64)


def class_names(attribute: str) -> tuple[str, str]:
    """Return what the values -1 and 1 of an attribute say."""
    return (f"not {attribute}", attribute)


def hidden_names(attributes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all combinations of attributes, counted as binary digits, the first of them the highest."""
    names = [""]
    for attribute in attributes:
        names = [f"{before}{name}, " for before in names for name in class_names(attribute)]
    return tuple(name.removesuffix(", ") for name in names)


def _known(attribute: str) -> str:
    if attribute not in ATTRIBUTES:
        context = {"noun": "attribute", "name": attribute, "known": list(ATTRIBUTES)}
        raise PydanticCustomError("unknown_kind", "unknown {noun} '{name}'", context)
    return attribute


Attribute = Annotated[str, AfterValidator(_known)]


class Celeba(NamedSet):
    """Faces of celebrities, 162,770 train, 19,867 validation, 19,962 test rows (Liu et al. 2015).

    attribute: the label, yes or no. hidden: further attributes; their combinations are classes within each class, which
    training does not see and analysis does. size: the centred square of the aligned images, resized (antialiased
    bilinear). stream: decode images when they are asked for, `auto` where all of them would take 4 GiB or more.
    """

    kind = "celeba"
    own = "folder"
    in_parquet = False
    origin = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    rows: ClassVar = {"train": 162_770, "validation": 19_867, "test": 19_962}

    attribute: Attribute
    hidden: Annotated[tuple[Attribute, ...], Field(max_length=5)] = ()
    size: Side = 64
    stream: Stream = "auto"

    @field_validator("hidden")
    @classmethod
    def _each_once(cls, hidden: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        named = [*hidden, *([info.data["attribute"]] if "attribute" in info.data else [])]
        if repeated := sorted({name for name in named if named.count(name) > 1}):
            raise PydanticCustomError("repeated", "{names} more than once, or the label itself", {"names": repeated[0]})
        return hidden

    @classmethod
    def of_any_options(cls) -> Celeba:
        return cls(attribute=ATTRIBUTES[0])

    @property
    def attributes(self) -> tuple[str, ...]:
        return (self.attribute, *self.hidden)

    def declare(self) -> Declaration:
        signature = InputSignature(shape=(self.size, self.size, 3))
        streamed = streams_without_files(self.stream)
        return Declaration(2, class_names(self.attribute), signature, unit_normalization(3), dict(self.rows), streamed)

    def inspect(self, root: Path | None) -> Declaration:
        return self.folder(root).inspect()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        files = self.folder(root)
        self.check(files)
        return Stored(
            name=self.kind,
            class_names=class_names(self.attribute),
            normalization=unit_normalization(3),
            fingerprint=files.fingerprint(),
            splits=files.read(cache, allowed_bad_rows),
            hidden_names=hidden_names(self.attributes) if self.hidden else None,
            hidden_members=self._members(),
        )

    def author_files(self, where: Path, layout: str = "") -> tuple[CelebaFiles, ...]:
        return (
            CelebaFiles(
                self.kind, where, layout, attributes=self.attributes, size=self.size, stream=self.stream
            ),
        )  # fmt: skip

    def _members(self) -> Members | None:
        each = 1 << len(self.hidden)
        return (tuple(range(each)), tuple(range(each, 2 * each))) if self.hidden else None
