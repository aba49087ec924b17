"""CIFAR's own files: binary batches, and python batches that are interpreted and never unpickled."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from true_formats import cifar10, cifar100
from true_formats.cifar10 import binary_rows, planes

from compress.datasets import DataSpec, describe, fingerprint, load
from compress.datasets.cifar_files import CIFAR_10, CIFAR_100, CifarFormat
from compress.datasets.cifar_pickle import UnsafePickleError, read_batch
from compress.datasets.named import Cifar10, Cifar100
from runtime.errors import DataError

ROWS = 4
FORMATS = {"cifar10": CIFAR_10, "cifar100": CIFAR_100}


def spec(kind: str) -> DataSpec:
    return DataSpec.model_validate({"source": kind, "validation": 0})


# The python batches, written by their description


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def whole(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def listed(items: list[bytes], memo: int) -> bytes:
    return b"]q" + bytes([memo]) + b"(" + b"".join(items) + b"e"


def python(images: np.ndarray, labels: dict[str, list[int]]) -> bytes:
    """What cPickle of Python 2 writes at protocol 2 for a batch: its opcodes, spelled out."""
    rows = planes(images)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x20cnumpy\nndarray\nq\x21K\x00\x85U\x01b\x87Rq\x22"
        + (b"(K\x01" + whole(len(rows)) + whole(3072) + b"\x86")
        + b"cnumpy\ndtype\nq\x23U\x02u1K\x00K\x01\x87Rq\x24(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb")
    )
    items = text("batch_label") + text("a batch") + text("data") + array
    for memo, (key, values) in enumerate(labels.items(), start=1):
        items += text(key) + listed([whole(value) for value in values], memo)
    names = listed([text(f"{i}.png") for i in range(len(rows))], 30)
    return b"\x80\x02}q\x00(" + items + text("filenames") + names + b"u."


def batch_bytes(form: CifarFormat, images: np.ndarray, labels: list[int]) -> bytes:
    of_hundred = "100" in form.folder
    if form.row_bytes is not None:
        return binary_rows(images, *([[0] * len(labels)] if of_hundred else []), labels)
    return python(
        images, {"coarse_labels": [0] * len(labels), "fine_labels": labels} if of_hundred else {"labels": labels}
    )


def write_batches(folder: Path, form: CifarFormat, images: np.ndarray, labels: list[int]) -> Path:
    folder.mkdir(parents=True)
    for position, name in enumerate(name for names in form.batches.values() for name in names):
        rows = slice(position * ROWS, (position + 1) * ROWS)
        (folder / name).write_bytes(batch_bytes(form, images[rows], labels[rows]))
    return folder


def packed(folder: Path, form: CifarFormat, images: np.ndarray, labels: list[int]) -> CifarFormat:
    """Pack the batches as the authors do and return the format with this archive's md5."""
    batches = write_batches(folder / "unpacked" / form.folder, form, images, labels)
    with tarfile.open(folder / form.archive, "w:gz") as archive:
        archive.add(batches, arcname=form.folder)
    return replace(form, md5=hashlib.md5((folder / form.archive).read_bytes()).hexdigest())


def rows_of(form: CifarFormat, random_images: Any) -> tuple[np.ndarray, list[int]]:
    count = sum(len(names) for names in form.batches.values()) * ROWS
    classes = 100 if "100" in form.folder else 10
    return random_images(count, 32, 32, 3), [(3 * i + 1) % classes for i in range(count)]


def assert_holds(dataset: Any, images: np.ndarray, labels: list[int]) -> None:
    train = len(images) - ROWS
    np.testing.assert_array_equal(dataset.train.inputs, images[:train])
    np.testing.assert_array_equal(dataset.test.inputs, images[train:])
    assert dataset.train.labels.tolist() == labels[:train]
    assert dataset.test.labels.tolist() == labels[train:]


# What is read


