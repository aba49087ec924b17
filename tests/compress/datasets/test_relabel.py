from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.datasets.relabel import Relabel


def test_groups_map_each_class_to_its_group() -> None:
    view = Relabel(groups=((3, 0), (1,), (2,)))
    assert view.apply(np.array([0, 1, 2, 3, 3, 0]), 4).tolist() == [0, 1, 2, 0, 0, 0]
    assert view.classes() == 3
    assert view.names(("a", "b", "c", "d")) == ("d/a", "b", "c")


def test_modulo_folds_the_class_number() -> None:
    labels = np.arange(10)
    view = Relabel(modulo=3)
    assert view.apply(labels, 10).tolist() == (labels % 3).tolist()
    assert view.classes() == 3
    assert view.names(tuple("0123456789")) == ("0/3/6/9", "1/4/7", "2/5/8")


def test_long_names_are_counted_and_stay_distinct() -> None:
    names = Relabel(modulo=2).names(tuple(f"a very long class name {i % 2}" for i in range(40)))
    assert names == ("group 0 (a very long class name 0 and 19 more)", "group 1 (a very long class name 1 and 19 more)")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "came none"),
        ({"groups": ((0,), (1,)), "modulo": 2}, "came both"),
        ({"groups": ((0, 1), (1, 2), (2, 3))}, "classes 1, 2 are in more than one place"),
        ({"groups": ((0, 0), (1,))}, "class 0 is in more than one place"),
        ({"groups": ((0,), (3,))}, "classes 1, 2 are in no group"),
        ({"groups": ((0, 1, 2),)}, "two or more groups"),
        ({"groups": ((0, 1), ())}, "each of one or more classes"),
        ({"groups": ((0,), (-1,))}, "greater than or equal to 0"),
        ({"groups": ((0,), (10**18,))}, "less than"),
        ({"modulo": 1}, "greater than or equal to 2"),
    ],
)
def test_a_view_that_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Relabel(**options)


@pytest.mark.parametrize(
    ("view", "classes", "says"),
    [
        (Relabel(groups=((0, 1), (2,))), 3, None),
        (Relabel(groups=((0, 1), (2,))), 5, "classes 3, 4 are in no group"),
        (Relabel(groups=((0, 1), (2,))), 2, "class 2 is not there: the data has 2 classes, 0 to 1"),
        (Relabel(modulo=3), 3, None),
        (Relabel(modulo=4), 3, "modulo is 4"),
    ],
)
def test_a_view_is_held_against_the_classes(view: Relabel, classes: int, says: str | None) -> None:
    problem = view.problem_with(classes)
    assert problem is None if says is None else says in str(problem)
