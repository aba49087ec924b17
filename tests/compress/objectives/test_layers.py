"""Which feature maps are compared."""

from __future__ import annotations

import pytest

from compress.models import Shapes
from compress.objectives import Heads
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve, shapes_of_both


def shapes(prefix: str, count: int) -> Shapes:
    features = tuple((4 * (i + 1), 16 >> i, 16 >> i) for i in range(count))
    return Shapes(8, features, tuple(f"{prefix}{i + 1}" for i in range(count)))


def heads(student: int, teacher: int) -> Heads:
    return Heads(3, 1, 1, shapes("small", student), shapes("large", teacher))


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        ("last", 2, 3, [(1, 2)]),
        ("last", 1, 1, [(0, 0)]),
        ("all", 3, 3, [(0, 0), (1, 1), (2, 2)]),
        ("all", 2, 4, [(0, 2), (1, 3)]),
        ("all", 3, 1, [(2, 0)]),
        ("middle", 3, 5, [(1, 2)]),
        ("middle", 2, 4, [(0, 1)]),
        ("middle", 1, 3, [(0, 1)]),
        ((("small2", "large1"), ("small1", "large3")), 2, 3, [(1, 0), (0, 2)]),
    ],
)
def test_resolve_gives_positions(layers: Layers, student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert layer_problem(layers, heads(student, teacher)) is None
    assert resolve(layers, heads(student, teacher)) == pairs


def test_layer_shapes_follow_the_positions() -> None:
    assert layer_shapes("all", heads(1, 2)) == [((4, 16, 16), (8, 8, 8))]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((("small3", "large1"),), "the student has no feature map 'small3'; it has small1, small2. Did you mean"),
        ((("small1", "x"),), "the teacher has no feature map 'x'; it has large1, large2, large3."),
        ((), "no pair is named"),
    ],
)
def test_a_map_that_is_not_there_is_named_with_those_that_are(layers: Layers, message: str) -> None:
    assert message in (layer_problem(layers, heads(2, 3)) or "")


@pytest.mark.parametrize(("student", "teacher", "side"), [(0, 1, "student"), (1, 0, "teacher")])
def test_models_without_maps_are_refused(student: int, teacher: int, side: str) -> None:
    assert layer_problem("last", heads(student, teacher)) == f"the {side} gives no feature maps"


def test_nothing_is_said_before_the_shapes_are_known() -> None:
    assert layer_problem("last", Heads(3, 1, 1)) is None
    assert layer_problem((("a", "b"),), Heads(3, 1, 1, shapes("small", 1))) is None


def test_shapes_of_both_names_the_side_that_is_missing() -> None:
    with pytest.raises(ValueError, match="the student's outputs are not known"):
        shapes_of_both(Heads(3, 1, 1))
    with pytest.raises(ValueError, match="the teacher's outputs are not known"):
        shapes_of_both(Heads(3, 1, 1, shapes("small", 1)))
