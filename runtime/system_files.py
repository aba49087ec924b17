"""Reads the small files of /proc and /sys."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def readable(paths: Iterable[Path], read: Callable[[Path], T]) -> list[T]:
    """Read those of `paths` that can be read."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            found.append(read(path))
    return found


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def number(path: Path) -> int:
    return int(text(path))
