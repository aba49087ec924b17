from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.datasets import DataSpec, cache, load, parquet_folder
from compress.datasets.decode import ImageOptions

PETS = DataSpec.model_validate({"source": {"parquet": {"path": "pets"}}})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row counts of the splits that were decoded, in order."""
    calls: list[int] = []
    real = parquet_folder.decode_images

    def counting(encoded: object, rows: int, *rest: object) -> object:
        calls.append(rows)
        return real(encoded, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(parquet_folder, "decode_images", counting)
    return calls


def test_images_are_decoded_once(pets: Path, tmp_path: Path, decoded: list[int]) -> None:
    first = load(PETS, seed=0, data_root=pets, cache=tmp_path / "cache")
    second = load(PETS, seed=0, data_root=pets, cache=tmp_path / "cache")
    assert decoded == [30, 6]
    for name in ("train", "validation", "test"):
        one, two = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.row_ids, two.row_ids)
        assert two.inputs.flags.writeable  # a read-only map would make torch.from_numpy warn


def test_nothing_is_written_without_a_cache(pets: Path, decoded: list[int]) -> None:
    before = sorted(pets.rglob("*"))
    load(PETS, seed=0, data_root=pets)
    load(PETS, seed=0, data_root=pets)
    assert decoded == [30, 6, 30, 6]
    assert sorted(pets.rglob("*")) == before


def test_other_files_or_options_are_other_entries(pets: Path, tmp_path: Path, decoded: list[int]) -> None:
    load(PETS, seed=0, data_root=pets, cache=tmp_path)
    sized = DataSpec.model_validate({"source": {"parquet": {"path": "pets", "size": (4, 4)}}})
    assert load(sized, seed=0, data_root=pets, cache=tmp_path).train.inputs.shape[1:] == (4, 4, 1)
    test = pets / "pets" / "test-00000-of-00001.parquet"
    train = pets / "pets" / "train-00000-of-00002.parquet"
    test.write_bytes(train.read_bytes())
    assert len(load(PETS, seed=0, data_root=pets, cache=tmp_path).test) == 18
    assert decoded == [30, 6, 30, 6, 18]


def test_the_key_hangs_on_everything_that_decides_the_pixels() -> None:
    plain, shape = ImageOptions(), (6, 5, 1)
    keys = {
        cache.cache_key(["a", "b"], plain, shape),
        cache.cache_key(["b", "a"], plain, shape),
        cache.cache_key(["a", "b"], plain, (5, 6, 1)),
        cache.cache_key(["a", "b"], ImageOptions(mode="grey"), shape),
        cache.cache_key(["a", "b"], ImageOptions(size=(6, 5)), shape),
        cache.cache_key(["a", "b"], plain, shape, image_column="picture"),
    }
    assert len(keys) == 6


def flip_a_pixel(entry: Path) -> None:
    data = bytearray((entry / "pixels.npy").read_bytes())
    data[-1] ^= 1
    (entry / "pixels.npy").write_bytes(data)


def cut_short(entry: Path) -> None:
    (entry / "pixels.npy").write_bytes((entry / "pixels.npy").read_bytes()[:-10])


def no_record(entry: Path) -> None:
    (entry / "record.json").unlink()


def garbled_record(entry: Path) -> None:
    (entry / "record.json").write_text('{"sha256": ')


def record_of_another_kind(entry: Path) -> None:
    (entry / "record.json").write_text("[]")


def other_array_with_its_own_checksum(entry: Path) -> None:
    np.save(entry / "pixels.npy", np.zeros((3, 6, 5, 1), np.uint8))
    record = {"sha256": cache.sha256_of_file(entry / "pixels.npy"), "bad": {}}
    (entry / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [flip_a_pixel, cut_short, no_record, garbled_record, record_of_another_kind, other_array_with_its_own_checksum],
)
def test_a_damaged_entry_is_built_again_with_a_warning(
    pets: Path,
    tmp_path: Path,
    decoded: list[int],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    folder = tmp_path / "cache"
    first = load(PETS, seed=0, data_root=pets, cache=folder)
    for entry in folder.iterdir():
        damage(entry)
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        second = load(PETS, seed=0, data_root=pets, cache=folder)
    np.testing.assert_array_equal(first.train.inputs, second.train.inputs)
    assert decoded == [30, 6]
    assert caplog.text.count("are damaged and are built again") == 2
    load(PETS, seed=0, data_root=pets, cache=folder)
    assert decoded == [30, 6]


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    pets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(load(PETS, seed=0, data_root=pets, cache=tmp_path / "file" / "cache").test) == 6
    assert "could not be kept" in caplog.text
