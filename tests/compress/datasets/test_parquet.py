from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compress.datasets import DataSpec, describe, fingerprint, load
from export.graph import InputSignature, Normalization
from runtime.errors import DataError


def spec(path: str = "pets", /, *, source: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    return DataSpec.model_validate(
        {"source": {"parquet": {"path": path, **(source or {})}}, "validation": 0, **options}
    )


def test_shards_are_read_in_order_with_names_from_the_file(pets: Path, random_images: Any) -> None:
    dataset = load(spec(), seed=0, data_root=pets)
    assert (dataset.name, dataset.class_names) == ("pets", ("cat", "dog", "owl"))
    assert dataset.signature == InputSignature(shape=(6, 5, 1))
    assert dataset.normalization == Normalization(1 / 255, (0.0,), (1.0,))
    np.testing.assert_array_equal(dataset.train.inputs[..., 0], random_images(30))
    np.testing.assert_array_equal(dataset.train.labels, np.arange(30) % 3)
    np.testing.assert_array_equal(dataset.train.row_ids, np.arange(30))
    np.testing.assert_array_equal(dataset.test.inputs[..., 0], random_images(6, seed=1))
    assert (dataset.train.labels.dtype, dataset.train.row_ids.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_colour_images_and_plain_binary_columns(
    tmp_path: Path, random_images: Any, encode: Any, write_parquet: Any, form: str
) -> None:
    pixels = random_images(4, 8, 7, 3)
    blobs = [encode(image) if form != "WEBP" else _lossless_webp(image) for image in pixels]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", blobs, [0, 1, 0, 1], plain=True)
    dataset = load(spec(str(tmp_path)), seed=0)
    np.testing.assert_array_equal(dataset.train.inputs, pixels)


def _lossless_webp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True)
    return buffer.getvalue()


def one_split(tmp_path: Path, encode: Any, write_parquet: Any, random_images: Any, labels: Any, **options: Any) -> Path:
    blobs = [encode(pixels) for pixels in random_images(len(labels))]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", blobs, labels, **options)
    return tmp_path


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        ([7, 3, 3, 12], ("3", "7", "12"), [1, 0, 0, 2]),
        (["owl", "cat", "owl", "ant"], ("ant", "cat", "owl"), [2, 1, 2, 0]),
        ([True, False, True, True], ("0", "1"), [1, 0, 1, 1]),
        (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0]),
        (pa.array([1, 0, 1, 1], pa.uint8()), ("0", "1"), [1, 0, 1, 1]),
    ],
)
def test_without_names_the_distinct_labels_are_the_classes(
    tmp_path: Path, encode: Any, write_parquet: Any, random_images: Any, labels: Any, names: Any, codes: list[int]
) -> None:
    folder = one_split(tmp_path, encode, write_parquet, random_images, labels)
    dataset = load(spec(str(folder)), seed=0)
    assert dataset.class_names == names
    assert dataset.train.labels.tolist() == codes


@pytest.mark.parametrize(("labels", "codes"), [([1, 0, 1, 0], [1, 0, 1, 0]), (["x", "y", "x", "x"], [1, 0, 1, 1])])
def test_names_in_the_recipe_go_first(
    tmp_path: Path, encode: Any, write_parquet: Any, random_images: Any, labels: Any, codes: list[int]
) -> None:
    folder = one_split(tmp_path, encode, write_parquet, random_images, labels)
    dataset = load(spec(str(folder), source={"class_names": ("y", "x")}), seed=0)
    assert dataset.class_names == ("y", "x")
    assert dataset.train.labels.tolist() == codes


def test_describe_sees_what_load_finds(pets: Path) -> None:
    view = spec(relabel={"groups": ((0, 2), (1,))}, validation=0.1)
    description, dataset = describe(view, pets), load(view, seed=0, data_root=pets)
    assert description.class_names == dataset.class_names == ("cat/owl", "dog")
    assert description.signature == dataset.signature
    assert description.normalization == dataset.normalization
    assert description.rows == {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}


