"""Which feature maps a term compares: one choice for every feature objective.

A recipe says `layers: last`, `middle`, `all`, or pairs by name: `[[stage2, stage3], ...]`, the student's map first.
Maps whose spatial sizes differ are the terms' business: `functional.same_size`.
"""

from __future__ import annotations

import difflib
from typing import Literal

from compress.models.base import Shapes
from compress.objectives.base import Heads

Layers = Literal["all", "last", "middle"] | tuple[tuple[str, str], ...]


def resolve(layers: Layers, heads: Heads) -> list[tuple[int, int]]:
    """Return the positions of the compared maps as (student, teacher), in depth order where they are not named.

    last: the deepest of each. middle: of each the one in the middle, of two the earlier. all: pairs counted from the
    deepest, as many as the shallower model has. Call it after `layer_problem` said nothing.
    """
    student, teacher = shapes_of_both(heads)
    ours, theirs = len(student.features), len(teacher.features)
    if layers == "last":
        return [(ours - 1, theirs - 1)]
    if layers == "middle":
        return [((ours - 1) // 2, (theirs - 1) // 2)]
    if layers == "all":
        pairs = min(ours, theirs)
        return [(ours - i, theirs - i) for i in range(pairs, 0, -1)]
    return [(student.feature_names.index(mine), teacher.feature_names.index(yours)) for mine, yours in layers]


def layer_shapes(layers: Layers, heads: Heads) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the shapes of the compared maps as (student, teacher): (channels, h, w), or (width,) of a vector."""
    student, teacher = shapes_of_both(heads)
    return [(student.features[i], teacher.features[j]) for i, j in resolve(layers, heads)]


def layer_problem(layers: Layers, heads: Heads) -> str | None:
    """Say which map is missing, or None; None too where the shapes are not known."""
    if heads.student is None or heads.teacher is None:
        return None
    sides = (("student", heads.student), ("teacher", heads.teacher))
    for side, shapes in sides:
        if not shapes.features:
            return f"the {side} gives no feature maps"
    if isinstance(layers, str):
        return None
    if not layers:
        return "layers: no pair is named; name one, or write last, middle or all"
    for pair in layers:
        for (side, shapes), name in zip(sides, pair, strict=True):
            if name not in shapes.feature_names:
                return unknown_map(side, name, shapes.feature_names)
    return None


def shapes_of_both(heads: Heads) -> tuple[Shapes, Shapes]:
    """Return the shapes of student and teacher.

    Raises ValueError when one is not known, which is before the data and a teacher are.
    """
    if heads.student is None or heads.teacher is None:
        missing = "student" if heads.student is None else "teacher"
        raise ValueError(f"the shapes of the {missing}'s outputs are not known, so no connector can be built")
    return heads.student, heads.teacher


def unknown_map(side: str, name: str, known: tuple[str, ...]) -> str:
    """Say that a side ("student", "teacher") has no feature map of this name, and which ones it has."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"the {side} has no feature map '{name}'; it has {', '.join(known)}.{hint}"
