"""A data set in its authors' own files: what the readers of those formats share."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, ClassVar, Protocol

import numpy as np

from compress.datasets.bad_rows import StoredRows, usable_rows
from compress.datasets.base import Declaration, Int64Array, Split, UInt8Array
from compress.datasets.holdout import with_test, with_test_rows
from compress.datasets.root import missing
from runtime.errors import DataError
from runtime.files import sha256_of_file

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 24


class SetFiles(Protocol):
    """One set's files in one format: a folder of parquet files, or an `AuthorFiles`."""

    @property
    def folder(self) -> Path: ...

    @property
    def rows(self) -> dict[str, int]: ...

    def fingerprint(self) -> str: ...

    def inspect(self) -> Declaration: ...

    def read(self, cache: Path | None, allowed_bad_rows: int) -> dict[str, Split]: ...


@dataclass(frozen=True)
class Wanted:
    """A file that a format needs, or a directory of files.

    names: paths below the set's folder, of which the first that is there is read.
    """

    names: tuple[str, ...]
    is_directory: bool = False

    def find(self, folder: Path) -> Path | None:
        is_there = Path.is_dir if self.is_directory else Path.is_file
        return next((folder / name for name in self.names if is_there(folder / name)), None)


@dataclass(frozen=True)
class AuthorFiles:
    """Where the files lie; what they hold is a subclass's to say.

    form: the format's name in messages. layout: the files that belong there in every format, for the message when
    they are missing. by_root: whether the data root says where the folder is.
    """

    title: str
    folder: Path
    layout: str = ""
    by_root: bool = True
    form: ClassVar[str]

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define wanted")

    def counted(self) -> dict[str, int]:
        """Return the rows of each split as stored."""
        raise NotImplementedError(f"{type(self).__name__} must define counted")

    def stored(self, cache: Path | None) -> Mapping[str, StoredRows]:
        """Return the rows of each split as stored."""
        raise NotImplementedError(f"{type(self).__name__} must define stored")

    def examined(self) -> dict[str, tuple[int, int]]:
        """Return the rows of each split, and how many of them cannot be used, for `edgefold data check`."""
        return {split: (len(part.labels), len(part.bad)) for split, part in self.stored(None).items()}

    def glance(self, published: Mapping[str, int]) -> Sequence[str] | None:
        """Return what is wrong with files that are too large to be read whole for a check, as far as their ends show.

        published: rows of each split. None: they are read whole.
        """
        return None

    def inspect(self) -> Declaration:
        raise NotImplementedError(f"{type(self).__name__} must define inspect")

    @property
    def form_in_words(self) -> str:
        return self.form

    @property
    def found(self) -> dict[Wanted, Path]:
        """Return the wanted files that are there."""
        paths = {wanted: wanted.find(self.folder) for wanted in self.wanted}
        return {wanted: path for wanted, path in paths.items() if path is not None}

    @property
    def absent(self) -> tuple[Wanted, ...]:
        found = self.found
        return tuple(wanted for wanted in self.wanted if wanted not in found)

    def path(self, wanted: Wanted) -> Path:
        """Return the file. Raises DataError where it is missing, which says what was looked for."""
        if (path := wanted.find(self.folder)) is not None:
            return path
        if not self.folder.is_dir():
            problem = "the folder does not exist"
        else:
            problem = f"{self.form_in_words} needs {' or '.join(wanted.names)}, which is not there"
        raise missing(self.title, self.folder, problem, self.layout or self.lines(), named_by_root=self.by_root)

    def lines(self) -> str:
        """Return the wanted files, one a line."""
        return "\n".join(f"  {self.folder}/{wanted.names[0]}" for wanted in self.wanted)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows of each split, as `read` will cut them."""
        return with_test_rows(self.counted())

    def fingerprint(self) -> str:
        """Return the sha256 hex of the wanted files' bytes.

        The same wherever they lie, but another one for the same set in another format, or compressed.
        """
        digest = hashlib.sha256(f"{self.form} 1\n".encode())
        for wanted in self.wanted:
            digest.update(f"{wanted.names[0]} {self.fingerprint_of(wanted)}\n".encode())
        return digest.hexdigest()

    def fingerprint_of(self, wanted: Wanted) -> str:
        """Return the sha256 hex of one wanted file's bytes."""
        return sha256_of_file(self.path(wanted))

    def read(self, cache: Path | None, allowed_bad_rows: int) -> dict[str, Split]:
        """Return train and test. Without test, a fifth of train."""
        splits = usable_rows(f"{self.title} ({self.folder})", self.stored(cache), allowed_bad_rows)
        return with_test(splits, str(self.folder))


def labelled_images(images: UInt8Array, labels: Int64Array, classes: int, *, first: int = 0) -> StoredRows:
    """Return images (N, H, W, channels) with their labels (N,) from 0, of which those beyond the classes are bad.

    first: what the files count labels from, for the messages.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    expected = f"expected {first} to {classes - 1 + first}"
    return StoredRows(images, labels, {int(row): f"label is {labels[row] + first}, {expected}" for row in wrong})


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be compressed by gzip, whatever it is called. Raises DataError where it is damaged."""
    with damage_named(path), path.open("rb") as file:
        compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if compressed:
            with gzip.open(file, "rb") as content:
                yield content  # type: ignore[misc]  # a GzipFile reads as a binary file does
        else:
            yield file


def read_at_most(file: IO[bytes], size: int) -> bytearray:
    """Return the next `size` bytes, fewer at the end. Takes memory for what is there, not for what was asked."""
    content = bytearray()
    while len(content) < size and (chunk := file.read(min(_CHUNK, size - len(content)))):
        content += chunk
    return content


def read_archive(path: Path, md5: str, folder: str, names: Collection[str]) -> dict[str, tuple[bytes, str]]:
    """Return the files `folder`/<name> of a .tar.gz by name, each with its path for messages; nothing is unpacked.

    md5: of the published archive. Raises DataError for another one, and where a file is not in it.
    """
    if (came := _md5_of_file(path)) != md5:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) is not the archive that its authors publish: "
            f"its md5 is {came}, expected {md5}",
            remedy="It may be truncated or still downloading: copy it again.",
        )
    wanted = {f"{folder}/{name}": name for name in names}
    contents: dict[str, tuple[bytes, str]] = {}
    with damage_named(path), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = wanted.get(member.name)
            if name is not None and (file := archive.extractfile(member)) is not None:
                contents[name] = (file.read(), f"{path}: {member.name}")
            if len(contents) == len(wanted):
                break  # what follows may be gigabytes that nothing reads
    if absent := [name for name in names if name not in contents]:
        raise DataError(f"{path} holds no {folder}/{absent[0]}")
    return contents


def _md5_of_file(path: Path) -> str:
    # What is published. It tells a broken download; what is read is bytes alone, whoever made them.
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what gzip, tar and zip raise for damaged files into a DataError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short: {error}",
            remedy="It may still be downloading: copy it again and compare the sizes.",
        ) from error
