"""Small data sets on disk, in the layouts that the sources read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _no_data_root_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFOLD_DATA", raising=False)


@pytest.fixture
def random_images() -> Callable[..., np.ndarray]:
    def make(rows: int, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (rows, *(shape or (6, 5))), dtype=np.uint8)

    return make


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def png(pixels: np.ndarray, form: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=form)
        return buffer.getvalue()

    return png


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write one shard as Hugging Face `datasets` does, with the features in the schema metadata if there are names."""

    def write(
        path: Path,
        images: Sequence[bytes | None],
        labels: Sequence[Any],
        *,
        names: Sequence[str] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        plain: bool = False,
    ) -> Path:
        if plain:
            column = pa.array(images, pa.binary())
        else:
            rows = [None if image is None else {"bytes": image, "path": None} for image in images]
            column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        label_array = labels if isinstance(labels, pa.Array) else pa.array(labels)
        table = pa.table({image_column: column, label_column: label_array})
        if names is not None:
            features = {image_column: {"_type": "Image"}, label_column: {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=7)
        return path

    return write


@pytest.fixture
def pets(tmp_path: Path, random_images: Any, encode: Any, write_parquet: Any) -> Path:
    """A data root with `pets`: 30 train rows (cat, dog, owl in turn) in two shards, 6 test rows, 6x5 grey PNG."""
    folder = tmp_path / "root" / "pets"
    names = ["cat", "dog", "owl"]
    train = [encode(pixels) for pixels in random_images(30)]
    write_parquet(folder / "train-00000-of-00002.parquet", train[:18], [i % 3 for i in range(18)], names=names)
    write_parquet(folder / "train-00001-of-00002.parquet", train[18:], [i % 3 for i in range(12)], names=names)
    test = [encode(pixels) for pixels in random_images(6, seed=1)]
    write_parquet(folder / "test-00000-of-00001.parquet", test, [0, 1, 2, 0, 1, 2], names=names)
    return folder.parent