@pytest.mark.parametrize("version", [0, 1], ids=["binary", "python"])
@pytest.mark.parametrize("kind", FORMATS)
def test_unpacked_batches_are_read(tmp_path: Path, random_images: Any, kind: str, version: int) -> None:
    form = FORMATS[kind][version]
    images, labels = rows_of(form, random_images)
    write_batches(tmp_path / kind / form.folder, form, images, labels)
    dataset = load(spec(kind), seed=0, data_root=tmp_path)
    assert_holds(dataset, images, labels)
    assert describe(spec(kind), tmp_path).rows == {"train": len(images) - ROWS, "validation": 0, "test": ROWS}
    assert len(fingerprint(spec(kind), tmp_path)) == 64


@pytest.mark.parametrize("version", [0, 1], ids=["binary", "python"])
@pytest.mark.parametrize(("kind", "source"), [("cifar10", Cifar10), ("cifar100", Cifar100)])
def test_archives_are_read_where_they_are_the_published_ones(
    tmp_path: Path, random_images: Any, monkeypatch: pytest.MonkeyPatch, kind: str, source: Any, version: int
) -> None:
    form = FORMATS[kind][version]
    images, labels = rows_of(form, random_images)
    small = packed(tmp_path, form, images, labels)
    (tmp_path / kind).mkdir()
    (tmp_path / form.archive).rename(tmp_path / kind / form.archive)
    with pytest.raises(DataError, match=f"its md5 is {small.md5}, expected {form.md5}"):
        load(spec(kind), seed=0, data_root=tmp_path)
    monkeypatch.setattr(source, "formats", (small,))
    assert_holds(load(spec(kind), seed=0, data_root=tmp_path), images, labels)
    assert sorted(path.name for path in (tmp_path / kind).iterdir()) == [form.archive]  # nothing was unpacked


def test_batches_may_lie_in_the_sets_own_folder(tmp_path: Path, random_images: Any) -> None:
    images, labels = rows_of(CIFAR_10[0], random_images)
    write_batches(tmp_path / "cifar10", CIFAR_10[0], images, labels)
    assert_holds(load(spec("cifar10"), seed=0, data_root=tmp_path), images, labels)


@pytest.mark.parametrize(("module", "classes"), [(cifar10, 10), (cifar100, 100)])
def test_the_shared_writers_write_the_binary_version(tmp_path: Path, module: Any, classes: int) -> None:
    kind = module.__name__.rpartition(".")[2]
    module.write(tmp_path, rows=20)
    dataset = load(spec(kind), seed=0, data_root=tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (20, 10, classes)
    assert dataset.train.labels.tolist() == [row % classes for row in range(20)]


def test_the_interpreter_agrees_with_pickle_on_its_own_test_batches(random_images: Any) -> None:
    # The one place where pickle is used, on bytes made above: it proves that they are what Python 2 would write.
    content = python(random_images(3, 32, 32, 3), {"labels": [7, 0, 255]})
    expected, came = pickle.loads(content, encoding="latin-1"), read_batch(content)
    np.testing.assert_array_equal(came.pop("data"), expected.pop("data"))
    assert came == expected


# What is refused


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_not_run(
    tmp_path: Path, random_images: Any, protocol: int
) -> None:
    images, labels = rows_of(CIFAR_10[1], random_images)
    folder = write_batches(tmp_path / "cifar10" / CIFAR_10[1].folder, CIFAR_10[1], images, labels)
    written = tmp_path / "written"
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Harmful(written)}, protocol=protocol))
    with pytest.raises(DataError, match="data_batch_2 is not a batch of CIFAR and is not unpickled"):
        load(spec("cifar10"), seed=0, data_root=tmp_path)
    assert not written.exists()