def test_without_test_files_a_fixed_fifth_is_test(pets: Path) -> None:
    (pets / "pets" / "test-00000-of-00001.parquet").unlink()
    first, second = load(spec(), seed=0, data_root=pets), load(spec(), seed=1, data_root=pets)
    np.testing.assert_array_equal(first.test.row_ids, second.test.row_ids)
    assert sorted([*first.train.row_ids, *first.test.row_ids]) == list(range(30))
    assert np.bincount(first.test.labels).tolist() == [2, 2, 2]
    assert describe(spec(), pets).rows == {"train": 24, "validation": 0, "test": 6}


def test_the_fingerprint_is_of_the_content_alone(pets: Path, tmp_path: Path) -> None:
    before = fingerprint(spec(), pets)
    shutil.copytree(pets / "pets", tmp_path / "elsewhere" / "animals")
    assert fingerprint(spec("animals"), tmp_path / "elsewhere") == before
    assert load(spec(), seed=0, data_root=pets).fingerprint == before
    test = pets / "pets" / "test-00000-of-00001.parquet"
    test.write_bytes(test.read_bytes() + b"\0")
    assert fingerprint(spec(), pets) != before


def test_the_fingerprint_needs_no_readable_parquet(pets: Path) -> None:
    (pets / "pets" / "test-00000-of-00001.parquet").write_bytes(b"not parquet")
    assert len(fingerprint(spec(), pets)) == 64


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_file_is_named_with_its_size(pets: Path, keep: float) -> None:
    shard = pets / "pets" / "train-00001-of-00002.parquet"
    data = shard.read_bytes()
    cut = data[: int(len(data) * keep) if isinstance(keep, float) else keep]
    shard.write_bytes(cut)
    with pytest.raises(DataError) as caught:
        load(spec(), seed=0, data_root=pets)
    assert str(shard) in caught.value.message
    assert f"({len(cut):,} bytes)" in caught.value.message
    assert "copy it again" in caught.value.remedy


def test_damage_inside_a_page_is_an_error_that_names_the_file(pets: Path) -> None:
    shard = pets / "pets" / "train-00000-of-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[4:2000] = bytes(len(data[4:2000]))
    shard.write_bytes(data)
    with pytest.raises(DataError, match="train-00000-of-00002"):
        load(spec(), seed=0, data_root=pets)


def test_a_missing_shard_is_named(pets: Path) -> None:
    (pets / "pets" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="1 of 2 parts") as caught:
        fingerprint(spec(), pets)
    assert "train-00000-of-00002.parquet" in caught.value.remedy


def test_shards_of_two_downloads_are_refused(pets: Path) -> None:
    shutil.copy(pets / "pets" / "train-00000-of-00002.parquet", pets / "pets" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="in 1 and in 2 parts"):
        fingerprint(spec(), pets)


@pytest.mark.parametrize(
    ("options", "hint"), [({"image_column": "img"}, None), ({"label_column": "labels"}, "Did you mean 'label'?")]
)
def test_a_missing_column_lists_those_there(pets: Path, options: dict[str, str], hint: str | None) -> None:
    with pytest.raises(DataError, match="it has image, label") as caught:
        load(spec(source=options), seed=0, data_root=pets)
    assert hint is None or hint in caught.value.remedy


def test_a_column_of_another_type_is_refused(pets: Path) -> None:
    with pytest.raises(DataError, match="column 'label' is int64, expected encoded images"):
        load(spec(source={"image_column": "label"}), seed=0, data_root=pets)
    with pytest.raises(DataError, match=r"column 'image' is struct.*, expected labels"):
        load(spec(source={"label_column": "image"}), seed=0, data_root=pets)


def test_a_missing_folder_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fingerprint(spec(), tmp_path)
    assert f"{tmp_path}/pets/train-00000-of-00001.parquet" in caught.value.remedy
    assert "'image'" in caught.value.remedy
    assert "'label'" in caught.value.remedy


