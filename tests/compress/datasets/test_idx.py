"""MNIST's own files: read as LeCun's page describes them, refused where they are damaged."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from true_formats.mnist import idx_bytes

from compress.datasets import DataSpec, describe, fingerprint, load
from compress.datasets.idx import read_idx
from runtime.errors import DataError

LABELS = np.arange(20, dtype=np.uint8) % 10
MNIST = DataSpec.model_validate({"source": "mnist", "validation": 0})


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_set(folder: Path, images: np.ndarray, labels: np.ndarray, *, suffix: str = "", **names: str) -> Path:
    for split, stem in {"train": "train", "test": "t10k", **names}.items():
        rows = slice(None) if split == "train" else slice(5)
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images[rows])
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels[rows])
    return folder.parent


def own(**options: Any) -> DataSpec:
    return DataSpec.model_validate({"source": {"idx": {"path": "clothes", **options}}, "validation": 0})


# What is read


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_its_own_files(
    tmp_path: Path, random_images: Any, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = random_images(20, 28, 28)
    root = write_set(tmp_path / "mnist", images, LABELS, suffix=suffix)
    dataset = load(MNIST, seed=0, data_root=root)
    np.testing.assert_array_equal(dataset.train.inputs, images[..., None])
    np.testing.assert_array_equal(dataset.train.labels, LABELS)
    np.testing.assert_array_equal(dataset.test.inputs, images[:5, ..., None])
    assert dataset.train.labels.dtype == np.int64
    assert (dataset.classes, dataset.normalization.mean) == (10, (0.1307,))
    assert describe(MNIST, root).rows == {"train": 20, "validation": 0, "test": 5}
    assert "train has 20 rows, the published set 60000" in caplog.text


def test_a_file_compressed_under_a_plain_name_is_read(tmp_path: Path, random_images: Any) -> None:
    images = random_images(3)
    (tmp_path / "x-idx3-ubyte").write_bytes(gzip.compress(idx_bytes(images)))
    np.testing.assert_array_equal(read_idx(tmp_path / "x-idx3-ubyte", 3), images)


def test_parquet_goes_first(tmp_path: Path, random_images: Any, encode: Any, write_parquet: Any) -> None:
    images, other = random_images(20, 28, 28), random_images(20, 28, 28, seed=1)
    root = write_set(tmp_path / "mnist", images, LABELS)
    in_idx = fingerprint(MNIST, root)
    write_parquet(root / "mnist" / "train-00000-of-00001.parquet", [encode(i) for i in other], LABELS.tolist())
    assert fingerprint(MNIST, root) == in_idx  # a set that lacks its test split is passed over
    write_parquet(root / "mnist" / "test-00000-of-00001.parquet", [encode(i) for i in other], LABELS.tolist())
    np.testing.assert_array_equal(load(MNIST, seed=0, data_root=root).train.inputs, other[..., None])
    assert fingerprint(MNIST, root) != in_idx


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path: Path, random_images: Any) -> None:
    images = random_images(20, 28, 28)
    roots = [write_set(tmp_path / place / "mnist", images, LABELS) for place in ("a", "b")]
    changed = write_set(tmp_path / "c" / "mnist", images, LABELS[::-1].copy())
    assert fingerprint(MNIST, roots[0]) == fingerprint(MNIST, roots[1]) != fingerprint(MNIST, changed)


def test_a_set_of_ones_own_has_the_labels_of_train(tmp_path: Path, random_images: Any) -> None:
    # EMNIST letters: labels 1 to 26, test files called test, a prefix, and images on their side.
    images, labels = random_images(20, 6, 5), LABELS % 2 + 1
    root = write_set(tmp_path / "clothes", images, labels, suffix=".gz", train="letters-train", test="letters-test")
    dataset = load(own(prefix="letters-", transposed=True), seed=0, data_root=root)
    assert (dataset.name, dataset.class_names) == ("clothes", ("1", "2"))
    np.testing.assert_array_equal(dataset.train.labels, labels - 1)
    np.testing.assert_array_equal(dataset.train.inputs[..., 0], images.transpose(0, 2, 1))
    assert describe(own(prefix="letters-", transposed=True), root).signature == dataset.signature


def test_without_test_files_a_fifth_of_train_is_test(tmp_path: Path, random_images: Any) -> None:
    write_idx(tmp_path / "clothes" / "train-images.idx3-ubyte", random_images(20))
    write_idx(tmp_path / "clothes" / "train-labels.idx1-ubyte", LABELS % 2)
    dataset = load(own(class_names=("shirt", "boot")), seed=0, data_root=tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (16, 4, ("shirt", "boot"))
    assert describe(own(), tmp_path).rows == {"train": 16, "validation": 0, "test": 4}


# What is refused


def images_file(root: Path) -> Path:
    return root / "mnist" / "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "begins with nothing, expected 00000803"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "begins with 00000801, expected 00000803"),
        (lambda content: b"\x89PNG" + content[4:], "begins with 89504e47"),
        (lambda content: content[:9], "ends in its header, after 9 bytes"),
        (lambda content: content[:-1], "15,679 bytes follow the header, expected 15,680"),
        (lambda content: content + b"\x00", "more bytes follow the header"),
        (lambda content: content[:4] + b"\xff" * 4 + content[8:], "15,680 bytes follow the header"),
        (lambda content: gzip.compress(content)[:-400], "damaged or cut short"),
        (lambda content: b"\x1f\x8b" + content, "damaged or cut short"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, random_images: Any, damage: Any, says: str) -> None:
    root = write_set(tmp_path / "mnist", random_images(20, 28, 28), LABELS)
    images_file(root).write_bytes(damage(images_file(root).read_bytes()))
    with pytest.raises(DataError, match=says) as caught:
        load(MNIST, seed=0, data_root=root)
    assert "train-images-idx3-ubyte" in caught.value.message


def test_a_wrong_label_is_a_bad_row(tmp_path: Path, random_images: Any) -> None:
    labels = LABELS.copy()
    labels[3] = 10
    root = write_set(tmp_path / "mnist", random_images(20, 28, 28), labels)
    with pytest.raises(DataError, match=r"train row 3 \(label is 10, expected 0 to 9\)"):
        load(MNIST, seed=0, data_root=root)
    skipping = DataSpec.model_validate({"source": "mnist", "validation": 0, "bad_rows": {"skip_at_most": 2}})
    kept = load(skipping, seed=0, data_root=root).train
    assert kept.row_ids.tolist() == [row for row in range(20) if row != 3]


def test_images_and_labels_must_be_of_one_number(tmp_path: Path, random_images: Any) -> None:
    root = write_set(tmp_path / "mnist", random_images(20, 28, 28), LABELS[:19])
    with pytest.raises(DataError, match=r"has 20 images, but .* 19 labels"):
        load(MNIST, seed=0, data_root=root)


def test_images_of_another_size_are_refused(tmp_path: Path, random_images: Any) -> None:
    root = write_set(tmp_path / "mnist", random_images(20, 8, 6), LABELS)
    with pytest.raises(DataError, match="images are 8x6, expected 28x28"):
        describe(MNIST, root)


def test_a_missing_file_is_named_with_what_was_looked_for(tmp_path: Path, random_images: Any) -> None:
    root = write_set(tmp_path / "mnist", random_images(20, 28, 28), LABELS)
    (root / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"needs t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz or .* not there"):
        load(MNIST, seed=0, data_root=root)


def test_both_formats_are_named_where_there_is_neither(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(MNIST, seed=0, data_root=tmp_path)
    for part in ("mnist/train-00000-of-00001.parquet", "mnist/train-images-idx3-ubyte", "yann.lecun.com", ".gz"):
        assert part in caught.value.remedy
