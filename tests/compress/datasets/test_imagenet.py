"""The ImageNet layout: what of each image is shown, which rows are test, what is wrong with a tree of another form."""

from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from true_formats.imagenet import WNIDS, jpeg, write

from compress.data_check import check_data
from compress.datasets import Dataset, DataSpec, describe, fingerprint, load
from compress.datasets.decode import CentreCrop
from compress.datasets.imagenet import ImageNet
from compress.datasets.stream import ImageStream
from export.graph import InputSignature
from runtime.errors import DataError

SPEC = DataSpec.model_validate({"source": {"imagenet": {"size": 28}}, "validation": 0.25})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, rows=16)
    return tmp_path


def opened(root: Path, cache: Path | None = None) -> Dataset:
    return load(SPEC, seed=0, data_root=root, cache=cache)


def test_val_is_test_and_validation_is_cut_from_train(root: Path) -> None:
    dataset = opened(root)
    assert dataset.class_names == WNIDS
    assert describe(SPEC, root).rows == {"train": 12, "validation": 4, "test": 8}
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 4, 8)
    assert dataset.signature == InputSignature((28, 28, 3)) == describe(SPEC, root).signature
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert isinstance(dataset.train.inputs, ImageStream)
    assert dataset.train.inputs.shape == (12, 28, 28, 3)


def test_known_before_files_are_opened() -> None:
    declared = ImageNet().declare()
    assert (declared.classes, declared.signature) == (1000, InputSignature((224, 224, 3)))
    assert declared.rows == {"train": 1_281_167, "test": 50_000}


def test_the_centre_of_the_shorter_side_is_shown(root: Path) -> None:
    # The published evaluation: the shorter side to 256, then the central 224; 32 and 28 here.
    path = root / "imagenet" / "val" / WNIDS[1] / "ILSVRC2012_val_00000002.JPEG"
    with Image.open(path) as image:
        assert image.size == (37, 50)
        side = 37 * 28 / 32
        box = ((37 - side) / 2, (50 - side) / 2, (37 + side) / 2, (50 + side) / 2)
        expected = np.asarray(image.resize((28, 28), Image.Resampling.BILINEAR, box=box))
    np.testing.assert_array_equal(opened(root).test.inputs[2:3][0], expected)


def test_the_part_of_an_image_by_hand() -> None:
    assert CentreCrop(size=(224, 224), share=0.875).box(500, 256) == (138.0, 16.0, 362.0, 240.0)
    assert CentreCrop(size=(64, 64)).box(178, 218) == (0.0, 20.0, 178.0, 198.0)
    assert CentreCrop(size=(10, 20)).box(100, 100) == (0.0, 25.0, 100.0, 75.0)  # size is (H, W)


def test_grey_and_cmyk_images_become_colour(root: Path) -> None:
    dataset = opened(root)
    images = dataset.test.inputs[:]
    grey = images[dataset.test.labels == 2][0]
    assert (grey[..., 0] == grey[..., 1]).all()
    assert np.ptp(images[dataset.test.labels == 3][0].astype(int), axis=2).max() > 20


def test_a_damaged_image_is_found_before_training(root: Path, tmp_path: Path) -> None:
    victim = root / "imagenet" / "train" / WNIDS[1] / f"{WNIDS[1]}_5.JPEG"
    victim.write_bytes(victim.read_bytes()[:-60])
    # By name: n01443537_1, _13, _5, _9 are rows 4 to 7.
    with pytest.raises(DataError, match=rf"train row 6 \({WNIDS[1]}/{WNIDS[1]}_5.JPEG: does not decode"):
        opened(root)
    skipping = DataSpec.model_validate({"source": "imagenet", "validation": 0, "bad_rows": {"skip_at_most": 1}})
    dataset = load(skipping, seed=0, data_root=root)
    assert dataset.train.row_ids.tolist() == [row for row in range(16) if row != 6]
    assert dataset.train.inputs[-1:].shape == (1, 224, 224, 3)


def test_images_are_checked_once(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        opened(root, tmp_path / "cache")
    assert [record.message.endswith("checking 16 images, once") for record in caplog.records].count(True) == 1
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept < 2000  # which are usable, and no pixels


def test_the_fingerprint_is_of_names_and_sizes(root: Path, tmp_path: Path) -> None:
    before = fingerprint(SPEC, root)
    shutil.copytree(root / "imagenet", tmp_path / "copy" / "imagenet")
    assert fingerprint(SPEC, tmp_path / "copy") == before
    victim = next((tmp_path / "copy" / "imagenet" / "val" / WNIDS[0]).iterdir())
    victim.write_bytes(victim.read_bytes() + b"\x00")
    assert fingerprint(SPEC, tmp_path / "copy") != before


def test_val_in_one_folder_is_answered_with_the_layout(root: Path) -> None:
    val = root / "imagenet" / "val"
    for path in list(val.rglob("*.JPEG")):
        path.rename(val / path.name)
    for wnid in WNIDS:
        (val / wnid).rmdir()
    with pytest.raises(DataError, match=r"val has no directories, expected one a class, such as .*n01440764") as caught:
        opened(root)
    assert "imagenet/val/<wnid>/*.JPEG" in caught.value.remedy


@pytest.mark.parametrize("gone", ["", "val", "train"])
def test_a_missing_split_is_named_with_the_layout(root: Path, gone: str) -> None:
    shutil.rmtree(root / "imagenet" / gone)
    says = f"needs {gone}, which is not there" if gone else "the folder does not exist"
    with pytest.raises(DataError, match=says) as caught:
        opened(root)
    for part in ("imagenet/train/<wnid>/*.JPEG", "image-net.org", "EDGEFOLD_DATA"):
        assert part in caught.value.remedy


def test_a_class_that_train_lacks_is_named(root: Path) -> None:
    (root / "imagenet" / "val" / WNIDS[3]).rename(root / "imagenet" / "val" / "n01491362")
    with pytest.raises(DataError, match="train has no class 'n01491362'") as caught:
        opened(root)
    assert caught.value.remedy == f"Did you mean '{WNIDS[3]}'?"


def test_data_check_counts_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_data("imagenet", root)
    assert not found["complete"]
    (form,) = found["formats"]
    assert form["rows"] == {"train": 16, "test": 8}
    assert form["problems"][0] == "train has 16 rows, the published set 1,281,167"
    monkeypatch.setattr(ImageNet, "rows", {"train": 16, "test": 8})
    assert check_data("imagenet", root)["reads"] == "the layout train/<wnid>, val/<wnid>"
    shutil.rmtree(root / "imagenet" / "val")
    assert check_data("imagenet", root)["formats"][0]["missing"] == ["val"]


def test_the_writer_writes_what_pillow_reads() -> None:
    with Image.open(io.BytesIO(jpeg(12, 7, seed=0, mode="CMYK"))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "CMYK", (12, 7))