def bad_pets(pets: Path, random_images: Any, encode: Any, write_parquet: Any) -> Path:
    """12 train rows; bad are 1 (garbage), 2 (cut short), 4 (null), 5 (size), 7 (label), 8 (null label), 9 (16 bit)."""
    images: list[bytes | None] = [encode(pixels) for pixels in random_images(12)]
    labels: list[int | None] = [i % 3 for i in range(12)]
    images[1], images[2], images[4] = b"garbage", (images[2] or b"")[:60], None
    images[5] = encode(random_images(1, 5, 6)[0])
    labels[7], labels[8] = 3, None
    images[9] = encode(random_images(1)[0].astype(np.uint16) * 256)
    for shard in (pets / "pets").glob("train-*"):
        shard.unlink()
    write_parquet(pets / "pets" / "train-00000-of-00001.parquet", images, labels, names=["cat", "dog", "owl"])
    return pets


def test_bad_rows_are_refused_with_their_ids_and_reasons(
    pets: Path, random_images: Any, encode: Any, write_parquet: Any
) -> None:
    root = bad_pets(pets, random_images, encode, write_parquet)
    with pytest.raises(DataError, match=r"7 unusable row") as caught:
        load(spec(), seed=0, data_root=root)
    message = caught.value.message
    for reason in (
        "train row 1 (does not decode: cannot identify image file)",
        "2 (does not decode: ",
        "4 (no image: null)",
        "5 (image is 5x6 grey, expected 6x5 grey)",
        "7 (label is 3, expected 0 to 2)",
        "8 (label is null)",
        "9 (mode is I;16",
    ):
        assert reason in message
    assert "skip_at_most: 7" in caught.value.remedy


@pytest.mark.parametrize("cached", [False, True])
def test_bad_rows_within_the_budget_are_dropped_with_a_warning(
    pets: Path,
    random_images: Any,
    encode: Any,
    write_parquet: Any,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    cached: bool,
) -> None:
    root = bad_pets(pets, random_images, encode, write_parquet)
    allowed = spec(bad_rows={"skip_at_most": 7})
    if cached:
        load(allowed, seed=0, data_root=root, cache=tmp_path / "cache")
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        dataset = load(allowed, seed=0, data_root=root, cache=tmp_path / "cache")
    assert dataset.train.row_ids.tolist() == [0, 3, 6, 10, 11]
    np.testing.assert_array_equal(dataset.train.inputs[..., 0], random_images(12)[[0, 3, 6, 10, 11]])
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 2]
    assert "dropped 7 unusable row(s), 7 allowed: train row 1 (" in caplog.text
    with pytest.raises(DataError, match=r"7 unusable row.*, 6 allowed"):
        load(spec(bad_rows={"skip_at_most": 6}), seed=0, data_root=root, cache=tmp_path / "cache")


def test_a_null_image_is_null_whatever_lies_below_it(pets: Path, encode: Any, random_images: Any) -> None:
    blobs = pa.array([encode(pixels) for pixels in random_images(3)], pa.binary())
    paths = pa.array([None] * 3, pa.string())
    mask = pa.array([False, True, False])
    images = pa.StructArray.from_arrays([blobs, paths], names=["bytes", "path"], mask=mask)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), pets / "pets" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"test row 1 \(no image: null\)"):
        load(spec(), seed=0, data_root=pets)


def test_negative_labels_are_no_class(tmp_path: Path, encode: Any, write_parquet: Any, random_images: Any) -> None:
    folder = one_split(tmp_path, encode, write_parquet, random_images, [0, -1, 1, 1])
    with pytest.raises(DataError, match=r"train row 1 \(label is -1, which is none of the 2 classes\)"):
        load(spec(str(folder)), seed=0)


def test_many_bad_rows_are_counted(pets: Path, write_parquet: Any) -> None:
    write_parquet(pets / "pets" / "test-00000-of-00001.parquet", [b"?"] * 50, [0] * 50, names=["cat", "dog", "owl"])
    with pytest.raises(DataError, match=r"50 unusable.* 19 \(.*\) and 30 more"):
        load(spec(), seed=0, data_root=pets)