def edited(old: bytes, new: bytes) -> bytes:
    content = python(np.zeros((2, 32, 32, 3), np.uint8), {"labels": [1, 2]})
    assert content.count(old) == 1
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no whole pickle"),
        (b"\x80\x02}q\x00.", None),
        (b"\x80\x02]q\x00.", "does not hold a dict"),
        (edited(b"u.", b"u"), "no whole pickle"),
        (edited(b"u.", b"u.")[:3000], "no whole pickle"),
        (edited(b"\x80\x02", b"\x80\x04"), "protocol 4, expected 2"),
        (edited(b"cnumpy\ndtype\n", b"cos\nsystem\n"), "it names 'os system'"),
        (edited(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nfromfile\n"), "it names 'numpy fromfile'"),
        (edited(b"U\x02u1", b"U\x02O8"), "a call that is not numpy's for an array of bytes"),
        (edited(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"), "a call that is not numpy's"),
        (edited(b"U\x01|", b"U\x01<"), "a state for something that is no array"),
        (edited(b"\x86cnumpy", b"\x86h\x63"), "nothing was kept as 99"),
        (edited(b"K\x01K\x02M", b"K\x01K\x03M"), r"shape \(3, 3072\) with 6,144 bytes"),
        (edited(b"\x89T", b"\x88T"), "not of bytes in C order"),
        (b"\x80\x02}(K\x01K\x02u.", "keys are not text"),
        (b"\x80\x02}e.", "a mark is missing"),
        (b"\x80\x02\x87.", "a tuple of more than there is"),
        (b"\x80\x02}q\x00U\x01a\x93.", "opcode STACK_GLOBAL"),
        (b"\x80\x02}(iposix\nsystem\n.", "opcode INST"),
    ],
)
def test_other_pickles_are_refused_with_the_reason(content: bytes, says: str | None) -> None:
    if says is None:
        assert read_batch(content) == {}
        return
    with pytest.raises(UnsafePickleError, match=says):
        read_batch(content)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"fine_labels": [1, 2]}, "'labels' is no list of whole numbers; it holds batch_label, data, fine_labels"),
        ({"labels": [1]}, "has 2 images, but 1 labels"),
    ],
)
def test_a_batch_without_its_labels_is_refused(tmp_path: Path, labels: dict[str, list[int]], says: str) -> None:
    content = python(np.zeros((2, 32, 32, 3), np.uint8), labels)
    with pytest.raises(DataError, match=says):
        CIFAR_10[1].read(content, "data_batch_1")


@pytest.mark.parametrize("cut", [1, 3073, 4 * 3073])
def test_a_truncated_binary_batch_is_named(
    tmp_path: Path, random_images: Any, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = rows_of(CIFAR_10[0], random_images)
    folder = write_batches(tmp_path / "cifar10" / CIFAR_10[0].folder, CIFAR_10[0], images, labels)
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    if cut == 3073:  # at the end of a row: the number of rows is what tells
        assert len(load(spec("cifar10"), seed=0, data_root=tmp_path).train) == 19
        assert "train has 19 rows, the published set 50000" in caplog.text
        return
    with pytest.raises(DataError, match=r"data_batch_3.bin has [\d,]+ bytes, expected a multiple of 3,073"):
        load(spec("cifar10"), seed=0, data_root=tmp_path)


def test_a_wrong_label_is_a_bad_row(tmp_path: Path, random_images: Any) -> None:
    images, labels = rows_of(CIFAR_10[0], random_images)
    labels[6] = 10
    write_batches(tmp_path / "cifar10", CIFAR_10[0], images, labels)
    with pytest.raises(DataError, match=r"train row 6 \(label is 10, expected 0 to 9\)"):
        load(spec("cifar10"), seed=0, data_root=tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path, random_images: Any) -> None:
    images, labels = rows_of(CIFAR_10[0], random_images)
    folder = write_batches(tmp_path / "cifar10" / CIFAR_10[0].folder, CIFAR_10[0], images, labels)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"needs cifar-10-batches-bin/test_batch.bin or test_batch.bin") as caught:
        load(spec("cifar10"), seed=0, data_root=tmp_path)
    for part in ("cifar10/train-00000-of-00001.parquet", "cifar-10-python.tar.gz", "cs.toronto.edu"):
        assert part in caught.value.remedy


@pytest.mark.parametrize(("damage", "says"), [("cut", "damaged or cut short"), ("empty", "holds no cifar-100-binary")])
def test_a_damaged_archive_is_named(
    tmp_path: Path, random_images: Any, monkeypatch: pytest.MonkeyPatch, damage: str, says: str
) -> None:
    form = CIFAR_100[0]
    images, labels = rows_of(form, random_images)
    packed(tmp_path / "cifar100", form, images, labels)
    path = tmp_path / "cifar100" / form.archive
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("readme.html"), io.BytesIO())
    damaged = replace(form, md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(Cifar100, "formats", (damaged,))
    with pytest.raises(DataError, match=says):
        load(spec("cifar100"), seed=0, data_root=tmp_path)
