"""Image files with a row each: names, and what tells their content, without opening them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from runtime.files import sha256_of_file


@dataclass(frozen=True, eq=False)
class ImageFiles(Sequence[Path]):
    """The files `folder`/<name>, a row each. A million names are 100 MB as text; as paths they would be a gigabyte."""

    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...

    def __getitem__(self, index: int | slice) -> Path | ImageFiles:
        if isinstance(index, slice):
            return ImageFiles(self.folder, self.names[index])
        return self.folder / self.names[index]

    def __iter__(self) -> Iterator[Path]:
        return (self.folder / name for name in self.names)

    def hashes(self) -> tuple[str, ...]:
        """Return the sha256 hex of each file's content."""
        with ThreadPoolExecutor() as pool:
            return tuple(pool.map(sha256_of_file, self))

    def sizes(self) -> tuple[str, ...]:
        """Return each file's size: with the names enough to tell a published set, whose content is known."""
        return tuple(f"{path.stat().st_size} bytes" if path.exists() else "missing" for path in self)
