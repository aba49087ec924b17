import contextlib

import numpy as np
import pytest

import runtime.rows
from runtime.errors import DataError
from runtime.rows import Rows, check_rows, named, read_rows


@pytest.fixture
def rows(bundle):
    return bundle.samples()


def change(rows: Rows, **arrays) -> Rows:
    fields = {name: getattr(rows, name) for name in ("inputs", "labels", "row_ids", "logits")}
    return Rows(**{**fields, **arrays})


def test_good_rows_pass(rows, bundle):
    check_rows(rows, bundle, "rows")
    check_rows(rows.first(3), bundle, "rows")
    assert len(rows.first(3)) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (lambda r: {"inputs": r.inputs[..., 0]}, r"inputs has shape \[24, 4, 3\], expected \[N, 4, 3, 1\]"),
        (lambda r: {"inputs": r.inputs.swapaxes(1, 2)}, r"shape \[24, 3, 4, 1\], expected \[N, 4, 3, 1\]"),
        (lambda r: {"inputs": r.inputs.astype(np.float32)}, "inputs has dtype float32, expected uint8"),
        (lambda r: {"inputs": np.uint8(3)}, r"inputs has shape \[\]"),
        (lambda r: {"inputs": r.inputs[:0]}, "no rows"),
        (lambda r: {"labels": r.labels[:5]}, r"labels has shape \[5\], expected \[24\]"),
        (lambda r: {"labels": r.labels.astype(np.int32)}, "labels has dtype int32, expected int64"),
        (lambda r: {"row_ids": r.row_ids[:, None]}, r"row_ids has shape \[24, 1\], expected \[24\]"),
        (lambda r: {"labels": np.where(r.row_ids == 107, 3, r.labels)}, "outside 0 to 2 at row ids 107\\n"),
        (lambda r: {"labels": np.where(r.row_ids == 109, -1, r.labels)}, "outside 0 to 2 at row ids 109\\n"),
        (lambda r: {"row_ids": np.where(r.row_ids < 102, 7, r.row_ids)}, "more than once: 7$"),
        (lambda r: {"logits": r.logits[:, :2]}, r"logits has shape \[24, 2\], expected \[24, 3\]"),
    ],
)
def test_rows_that_do_not_fit_are_named(rows, bundle, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        check_rows(change(rows, **arrays(rows)), bundle, "mine")
    assert caught.value.message.startswith("mine: ")


def test_named_rows_are_cut_at_ten():
    assert named(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert named(np.arange(13)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"


def test_written_rows_are_read_back(tmp_path, samples):
    arrays = {name: samples[name] for name in ("inputs", "labels", "row_ids")}
    np.savez_compressed(tmp_path / "rows.npz", **arrays)
    rows = read_rows(tmp_path / "rows.npz")
    assert rows.logits is None
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(rows, name), array)


def test_files_that_hold_no_rows(tmp_path, samples):
    path = tmp_path / "rows.npz"
    with pytest.raises(DataError, match=r"rows\.npz cannot be read"):
        read_rows(path)
    np.savez(path, inputs=samples["inputs"])
    whole = path.read_bytes()
    with pytest.raises(DataError, match="labels, row_ids missing"):
        read_rows(path)
    for content in (b"", b"PK", whole[:-10], whole[: len(whole) // 2], b"not a zip at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"rows\.npz"):
            read_rows(path)
    with open(path, "wb") as file:
        np.save(file, samples["inputs"])
    with pytest.raises(DataError, match=r"one array, expected an \.npz"):
        read_rows(path)


def test_python_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("unpickled",)

    np.savez(tmp_path / "rows.npz", inputs=np.array([Trap()]), labels=np.zeros(1), row_ids=np.zeros(1))
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        read_rows(tmp_path / "rows.npz")


def test_damaged_bytes_raise_nothing_else(tmp_path, samples):
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, **{name: samples[name] for name in ("inputs", "labels", "row_ids")})
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # a flipped byte of a time stamp or a name changes nothing
            assert len(read_rows(path)) == 24


@pytest.fixture
def _all_mapped(monkeypatch):
    monkeypatch.setattr(runtime.rows, "MAPPED_FROM", 0)


@pytest.mark.usefixtures("_all_mapped")
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_stay_in_the_file(tmp_path, samples, bundle, order):
    path = tmp_path / "rows.npz"
    np.savez(path, **{name: samples[name].copy(order) for name in ("inputs", "labels", "row_ids")})
    rows = read_rows(path)
    assert isinstance(rows.inputs, np.memmap)
    assert not rows.inputs.flags.writeable
    np.testing.assert_array_equal(rows.inputs, samples["inputs"])
    check_rows(rows, bundle, "rows")
    np.savez_compressed(path, **{name: samples[name] for name in ("inputs", "labels", "row_ids")})
    assert not isinstance(read_rows(path).inputs, np.memmap)  # compressed, it has to be read


@pytest.mark.usefixtures("_all_mapped")
def test_damaged_bytes_around_mapped_arrays_raise_nothing_else(tmp_path, samples):
    path = tmp_path / "rows.npz"
    np.savez(path, **{name: samples[name] for name in ("inputs", "labels", "row_ids")})
    content = path.read_bytes()
    for position in [*range(200), *range(len(content) - 400, len(content))]:
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            read_rows(path)
    np.savez(path, inputs=np.array([{}]), labels=np.zeros(1), row_ids=np.zeros(1))
    with pytest.raises(DataError, match=r"inputs\.npy: it holds Python objects"):
        read_rows(path)
