"""The Large Movie Review Dataset (Maas et al. 2011) in its authors' form: a file a review, a directory a class."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from compress.datasets.author_files import Wanted, damage_named
from compress.datasets.text_files import TextFiles, TextRow
from compress.datasets.text_readers import text_row
from compress.datasets.text_sets import in_turn
from runtime.errors import DataError
from runtime.files import sha256_of_file

FOLDER = "aclImdb"
ARCHIVE = "aclImdb_v1.tar.gz"
CLASSES = ("neg", "pos")
SPLITS = ("train", "test")

# The text files of a split's class by name; names are a number and the stars that the review gave: 127_10.txt.
Reviews = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class ImdbFiles(TextFiles):
    """What the unpacked directories and the archive share. The classes take turns, each in the order of its names."""

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def written(self, split: str) -> Iterator[TextRow]:
        parts = {label: self.reviews(f"{split}/{label}") for label in CLASSES}
        return in_turn(*([text_row(parts[label][name], label) for name in sorted(parts[label])] for label in CLASSES))

    def reviews(self, directory: str) -> Reviews:
        """Return the files of `train/neg` or another such directory by name. Raises DataError where there are none."""
        raise NotImplementedError(f"{type(self).__name__} must define reviews")


@dataclass(frozen=True, kw_only=True)
class ImdbFolder(ImdbFiles):
    """The unpacked directories, in the folder that the archive makes or in the set's own."""

    form: ClassVar[str] = "aclImdb"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(self._wanted(f"{split}/{label}") for split in SPLITS for label in CLASSES)

    @property
    def form_in_words(self) -> str:
        return f"the layout of {FOLDER}"

    def reviews(self, directory: str) -> Reviews:
        return {path.name: path.read_bytes() for path in self._paths(self._wanted(directory))}

    def fingerprint_of(self, wanted: Wanted) -> str:
        """Return the sha256 hex of a directory's names and contents."""
        digest = hashlib.sha256()
        paths = self._paths(wanted)
        with ThreadPoolExecutor() as pool:
            for path, content in zip(paths, pool.map(sha256_of_file, paths), strict=True):
                digest.update(f"{path.name} {content}\n".encode())
        return digest.hexdigest()

    def _paths(self, wanted: Wanted) -> list[Path]:
        directory = self.path(wanted)
        paths = sorted(directory.glob("*.txt"), key=lambda path: path.name)
        if not paths:
            raise DataError(f"{directory}: no reviews (*.txt)", remedy=f"Unpack {ARCHIVE} again.")
        return paths

    def _wanted(self, directory: str) -> Wanted:
        return Wanted((f"{FOLDER}/{directory}", directory), is_directory=True)


@dataclass(frozen=True, kw_only=True)
class ImdbArchive(ImdbFiles):
    """The archive as it was downloaded; nothing of it is written to disk."""

    form: ClassVar[str] = "aclImdb archive"

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (Wanted((ARCHIVE,)),)

    @property
    def form_in_words(self) -> str:
        return f"the archive {ARCHIVE}"

    def reviews(self, directory: str) -> Reviews:
        if not self._reviews[directory]:
            raise DataError(
                f"{self.path(self.wanted[0])} holds no {FOLDER}/{directory}/*.txt",
                remedy="Check that it is the archive that is meant, and whole.",
            )
        return self._reviews[directory]

    @cached_property
    def _reviews(self) -> dict[str, Reviews]:
        # All at once: going through the archive costs more than the 65 MB that its reviews take.
        found: dict[str, Reviews] = {f"{split}/{label}": {} for split in SPLITS for label in CLASSES}
        path = self.path(self.wanted[0])
        with damage_named(path), tarfile.open(path) as archive:
            for member in archive:
                directory, _, name = member.name.removeprefix("./").removeprefix(f"{FOLDER}/").rpartition("/")
                if directory in found and name.endswith(".txt") and (file := archive.extractfile(member)) is not None:
                    found[directory][name] = file.read()
        return found
