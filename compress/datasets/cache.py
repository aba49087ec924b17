"""Decoded images, encoded texts and tables on disk: one `.npy` a split, with its checksum beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compress.datasets.base import UInt8Array
from compress.datasets.decode import DECODE_VERSION, ImageOptions, Images, Shape
from runtime.files import folder_atomically, json_text, sha256_of_file

log = logging.getLogger(__name__)

_PIXELS = "pixels.npy"  # of text, too: what older versions have kept stays valid
_RECORD = "record.json"

T = TypeVar("T", bound=np.generic)
Made = tuple[npt.NDArray[T], dict[int, str]]
# Takes the next rows of a part; and what is wrong with rows, by part and row.
Append = Callable[[str, npt.NDArray[T]], None]
Bad = dict[str, dict[int, str]]


def cache_key(file_hashes: Sequence[str], options: ImageOptions, shape: Shape, **extra: str) -> str:
    """Return the sha256 hex that names the decoded form of files with these sha256, in this order."""
    description = {
        "version": DECODE_VERSION,
        "files": list(file_hashes),
        "options": options.model_dump(mode="json", include={"size", "mode", "share"}),
        "shape": list(shape),
        **extra,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def cached_images(cache: Path | None, key: str, rows: int, shape: Shape, decode: Callable[[], Images]) -> Images:
    """Return the images that `cache` holds under `key`, memory-mapped, else those of `decode()`, kept."""

    def make() -> tuple[UInt8Array, dict[int, str]]:
        images = decode()
        return images.pixels, images.bad

    return Images(*cached_rows(cache, key, (rows, *shape), np.uint8, make))


def cached_rows(
    cache: Path | None, key: str, shape: tuple[int, ...], dtype: type[T], make: Callable[[], Made[T]]
) -> Made[T]:
    """Return what `cache` holds under `key`, memory-mapped, else what `make()` gives, kept.

    That is an array of `shape` and `dtype`, a row each, and what is wrong with the rows that cannot be used. What lies
    in the cache is checked (checksum, dtype, shape); a damaged entry is built again with a logged warning.
    """
    if cache is None:
        return make()
    entry = cache / key
    if entry.exists():
        try:
            return _read(entry, shape, dtype)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("cached rows in %s are damaged and are built again: %s", entry, error)
    array, bad = make()
    _keep(entry, array, bad)
    return array, bad


def streamed_rows(
    cache: Path | None,
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: type[T],
    make: Callable[[Append[T]], Bad],
) -> tuple[dict[str, npt.NDArray[T]], Bad]:
    """Return several parts that `cache` holds under `key`, else what `make(append)` appends to them, kept.

    shapes: of each part by its name. Rows are written as they come, so they take no memory; without a cache they do.
    The arrays are memory-mapped, and writable by this process alone, which saves the copy that torch would ask for.
    """
    if cache is None:
        return _made_in_memory(shapes, dtype, make)
    entry = cache / key
    if entry.exists():
        try:
            return _read_parts(entry, shapes, dtype, check=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("cached rows in %s are damaged and are built again: %s", entry, error)
    try:
        with folder_atomically(entry) as folder:
            _write_parts(folder, shapes, dtype, make)
    except OSError:
        # Another process may have put the same entry there.
        if not (entry / _RECORD).exists():
            raise
    return _read_parts(entry, shapes, dtype, check=False)


def _made_in_memory(
    shapes: Mapping[str, tuple[int, ...]], dtype: type[T], make: Callable[[Append[T]], Bad]
) -> tuple[dict[str, npt.NDArray[T]], Bad]:
    arrays = {name: np.empty(shape, dtype) for name, shape in shapes.items()}
    filled = dict.fromkeys(shapes, 0)

    def append(name: str, rows: npt.NDArray[T]) -> None:
        arrays[name][filled[name] : filled[name] + len(rows)] = rows
        filled[name] += len(rows)

    bad = make(append)
    return arrays, bad


def _write_parts(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: type[T], make: Callable[[Append[T]], Bad]
) -> None:
    with contextlib.ExitStack() as opened:
        files = {name: opened.enter_context((folder / f"{name}.npy").open("wb")) for name in shapes}
        for name, file in files.items():
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shapes[name]}
            np.lib.format.write_array_header_1_0(file, header)

        def append(name: str, rows: npt.NDArray[T]) -> None:
            files[name].write(np.ascontiguousarray(rows).data)

        bad = make(append)
    record = {"sha256": {name: sha256_of_file(folder / f"{name}.npy") for name in shapes}, "bad": bad}
    (folder / _RECORD).write_text(json_text(record), encoding="utf-8")


def _read_parts(
    entry: Path, shapes: Mapping[str, tuple[int, ...]], dtype: type[T], *, check: bool
) -> tuple[dict[str, npt.NDArray[T]], Bad]:
    record: dict[str, Any] = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    arrays = {}
    for name, shape in shapes.items():
        path = entry / f"{name}.npy"
        if check and (came := sha256_of_file(path)) != record["sha256"][name]:
            raise ValueError(f"{path.name} has sha256 {came[:12]}…, expected {record['sha256'][name][:12]}…")
        arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            raise ValueError(f"{path.name} is {arrays[name].dtype} {arrays[name].shape}, expected {shape}")
    return arrays, {name: {int(row): str(why) for row, why in record["bad"][name].items()} for name in shapes}


def _read(entry: Path, shape: tuple[int, ...], dtype: type[T]) -> Made[T]:
    record: dict[str, Any] = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    if (came := sha256_of_file(entry / _PIXELS)) != record["sha256"]:
        raise ValueError(f"{_PIXELS} has sha256 {came[:12]}…, expected {record['sha256'][:12]}…")
    array = np.load(entry / _PIXELS, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{_PIXELS} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    return array, {int(row): str(reason) for row, reason in record["bad"].items()}


def _keep(entry: Path, array: npt.NDArray[Any], bad: dict[int, str]) -> None:
    try:
        with folder_atomically(entry) as folder:
            np.save(folder / _PIXELS, array, allow_pickle=False)
            record = {
                "sha256": sha256_of_file(folder / _PIXELS),
                "bad": {str(row): reason for row, reason in bad.items()},
            }
            (folder / _RECORD).write_text(json_text(record), encoding="utf-8")
    except OSError as error:
        # The rows are in memory, and another process may have put the same entry there: no reason to fail.
        if not (entry / _RECORD).exists():
            log.warning("decoded rows could not be kept in %s: %s", entry, error)
