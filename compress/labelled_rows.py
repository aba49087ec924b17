"""The labelled rows that `edgefold accuracy` evaluates, as an .npz of the device side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def labelled_rows(
    bundle: Path, data: str | None, *, data_root: Path | None, cache: Path, limit: int | None
) -> Iterator[Path | None]:
    """Yield an .npz: the file `data`, the test rows of the data set that it names, or those that the run left.

    None stands for the bundle's own samples, where nothing is named and no run left rows.
    """
    if data is None:
        own = bundle.parent / "test_rows.npz"
        yield own if bundle.is_dir() and own.exists() else None
    elif data.endswith(".npz"):
        yield Path(data)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npz"
            _write_test_rows(path, data, data_root, cache, limit)
            yield path


def _write_test_rows(path: Path, data: str, data_root: Path | None, cache: Path, limit: int | None) -> None:
    from compress.data_argument import data_argument
    from compress.datasets import load
    from export.bundle import write_npz

    test = load(data_argument(data, "--data"), seed=0, data_root=data_root, cache=cache).test
    rows = slice(0, limit or len(test))
    with open(path, "wb") as file:
        write_npz(file, {"inputs": test.inputs[rows], "labels": test.labels[rows], "row_ids": test.row_ids[rows]})
