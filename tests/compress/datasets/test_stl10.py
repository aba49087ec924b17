"""STL-10's own files: planes column by column, labels from 1, the archive by its md5."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from true_formats.stl10 import image_bytes, write, write_files

from compress.data_check import check_data
from compress.datasets import DataSpec, describe, fingerprint, load
from compress.datasets.named import Stl10
from compress.datasets.stl10_files import ARCHIVE, read_images
from export.graph import InputSignature
from runtime.errors import DataError

STL10 = DataSpec.model_validate({"source": "stl10", "validation": 0})
SMALL = DataSpec.model_validate({"source": {"stl10": {"size": 32}}, "validation": 0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The unpacked files below the data root `tmp_path`: 6 train and 2 test rows."""
    write(tmp_path, rows=6)
    return tmp_path / "stl10" / "stl10_binary"


def pixels(rows: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (rows, 96, 96, 3), dtype=np.uint8)


def test_images_lie_column_by_column() -> None:
    # One pixel, by the page's description: the red plane first, and in it the first column from top to bottom.
    content = bytearray(3 * 96 * 96)
    content[2 * 96 * 96 + 5 * 96 + 7] = 200  # blue, column 5, row 7
    image = np.zeros((1, 96, 96, 3), np.uint8)
    image[0, 7, 5, 2] = 200
    np.testing.assert_array_equal(read_images(bytes(content), "train_X.bin"), image)
    assert image_bytes(image) == bytes(content)


def test_the_unpacked_files_are_read(tmp_path: Path) -> None:
    images = {"train": pixels(12), "test": pixels(4)[::-1]}
    write_files(tmp_path / "stl10", images, {"train": np.arange(12) % 10, "test": np.arange(4)})
    dataset = load(STL10, seed=0, data_root=tmp_path)
    np.testing.assert_array_equal(dataset.train.inputs, images["train"])
    np.testing.assert_array_equal(dataset.test.inputs, images["test"])
    assert dataset.train.labels.tolist() == [*range(10), 0, 1]
    assert dataset.class_names[:3] == ("airplane", "bird", "car")
    assert describe(STL10, tmp_path).rows == {"train": 12, "validation": 0, "test": 4}


def test_images_are_shrunk_for_models_of_smaller_ones(tmp_path: Path, folder: Path) -> None:
    whole, small = (load(spec, seed=0, data_root=tmp_path) for spec in (STL10, SMALL))
    assert small.signature == InputSignature((32, 32, 3)) == describe(SMALL, tmp_path).signature
    expected = Image.fromarray(whole.test.inputs[1]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small.test.inputs[1], np.asarray(expected))
    assert SMALL.source.declare().signature == InputSignature((32, 32, 3))


def test_the_archive_is_read_where_it_is_the_published_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = load(STL10, seed=0, data_root=tmp_path)
    path = tmp_path / "packed" / "stl10" / ARCHIVE
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="stl10_binary")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"its md5 is {md5}, expected 91f7769df0f17e558f3565bffb0c7dfb"):
        load(STL10, seed=0, data_root=tmp_path / "packed")
    monkeypatch.setattr(Stl10, "md5", md5)
    dataset = load(STL10, seed=0, data_root=tmp_path / "packed")
    np.testing.assert_array_equal(dataset.train.inputs, unpacked.train.inputs)
    assert dataset.test.labels.tolist() == unpacked.test.labels.tolist()
    assert [file.name for file in path.parent.iterdir()] == [ARCHIVE]  # nothing was unpacked
    assert fingerprint(STL10, tmp_path) != fingerprint(STL10, tmp_path / "packed")


@pytest.mark.parametrize("size", [96, 32])
def test_parquet_goes_first(tmp_path: Path, folder: Path, encode: Any, write_parquet: Any, size: int) -> None:
    for split in ("train", "test"):
        write_parquet(folder.parent / f"{split}-00000-of-00001.parquet", [encode(i) for i in pixels(3)], [0, 1, 2])
    spec = DataSpec.model_validate({"source": {"stl10": {"size": size}}, "validation": 0})
    train = load(spec, seed=0, data_root=tmp_path).train
    assert train.inputs.shape == (3, size, size, 3)
    if size == 96:
        np.testing.assert_array_equal(train.inputs, pixels(3))


def test_data_check_tells_what_is_there(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_data("stl10", tmp_path)
    assert (found["complete"], found["reads"]) == (False, "the layout of stl10_binary")
    assert found["formats"][1]["problems"][0] == "train has 6 rows, the published set 5,000"
    monkeypatch.setattr(Stl10, "rows", {"train": 6, "test": 3})
    assert check_data("stl10", tmp_path)["complete"]


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("train_X.bin", lambda content: content[:-1], r"train_X.bin has 165,887 bytes, expected a multiple of 27,648"),
        ("train_X.bin", lambda content: b"", "train_X.bin has 0 bytes"),
        ("train_X.bin", lambda content: content[:-27648], "has 5 images, but .*train_y.bin 6 labels"),
        ("test_y.bin", lambda content: content[:-1], "has 3 images, but .*test_y.bin 2 labels"),
        ("train_y.bin", lambda content: b"\x00" + content[1:], r"train row 0 \(label is 0, expected 1 to 10\)"),
        ("train_y.bin", lambda content: content[:-1] + b"\x0b", r"train row 5 \(label is 11, expected 1 to 10\)"),
        ("class_names.txt", lambda content: b"cat\ndog\n", "class_names.txt is not that of STL-10: it names cat, dog"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, folder: Path, file: str, damage: Any, says: str) -> None:
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(DataError, match=says):
        load(STL10, seed=0, data_root=tmp_path)


def test_a_missing_file_is_named_with_all_layouts(tmp_path: Path, folder: Path) -> None:
    (folder / "test_y.bin").unlink()
    with pytest.raises(DataError, match=r"needs stl10_binary/test_y.bin or test_y.bin, which is not there") as caught:
        load(STL10, seed=0, data_root=tmp_path)
    for part in ("stl10/train-00000-of-00001.parquet", "stl10_binary.tar.gz", "cs.stanford.edu"):
        assert part in caught.value.remedy
