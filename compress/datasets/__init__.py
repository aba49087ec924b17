"""Data: where it comes from (`SOURCES`), what a recipe sees of it (`DataSpec`), and its splits as arrays."""

from __future__ import annotations

from compress.datasets.base import Dataset, Declaration, Source, Split
from compress.datasets.sources import SOURCES
from compress.datasets.spec import DataSpec
from compress.datasets.view import declare, describe, fingerprint, load

__all__ = [
    "SOURCES",
    "DataSpec",
    "Dataset",
    "Declaration",
    "Source",
    "Split",
    "declare",
    "describe",
    "fingerprint",
    "load",
]
