"""`edgefold data check`: what is there of a named set, in which format, and what is missing."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from compress.cli import main
from compress.datasets.named import Mnist


def check(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["data", "check", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _a_small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    small: ClassVar = {"train": 6, "test": 2}
    monkeypatch.setattr(Mnist, "rows", small)
    monkeypatch.delenv("EDGEFOLD_DATA", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with MNIST of 6 train and 2 test rows in its authors' files."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for stem, rows in (("train", 6), ("t10k", 2)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, rows, 28, 28) + bytes(rows * 784)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = struct.pack(">4BI", 0, 0, 8, 1, rows) + bytes(range(rows))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path


def write_parquet(root: Path, **rows: int) -> None:
    for split, count in rows.items():
        table = pa.table({"image": [b""] * count, "label": np.arange(count)})
        pq.write_table(table, root / "mnist" / f"{split}-00000-of-00001.parquet")


def test_a_complete_set_is_told_with_files_sizes_and_rows(root: Path) -> None:
    result = check("mnist", "--data-root", root)
    assert result.exit_code == 0, result.stderr
    assert "idx format of MNIST: complete, train 6 rows, test 2 rows" in result.stdout
    assert "parquet: not there\n  missing: train-*-of-*.parquet\n  missing: test-*-of-*.parquet" in result.stdout
    assert "http://yann.lecun.com/exdb/mnist/" in result.stdout
    assert "mnist is read from: the idx format of MNIST" in result.stdout
    found = json.loads(check("mnist", "--data-root", root, "--json").stdout)
    _, idx = found["formats"]
    assert (found["complete"], idx["rows"], idx["missing"]) == (True, {"train": 6, "test": 2}, [])
    assert {file["path"]: file["bytes"] for file in idx["files"]} == {
        str(path): path.stat().st_size for path in (root / "mnist").iterdir()
    }


def test_parquet_is_what_is_read_where_both_are_there(root: Path) -> None:
    write_parquet(root, train=6, test=2)
    found = json.loads(check("mnist", "--data-root", root, "--json").stdout)
    assert (found["reads"], [form["complete"] for form in found["formats"]]) == ("parquet", [True, True])


def test_a_missing_file_is_exit_2(root: Path) -> None:
    (root / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    result = check("mnist", "--data-root", root)
    assert result.exit_code == 2
    assert "idx format of MNIST: incomplete\n" in result.stdout
    assert "missing: t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz" in result.stdout
    assert f"mnist is not complete in {root / 'mnist'}" in result.stderr
    assert json.loads(check("mnist", "--data-root", root, "--json").stdout)["complete"] is False


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("train-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes(5), "5 bytes follow the header"),
        ("train-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 6) + b"\x0a" * 6, "train has 6 unusable row"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b\x08", "damaged or cut short"),
    ],
)
def test_damaged_files_are_exit_2(root: Path, file: str, content: bytes, says: str) -> None:
    (root / "mnist" / file).write_bytes(content)
    result = check("mnist", "--data-root", root)
    assert result.exit_code == 2
    assert says in result.stdout


def test_parquet_with_too_few_rows_is_exit_2_even_beside_good_files(root: Path) -> None:
    write_parquet(root, train=5, test=2)
    result = check("mnist", "--data-root", root)
    assert result.exit_code == 2
    assert "train has 5 rows, the published set 6" in result.stdout


def test_no_root_and_an_empty_root_are_exit_2(tmp_path: Path) -> None:
    without = check("cifar10")
    assert (without.exit_code, without.stdout) == (2, "")
    assert "no data root is named" in without.stderr
    empty = check("cifar10", "--data-root", tmp_path)
    assert empty.exit_code == 2
    for part in ("cifar-10-batches-bin: not there", "missing: cifar-10-python.tar.gz", "is read from: nothing"):
        assert part in empty.stdout


@pytest.mark.parametrize(("name", "says"), [("mnits", "'mnits' is not known"), ("idx", "reads data of your own")])
def test_what_is_no_named_set_is_refused(name: str, says: str) -> None:
    result = check(name)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "digits, mnist, cifar10" in result.stderr


def test_digits_needs_no_files() -> None:
    result = check("digits")
    assert (result.exit_code, result.stdout) == (0, "digits needs no files: it comes with scikit-learn\n")


def test_the_two_archives_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-python.tar.gz").write_bytes(b"")
    found = json.loads(check("cifar10", "--data-root", tmp_path, "--json").stdout)
    assert (found["complete"], found["reads"]) == (False, "the archive cifar-10-python.tar.gz")
    (problem,) = next(form["problems"] for form in found["formats"] if form["files"])
    assert "its md5 is d41d8cd98f00b204e9800998ecf8427e, expected c58f30108f718f92721af3b95e74349a" in problem
