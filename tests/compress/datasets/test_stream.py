"""Streamed images: the same rows as those held, in any order, on any number of threads, at constant memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from compress.datasets import DataSpec, Split, describe, load, stream
from compress.datasets.decode import ImageOptions
from compress.datasets.image_files import ImageFiles
from compress.datasets.stream import ImageStream
from compress.rows import Rows
from runtime.errors import DataError, RecipeError

ROWS = 40


def spec(path: Path, stream: str, **options: Any) -> DataSpec:
    return DataSpec.model_validate({"source": {"folder": {"path": str(path), "stream": stream}}, **options})


@pytest.fixture
def shapes(tmp_path: Path, random_images: Any, encode: Any) -> Path:
    """40 images of two classes, 6x5 grey."""
    for row, pixels in enumerate(random_images(ROWS)):
        path = tmp_path / "shapes" / ("round", "square")[row % 2] / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels))
    return tmp_path / "shapes"


@pytest.fixture
def both(shapes: Path) -> tuple[Split, Split]:
    """The training rows, held and streamed."""
    held, streamed = (load(spec(shapes, stream), seed=0).train for stream in ("no", "yes"))
    assert isinstance(held.inputs, np.ndarray)
    assert isinstance(streamed.inputs, ImageStream)
    return held, streamed


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "positions", [slice(None), slice(3, 17), slice(0, 0), np.array([5, 0, 5, 27]), np.arange(29) % 3 == 0]
)
def test_an_index_gives_what_an_array_gives(
    both: tuple[Split, Split], positions: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "THREADS", threads)
    held, streamed = both
    assert (streamed.inputs.shape, streamed.inputs.nbytes) == (held.inputs.shape, held.inputs.nbytes)
    if isinstance(positions, np.ndarray) and positions.dtype == bool:
        positions = np.flatnonzero(positions[: len(held)])
    np.testing.assert_array_equal(streamed.inputs[positions], held.inputs[positions])


def test_rows_that_are_taken_stay_in_their_files(both: tuple[Split, Split]) -> None:
    held, streamed = both
    positions = np.array([20, 3, 4])
    taken = streamed.take(positions).take(slice(1, 3))
    assert isinstance(taken.inputs, ImageStream)
    np.testing.assert_array_equal(taken.inputs[:], held.inputs[positions[1:3]])
    assert taken.row_ids.tolist() == held.row_ids[positions[1:3]].tolist()


def test_where_rows_are_streamed(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(spec(shapes, "auto"), seed=0).train.inputs, np.ndarray)
    monkeypatch.setattr("compress.datasets.image_rows.STREAMED_FROM", ROWS * 30)
    assert isinstance(load(spec(shapes, "auto"), seed=0).train.inputs, ImageStream)
    monkeypatch.setattr("compress.datasets.image_rows.STREAMED_FROM", ROWS * 30 + 1)
    assert isinstance(load(spec(shapes, "auto"), seed=0).train.inputs, np.ndarray)


def test_bad_rows_are_found_and_dropped_as_of_an_array(shapes: Path) -> None:
    (shapes / "round" / "06.png").write_bytes(b"no image")
    skipping = {"bad_rows": {"skip_at_most": 1}}
    with pytest.raises(DataError, match=r"train row 3 \(round/06.png: does not decode"):
        load(spec(shapes, "yes"), seed=0)
    held, streamed = (load(spec(shapes, stream, **skipping), seed=0) for stream in ("no", "yes"))
    for name in ("train", "validation", "test"):
        one, two = getattr(held, name), getattr(streamed, name)
        np.testing.assert_array_equal(one.row_ids, two.row_ids)
        np.testing.assert_array_equal(one.inputs, two.inputs[:])


def test_batches_come_in_order_and_with_their_labels(both: tuple[Split, Split]) -> None:
    order = torch.randperm(len(both[0]), generator=torch.Generator().manual_seed(1)).split(7)
    held, streamed = (list(Rows(split, torch.device("cpu")).batches(order)) for split in both)
    assert len(held) == len(order) > 3
    for index, (x, y), (other, labels) in zip(order, held, streamed, strict=True):
        torch.testing.assert_close(x, other, rtol=0, atol=0)
        assert y.tolist() == labels.tolist() == both[0].labels[index.numpy()].tolist()
    rows = Rows(both[1], torch.device("cpu"))
    torch.testing.assert_close(rows.gather(order[1])[0], held[1][0], rtol=0, atol=0)
    assert (len(rows.inputs), rows.values) == (0, 30)
    mirrored = rows.changed(lambda x: x.flip(2))
    torch.testing.assert_close(next(mirrored.batches(order))[0], held[0][0].flip(2), rtol=0, atol=0)


class Counting(ImageOptions):
    """Counts the images that are decoded."""

    def box(self, width: int, height: int) -> None:
        with LOCK:
            DECODED.append(width)


LOCK, DECODED = threading.Lock(), list[int]()


def test_no_more_is_decoded_than_two_batches_ahead(shapes: Path) -> None:
    files = ImageFiles(shapes, tuple(f"round/{row:02d}.png" for row in range(0, ROWS, 2)))
    images = ImageStream(files, np.arange(20), (6, 5, 1), Counting(size=(6, 5)))
    DECODED.clear()
    batches = images.ahead(np.arange(first, first + 2) for first in range(0, 20, 2))
    for used in range(1, 4):
        next(batches)
        assert 2 * used <= len(DECODED) <= 2 * (used + stream.AHEAD)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_file_that_changes_after_the_check_is_named(shapes: Path, both: tuple[Split, Split]) -> None:
    row = int(both[1].row_ids[9])
    path = both[1].inputs.files[row]
    path.write_bytes(path.read_bytes()[:40])
    batches = both[1].inputs.ahead([slice(0, 5), slice(5, 15), slice(15, 20)])
    assert len(next(batches)) == 5
    with pytest.raises(DataError, match=rf"row {row} \({path.parent.name}/{path.name}: does not decode") as caught:
        next(batches)
    assert "It was whole when the data was checked" in caught.value.remedy


CROP = ({"random_resized_crop": {"scale": (0.2, 0.8)}},)


def test_a_random_part_is_decoded_and_resized(shapes: Path) -> None:
    source = {"folder": {"path": str(shapes), "stream": "yes", "size": (6, 5), "mode": "grey"}}
    train = load(DataSpec.model_validate({"source": source, "augment": CROP}), seed=0).train
    assert isinstance(train.inputs, ImageStream)
    (crop,) = DataSpec.model_validate({"source": source, "augment": CROP}).augment
    cut = crop.in_epoch(seed=3, epoch=1)
    (shown,) = train.inputs.ahead([np.array([4, 2])], cut)
    for position, pixels in zip((4, 2), shown, strict=True):
        row = int(train.row_ids[position])  # as stored, so the same whatever part of train is used
        with Image.open(train.inputs.files[row]) as image:
            expected = image.resize((5, 6), Image.Resampling.BILINEAR, box=cut(row)(5, 6))
        np.testing.assert_array_equal(pixels[..., 0], np.asarray(expected))
    with Image.open(train.inputs.files[int(train.row_ids[4])]) as image:
        np.testing.assert_array_equal(train.inputs[4:5][0, ..., 0], np.asarray(image))  # all of it to whoever else asks


@pytest.mark.parametrize(
    ("source", "augment", "says"),
    [
        ("digits", CROP, "those here are held; `stream: yes` is what it needs"),
        ({"folder": {"path": "shapes", "stream": "no"}}, CROP, "those here are held"),
        ("imagenet", ("flip", *CROP), "expected it once, before the others"),
        ("imagenet", (*CROP, *CROP), "expected it once, before the others"),
    ],
)
def test_a_random_part_that_cannot_be_decoded_is_refused(source: Any, augment: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DataSpec.model_validate({"source": source, "augment": augment})


def test_a_random_part_of_images_that_turn_out_to_be_held_is_refused(shapes: Path) -> None:
    cropped = spec(shapes, "auto", augment=CROP)
    for opening in (lambda: describe(cropped), lambda: load(cropped, seed=0)):
        with pytest.raises(RecipeError, match=r"data\.augment: random_resized_crop is made while images are decoded"):
            opening()
