"""What a named data set needs, in which of its formats it lies under the data root, and what is missing there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.data_argument import data_argument
from compress.datasets import SOURCES
from compress.datasets.author_files import AuthorFiles
from compress.datasets.labelled_parquet import LabelledParquet
from compress.datasets.named import NamedSet
from compress.datasets.parquet_files import shard_split
from compress.datasets.root import find_root
from runtime.errors import DataError, UsageError


def check_data(name: str, data_root: str | Path | None = None) -> dict[str, Any]:
    """Return which formats the source looks for, what is there of each, and whether one of them is the whole set.

    name: a set, or `set: {options}` as in a recipe. A format is complete when all its files are there with as many rows
    as published. The authors' files are read whole for that, and all their rows must be usable; of parquet files the
    footers are; image files are counted; of files that are larger than memory the ends are read (`AuthorFiles.glance`).
    Raises UsageError for a name that is no named set, DataError where no root is named.
    """
    if name == "digits":
        return {"name": name, "complete": True, "reads": None, "origin": "scikit-learn", "folder": None, "formats": []}
    source = _named_set(name)
    root = find_root(data_root, None)
    folder = source.where(root)
    formats = [_parquet(source.parquet(folder), source)] if source.in_parquet else []
    formats += [_author_files(files, source.rows) for files in source.author_files(folder)]
    # What is read is the source's to choose: a format that is read first but is damaged hides a good one.
    chosen = _form(source.folder(root))
    reads = next((form for form in formats if form["form"] == chosen and form["files"]), None)
    return {
        "name": name,
        "complete": reads is not None and reads["complete"],
        "reads": None if reads is None else chosen,
        "origin": source.origin,
        "folder": str(folder),
        "formats": formats,
    }


def _named_set(name: str) -> NamedSet:
    kind = SOURCES.get(name)
    if kind is not None and issubclass(kind, NamedSet):
        return kind.of_any_options()
    if kind is None and ":" in name:
        source = data_argument(name, "NAME").source
        if isinstance(source, NamedSet):
            return source
        name, kind = source.kind, SOURCES.get(source.kind)
    known = ", ".join(["digits", *(known for known, kind in SOURCES.items() if issubclass(kind, NamedSet))])
    problem = "reads data of your own, wherever its path is" if kind is not None else "is not known"
    raise UsageError(f"data set '{name}' {problem}", f"The named sets are {known}.")


def _form(files: object) -> str:
    return files.form_in_words if isinstance(files, AuthorFiles) else "parquet"


def _parquet(parquet: LabelledParquet, source: NamedSet) -> dict[str, Any]:
    splits = {path: shard_split(path) for path in sorted(parquet.folder.glob("*.parquet"))}
    files = [path for path, split in splits.items() if split]
    missing = [f"{split}-*-of-*.parquet" for split in parquet.required if split not in splits.values()]
    rows: dict[str, int] = {}
    problems: list[str] = []
    if not missing:
        try:
            source.check_classes(parquet)
            rows = parquet.rows
            problems = _other_rows(rows, source.rows)
        except DataError as error:
            problems = [error.message]
    return _state("parquet", files, missing, rows, problems)


def _author_files(files: AuthorFiles, published: Mapping[str, int]) -> dict[str, Any]:
    missing = [" or ".join(wanted.names) for wanted in files.absent]
    rows: dict[str, int] = {}
    problems: list[str] = []
    if not missing:
        try:
            glanced = files.glance(published)
            rows, problems = _read_whole(files, published) if glanced is None else ({}, list(glanced))
        except DataError as error:
            problems = [error.message]
    return _state(_form(files), list(files.found.values()), missing, rows, problems)


def _read_whole(files: AuthorFiles, published: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    examined = files.examined()
    rows = {split: count for split, (count, _) in examined.items()}
    problems = [f"{split} has {bad:,} unusable row(s)" for split, (_, bad) in examined.items() if bad]
    return rows, problems + _other_rows(rows, published)


def _other_rows(rows: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    return [
        f"{split} has {rows.get(split, 0):,} rows, the published set {expected:,}"
        for split, expected in published.items()
        if rows.get(split) != expected
    ]


def _state(
    form: str, files: list[Path], missing: list[str], rows: dict[str, int], problems: list[str]
) -> dict[str, Any]:
    return {
        "form": form,
        "complete": not missing and not problems,
        "files": [{"path": str(path), "bytes": _size(path)} for path in files],
        "missing": missing,
        "rows": rows,
        "problems": problems,
    }


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
