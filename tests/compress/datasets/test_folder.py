from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress.datasets import DataSpec, describe, fingerprint, load
from export.graph import InputSignature
from runtime.errors import DataError


def spec(path: Path | str, /, *, source: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    return DataSpec.model_validate(
        {"source": {"folder": {"path": str(path), **(source or {})}}, "validation": 0, **options}
    )


def write(folder: Path, images: Mapping[str, np.ndarray]) -> Path:
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def birds(tmp_path: Path, random_images: Any) -> Path:
    """train: 6 crows, 6 owls; test: 2 of each; 6x5 grey."""
    pixels = iter(random_images(16))
    names = [f"train/{kind}/{i}.png" for kind in ("owl", "crow") for i in range(6)]
    names += [f"test/{kind}/{i}.png" for kind in ("owl", "crow") for i in range(2)]
    return write(tmp_path / "birds", {name: next(pixels) for name in names})


def test_rows_are_sorted_by_class_and_name(birds: Path, random_images: Any) -> None:
    (birds / "train" / "crow" / "notes.txt").write_text("not an image")
    (birds / "train" / "crow" / ".hidden.png").write_bytes(b"thumbnail of some tool")
    dataset = load(spec(birds), seed=0)
    pixels = random_images(16)
    assert (dataset.name, dataset.class_names) == ("birds", ("crow", "owl"))
    np.testing.assert_array_equal(dataset.train.inputs[..., 0], np.concatenate([pixels[6:12], pixels[:6]]))
    np.testing.assert_array_equal(dataset.test.inputs[..., 0], np.concatenate([pixels[14:16], pixels[12:14]]))
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.train.row_ids.tolist() == list(range(12))
    assert describe(spec(birds)).rows == {"train": 12, "validation": 0, "test": 4}


def test_a_path_is_relative_to_the_root(birds: Path) -> None:
    assert len(load(spec("birds"), seed=0, data_root=birds.parent).train) == 12


def test_own_validation_is_used_unless_the_recipe_cuts_one(birds: Path) -> None:
    for kind in ("crow", "owl"):
        shutil.copytree(birds / "test" / kind, birds / "validation" / kind)
    stored = load(spec(birds, validation=None), seed=0)
    np.testing.assert_array_equal(stored.validation.inputs, stored.test.inputs)
    assert len(stored.train) == 12
    cut = load(spec(birds, validation=0.5), seed=0)
    assert (len(cut.train), len(cut.validation)) == (6, 6)
    assert len(load(spec(birds, validation=0.0), seed=0).validation) == 0


def test_classes_without_splits_give_a_fixed_fifth_to_test(tmp_path: Path, random_images: Any) -> None:
    # A class called "train" is not a split: there are no directories in it.
    names = [f"{kind}/{i}.png" for kind in ("train", "tram") for i in range(10)]
    folder = write(tmp_path / "rail", dict(zip(names, random_images(20), strict=True)))
    first, second = load(spec(folder), seed=0), load(spec(folder), seed=1)
    assert first.class_names == ("train", "tram")
    assert np.bincount(first.test.labels).tolist() == [2, 2]
    np.testing.assert_array_equal(first.test.row_ids, second.test.row_ids)
    assert sorted([*first.train.row_ids, *first.test.row_ids]) == list(range(20))
    assert describe(spec(folder)).rows == {"train": 16, "validation": 0, "test": 4}


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((5, 6), np.uint8), "image is 5x6 grey, expected 6x5 grey"),
        (np.zeros((6, 5, 3), np.uint8), "image is 6x5 RGB, expected 6x5 grey"),
        (np.zeros((6, 5, 4), np.uint8), "mode is RGBA, expected 8-bit grey .* `mode: grey` or `mode: rgb` converts it"),
    ],
)
def test_an_image_unlike_the_others_is_named(birds: Path, pixels: np.ndarray, says: str) -> None:
    write(birds, {"train/owl/2.png": pixels})
    with pytest.raises(DataError, match=rf"train row 8 \(owl/2.png: {says}"):
        load(spec(birds), seed=0)


def test_images_of_any_size_are_brought_to_one(birds: Path) -> None:
    write(birds, {"train/owl/2.png": np.full((50, 40, 4), 200, np.uint8)})
    dataset = load(spec(birds, source={"size": (8, 4), "mode": "rgb"}), seed=0)
    assert dataset.signature == InputSignature(shape=(8, 4, 3))
    np.testing.assert_array_equal(dataset.train.inputs[8], np.full((8, 4, 3), 200))


def test_the_camera_s_orientation_is_followed(birds: Path) -> None:
    upright = np.zeros((6, 5), np.uint8)
    upright[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: turn by 90 degrees clockwise to show
    Image.fromarray(np.rot90(upright)).save(birds / "train" / "owl" / "2.png", exif=exif)
    np.testing.assert_array_equal(load(spec(birds), seed=0).train.inputs[8, ..., 0], upright)


def test_a_corrupt_file_is_named_or_dropped(birds: Path) -> None:
    victim = birds / "train" / "crow" / "3.png"
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(DataError, match=r"train row 3 \(crow/3.png: does not decode"):
        load(spec(birds), seed=0)
    dataset = load(spec(birds, bad_rows={"skip_at_most": 1}), seed=0)
    assert dataset.train.row_ids.tolist() == [0, 1, 2, *range(4, 12)]


def test_an_unknown_class_in_test_is_named(birds: Path) -> None:
    (birds / "test" / "owl").rename(birds / "test" / "owls")
    with pytest.raises(DataError, match="train has no class 'owls'") as caught:
        load(spec(birds), seed=0)
    assert caught.value.remedy == "Did you mean 'owl'?"


@pytest.mark.parametrize("empty", ["", "train/owl"])
def test_a_folder_without_images_is_refused(birds: Path, empty: str) -> None:
    shutil.rmtree(birds / empty)
    (birds / empty).mkdir()
    with pytest.raises(DataError, match=r"no images|no class directories") as caught:
        load(spec(birds), seed=0)
    assert "Put " in caught.value.remedy


def test_one_class_is_not_a_classifier(birds: Path) -> None:
    shutil.rmtree(birds / "train" / "crow")
    shutil.rmtree(birds / "test" / "crow")
    with pytest.raises(DataError, match="has 1 class, expected 2 or more: owl"):
        load(spec(birds), seed=0)


def test_a_missing_folder_shows_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        fingerprint(spec("birds"), tmp_path)
    assert f"{tmp_path}/birds/train/<class>/*.png" in caught.value.remedy
    assert f"{tmp_path}/birds/<class>/*.png" in caught.value.remedy
    assert "EDGEFOLD_DATA" in caught.value.remedy


def test_a_broken_link_is_a_data_error(birds: Path) -> None:
    (birds / "train" / "owl" / "9.png").symlink_to(birds / "nowhere.png")
    with pytest.raises(DataError, match=r"cannot be read: .*9\.png"):
        fingerprint(spec(birds))


def test_the_fingerprint_is_of_names_and_content(birds: Path, tmp_path: Path) -> None:
    before = fingerprint(spec(birds))
    shutil.copytree(birds, tmp_path / "copy")
    assert fingerprint(spec(tmp_path / "copy")) == before == load(spec(birds), seed=0).fingerprint
    (tmp_path / "copy" / "train" / "owl" / "0.png").rename(tmp_path / "copy" / "train" / "crow" / "9.png")
    assert fingerprint(spec(tmp_path / "copy")) != before