def test_a_split_with_nothing_left_is_refused(pets: Path, write_parquet: Any) -> None:
    write_parquet(pets / "pets" / "test-00000-of-00001.parquet", [b"?"] * 3, [0] * 3, names=["cat", "dog", "owl"])
    with pytest.raises(DataError, match="split test: no row that can be used"):
        load(spec(bad_rows={"skip_at_most": 3}), seed=0, data_root=pets)
    write_parquet(pets / "pets" / "train-00000-of-00002.parquet", [b"?"] * 120, [0] * 120)
    with pytest.raises(DataError, match="none of the first 101 images can be decoded"):
        load(spec(bad_rows={"skip_at_most": 999}), seed=0, data_root=pets)


def test_one_odd_first_image_is_the_one_that_is_reported(
    pets: Path, random_images: Any, encode: Any, write_parquet: Any
) -> None:
    images = [encode(random_images(1, 9, 9)[0]), *(encode(pixels) for pixels in random_images(5))]
    write_parquet(pets / "pets" / "train-00000-of-00002.parquet", images, [0] * 6, names=["cat", "dog", "owl"])
    with pytest.raises(DataError, match=r"1 unusable row.*train row 0 \(image is 9x9 grey, expected 6x5 grey\)"):
        load(spec(), seed=0, data_root=pets)


def test_images_are_resized_and_converted_on_request(pets: Path) -> None:
    view = spec(source={"size": (3, 4), "mode": "rgb"})
    train = load(view, seed=0, data_root=pets).train.inputs
    assert train.shape == (30, 3, 4, 3)
    np.testing.assert_array_equal(train[..., 0], train[..., 2])  # grey made colour: all channels alike
    assert describe(view, pets).signature == InputSignature(shape=(3, 4, 3))


# Named sets: the same files under a known name.


def fake_mnist(root: Path, random_images: Any, encode: Any, write_parquet: Any, **options: Any) -> Path:
    blobs = [encode(pixels) for pixels in random_images(20, 28, 28)]
    for split in ("train", "test"):
        write_parquet(root / "mnist" / f"{split}-00000-of-00001.parquet", blobs, [i % 10 for i in range(20)], **options)
    return root


MNIST = DataSpec.model_validate({"source": "mnist"})


def test_a_named_set_brings_its_statistics(
    tmp_path: Path, random_images: Any, encode: Any, write_parquet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = fake_mnist(tmp_path, random_images, encode, write_parquet)
    dataset = load(MNIST, seed=0, data_root=root)
    assert (dataset.name, dataset.classes) == ("mnist", 10)
    assert dataset.normalization == Normalization(1 / 255, (0.1307,), (0.3081,))
    assert "train has 20 rows, the published set 60000" in caplog.text
    assert describe(MNIST, root).rows == {"train": 18, "validation": 2, "test": 20}


def test_another_set_under_the_name_is_refused(
    tmp_path: Path, random_images: Any, encode: Any, write_parquet: Any
) -> None:
    clothes = ["shirt", "trouser", "pullover", "dress", "coat", "sandal", "top", "sneaker", "bag", "boot"]
    root = fake_mnist(tmp_path, random_images, encode, write_parquet, names=clothes)
    with pytest.raises(DataError, match="is not mnist: its classes are shirt"):
        load(MNIST, seed=0, data_root=root)


@pytest.mark.parametrize("named", [True, False])
def test_a_missing_named_set_says_exactly_what_to_put_where(tmp_path: Path, named: bool) -> None:
    with pytest.raises(DataError) as caught:
        load(MNIST, seed=0, data_root=tmp_path if named else None)
    remedy = caught.value.remedy
    for part in (
        f"{tmp_path if named else 'DIR'}/mnist/train-00000-of-00001.parquet   60,000 rows",
        "test-00000-of-00001.parquet   10,000 rows",
        "'image'",
        "28x28 grey",
        "'label' (whole number, 0 to 9)",
        "--data-root DIR",
        "`data: {root: DIR}`",
        "EDGEFOLD_DATA=DIR",
    ):
        assert part in remedy


def test_a_named_set_without_test_files_is_incomplete(
    tmp_path: Path, random_images: Any, encode: Any, write_parquet: Any
) -> None:
    root = fake_mnist(tmp_path, random_images, encode, write_parquet)
    (root / "mnist" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no test-\*-of-\*.parquet; it holds train-00000"):
        fingerprint(MNIST, root)
