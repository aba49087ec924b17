"""The labelled rows that `edgefold accuracy` evaluates, as an .npz of the device side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.datasets import DataSpec


@contextlib.contextmanager
def labelled_rows(
    bundle: Path,
    data: str | None,
    *,
    data_root: Path | None,
    cache: Path,
    limit: int | None,
    notify: Callable[[str], None],
) -> Iterator[Path | None]:
    """Yield an .npz: the file `data`, the test rows of the data set that it names, or those that the run left.

    Where the model is of a recipe on the same data set, its classes are regrouped as there. None stands for the
    bundle's own samples, where nothing is named and no run left rows.
    """
    if data is None:
        own = bundle.parent / "test_rows.npz"
        yield own if bundle.is_dir() and own.exists() else None
    elif data.endswith(".npz"):
        yield Path(data)
    else:
        from compress.data_argument import data_argument

        spec = _as_in_the_recipe(data_argument(data, "--data"), bundle, notify)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{spec.source.kind}-test-rows.npz"
            _write_test_rows(path, spec, data_root, cache, limit)
            yield path


def _as_in_the_recipe(spec: DataSpec, bundle: Path, notify: Callable[[str], None]) -> DataSpec:
    """Return the data with the classes of the recipe that the model carries, where that is on the same data set."""
    from compress.datasets import DataSpec
    from compress.provenance import recipe_in
    from runtime.bundle import MANIFEST, open_bundle

    if bundle.is_dir() and not (bundle / MANIFEST).exists():
        return spec  # what it lacks is said where it is opened
    recipe = recipe_in(open_bundle(bundle).file_of("onnx") if bundle.is_dir() else bundle)
    if recipe is None:
        return spec
    source, relabel = recipe["data"].get("source"), recipe["data"].get("relabel")
    if relabel is None or not isinstance(source, dict) or list(source) != [spec.source.kind]:
        return spec
    notify(f"the classes of {spec.source.kind} are regrouped as in the recipe of the model")
    regrouped = DataSpec.model_validate({"source": source, "relabel": relabel})
    return spec.model_copy(update={"relabel": regrouped.relabel})


def _write_test_rows(path: Path, spec: DataSpec, data_root: Path | None, cache: Path, limit: int | None) -> None:
    from compress.datasets import load
    from export.bundle import write_npz

    test = load(spec, seed=0, data_root=data_root, cache=cache).test
    rows = slice(0, limit or len(test))
    with open(path, "wb") as file:
        write_npz(file, {"inputs": test.inputs[rows], "labels": test.labels[rows], "row_ids": test.row_ids[rows]})
