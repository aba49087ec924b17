"""Semi-supervised stages: which rows are labelled, and what the others are called."""

from __future__ import annotations

import numpy as np
import pytest

from compress.datasets import Split
from compress.datasets.base import Int64Array
from compress.known_rows import known_rows
from compress.recipe import LabelsSpec
from runtime.errors import RecipeError

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def rows() -> Split:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    return Split(images, LABELS.copy(), None, np.arange(500, 600))


def never(split: Split) -> Int64Array:
    raise AssertionError("the teacher was asked")


def fives(split: Split) -> Int64Array:
    return np.full(len(split), 5, dtype=np.int64)


def test_left_out_rows_are_gone_and_each_class_keeps_its_share() -> None:
    kept = known_rows(rows(), LabelsSpec(rows=20), 0, never)
    assert np.bincount(kept.labels).tolist() == [12, 6, 2]
    np.testing.assert_array_equal(kept.inputs[:, 0, 0, 0], kept.row_ids - 500)
    np.testing.assert_array_equal(kept.labels, LABELS[kept.row_ids - 500])


def test_the_rest_is_labelled_by_the_teacher_and_the_labelled_rows_are_those_it_saw() -> None:
    seen = known_rows(rows(), LabelsSpec(rows=20), 4, never)
    everything = known_rows(rows(), LabelsSpec(rows=20, rest="teacher"), 4, fives)
    assert len(everything) == 100
    own = everything.labels != 5
    np.testing.assert_array_equal(everything.row_ids[own], seen.row_ids)
    np.testing.assert_array_equal(everything.labels[own], seen.labels)


def test_the_teacher_is_asked_about_the_unlabelled_rows_in_order() -> None:
    asked: list[Split] = []

    def remembered(split: Split) -> Int64Array:
        asked.append(split)
        return 10 + np.arange(len(split))

    known = known_rows(rows(), LabelsSpec(rows=90, rest="teacher"), 0, remembered)
    (unlabelled,) = asked
    assert len(unlabelled) == 10
    np.testing.assert_array_equal(known.labels[unlabelled.row_ids - 500], 10 + np.arange(10))


def test_the_split_given_keeps_its_labels() -> None:
    split = rows()
    known_rows(split, LabelsSpec(rows=1, rest="teacher"), 0, fives)
    np.testing.assert_array_equal(split.labels, LABELS)


@pytest.mark.parametrize("rest", ["leave_out", "teacher"])
def test_all_rows_labelled_is_the_split_itself(rest: str) -> None:
    known = known_rows(rows(), LabelsSpec.model_validate({"rows": 100, "rest": rest}), 0, never)
    np.testing.assert_array_equal(known.labels, LABELS)
    np.testing.assert_array_equal(known.row_ids, rows().row_ids)


def test_more_labels_than_rows_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"labels\.rows is 101, and there are 100 training rows"):
        known_rows(rows(), LabelsSpec(rows=101), 0, never)
