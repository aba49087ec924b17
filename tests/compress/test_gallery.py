"""The gallery: what each invented subclass holds, counted from logits written by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from compress.gallery import IMAGES_PER_SUBCLASS, TEXT_LENGTH, TEXTS_PER_SUBCLASS, Gallery, build_gallery

# Eight rows and 2 classes of 2 subclasses: the subclass that wins each row. The fourth (index 3) never wins.
WINNERS = [0, 0, 0, 1, 2, 2, 2, 2]
HIDDEN = [5, 5, 4, 4, 1, 1, 1, 3]
HIDDEN_NAMES = ("zero", "one", "two", "three", "four", "five")
NAMES = ("even", "odd")


def logits_of(winners: list[int], width: int = 4) -> np.ndarray:
    """Logits (N, width) in which the given subclass leads, by more and more from row to row."""
    logits = np.zeros((len(winners), width), np.float32)
    logits[np.arange(len(winners)), winners] = 1 + np.arange(len(winners))
    return logits


def images(rows: int, channels: int = 1) -> np.ndarray:
    """Images (rows, 2, 2, channels): row i holds i, and 255 in its last pixel."""
    made = np.zeros((rows, 2, 2, channels), np.uint8)
    made += np.arange(rows, dtype=np.uint8)[:, None, None, None]
    made[:, 1, 1] = 255
    return made


def gallery(hidden: bool = True, channels: int = 1) -> Gallery:
    return build_gallery(
        "student",
        logits_of(WINNERS),
        images(len(WINNERS), channels),
        class_names=NAMES,
        hidden=np.array(HIDDEN) if hidden else None,
        hidden_names=HIDDEN_NAMES if hidden else None,
    )


def pixels(strip: str) -> np.ndarray:
    head, data = strip.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_subclasses_are_named_by_class_in_class_major_order() -> None:
    made = gallery()
    assert made.stage == "student"
    assert [(each.name, each.class_name) for each in made.subclasses] == [
        ("even · 1", "even"),
        ("even · 2", "even"),
        ("odd · 1", "odd"),
        ("odd · 2", "odd"),
    ]


def test_share_is_of_all_rows_and_purity_of_the_subclasss_own() -> None:
    made = gallery()
    assert [each.share for each in made.subclasses] == [3 / 8, 1 / 8, 4 / 8, 0]
    # Two of three rows are fives; one of one is a four; three of four are ones.
    assert [each.hidden_name for each in made.subclasses] == ["five", "four", "one", None]
    assert [each.purity for each in made.subclasses] == [pytest.approx(2 / 3), 1.0, 0.75, None]


def test_counts_are_rows_by_hidden_label_and_subclass() -> None:
    made = gallery()
    assert made.hidden_names == HIDDEN_NAMES
    assert made.counts is not None
    expected = np.zeros((6, 4), int)
    expected[5, 0], expected[4, 0], expected[4, 1], expected[1, 2], expected[3, 2] = 2, 1, 1, 3, 1
    np.testing.assert_array_equal(made.counts, expected)


def test_a_subclass_that_no_row_falls_into_says_so() -> None:
    unused = gallery().subclasses[3]
    assert (unused.share, unused.hidden_name, unused.purity, unused.strip) == (0, None, None, "")


def test_without_hidden_labels_there_are_shares_and_images_only() -> None:
    made = gallery(hidden=False)
    assert (made.counts, made.hidden_names) == (None, ())
    assert [each.share for each in made.subclasses] == [3 / 8, 1 / 8, 4 / 8, 0]
    assert all(each.hidden_name is None and each.purity is None for each in made.subclasses)
    assert made.subclasses[0].strip


def test_the_images_that_activate_a_subclass_most_come_first() -> None:
    # Rows in which the first subclass leads by 1, 3 and 2, over a row in which it does not.
    logits = np.array([[1, 0], [3, 0], [2, 0], [0, 5]], np.float32)
    shades = np.zeros((4, 1, 2, 1), np.uint8)
    # One pixel is bright, left or right: the strip's order can be read from it.
    for row, bright in enumerate([0, 1, 0, 1]):
        shades[row, 0, bright] = 200
    made = build_gallery("s", logits, shades, class_names=("only",), hidden=None, hidden_names=None)
    strip = pixels(made.subclasses[0].strip)[0].tolist()
    dark, white = 0, 255
    # Rows 1, 2, 0, 3, each stretched to the full range, one white column between two images.
    assert strip == [dark, white, 255, white, dark, 255, white, dark, 255, dark, white]


def test_equal_logits_keep_the_order_of_the_rows() -> None:
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (3, 1))
    shades = np.zeros((3, 1, 3, 1), np.uint8)
    shades[[0, 1, 2], 0, [0, 1, 2]] = 255
    made = build_gallery("s", logits, shades, class_names=("only",), hidden=None, hidden_names=None)
    strip = pixels(made.subclasses[0].strip)[0]
    assert [int(strip[4 * image : 4 * image + 3].argmax()) for image in range(3)] == [0, 1, 2]


def test_a_strip_holds_ten_images_at_most() -> None:
    rows = 3 * IMAGES_PER_SUBCLASS
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (rows, 1))
    made = build_gallery("s", logits, images(rows), class_names=("only",), hidden=None, hidden_names=None)
    assert pixels(made.subclasses[0].strip).shape == (2, 3 * IMAGES_PER_SUBCLASS - 1)
    assert made.subclasses[0].share == 1.0


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 23)), (3, (2, 23, 3)), (2, (2, 23)), (4, (2, 23))])
def test_strips_are_grey_or_colour(channels: int, shape: tuple[int, ...]) -> None:
    strip = pixels(gallery(channels=channels).subclasses[2].strip)
    assert strip.shape == shape
    assert strip.max() == 255
    assert strip.min() == 0


def test_one_subclass_a_class_counts_classes() -> None:
    made = build_gallery("s", logits_of([0, 1, 1], 2), images(3), class_names=NAMES, hidden=None, hidden_names=None)
    assert [each.name for each in made.subclasses] == ["even · 1", "odd · 1"]
    assert [each.share for each in made.subclasses] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_texts_are_shown_whole_or_shortened_strongest_first() -> None:
    texts = np.array([f"text  {row}\nof many" for row in range(7)] + ["word " * 100], dtype=np.object_)
    made = build_gallery("s", logits_of(WINNERS), None, texts=texts, class_names=NAMES, hidden=None, hidden_names=None)
    assert made.of_texts
    first, _, third, unused = made.subclasses
    assert first.texts[:3] == ("text 2 of many", "text 1 of many", "text 0 of many")
    assert len(third.texts) == TEXTS_PER_SUBCLASS
    assert third.texts[0] == ("word " * 100)[: TEXT_LENGTH - 1] + "…"
    assert unused.texts == ()
    assert not any(subclass.strip for subclass in made.subclasses)


def test_a_gallery_of_images_has_no_texts() -> None:
    assert not gallery().of_texts
