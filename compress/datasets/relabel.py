"""Label views: the stored classes regrouped into the classes of a recipe."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from compress.datasets.base import Int64Array
from compress.kinds import Spec

# More classes than any data set here; bounds the work that one number in a recipe can cause.
CLASSES = 65_536
# A joined name longer than this is written with a count instead.
NAME_LENGTH = 48

Index = Annotated[int, Field(ge=0, lt=CLASSES)]
Group = tuple[Index, ...]


class Relabel(Spec):
    """Which stored classes make each class of the view: `groups`, or label modulo `modulo`; one of them."""

    groups: tuple[Group, ...] | None = None
    modulo: Annotated[int, Field(ge=2, le=CLASSES)] | None = None

    @field_validator("groups")
    @classmethod
    def _disjoint_and_without_gaps(cls, groups: tuple[Group, ...] | None) -> tuple[Group, ...] | None:
        if groups is None:
            return None
        # Not Field(min_length=...): pydantic counts valid items only, and so reports a bad item twice.
        if len(groups) < 2 or not all(groups):
            raise PydanticCustomError("groups", "expected two or more groups, each of one or more classes")
        members = Counter(index for group in groups for index in group)
        if repeated := sorted(index for index, times in members.items() if times > 1):
            raise _problem("{classes} in more than one place; expected each class in one group", repeated)
        # The largest index exists, so every smaller one does: a gap is wrong whatever the data.
        if missing := sorted(set(range(max(members))) - set(members)):
            raise _problem("{classes} in no group; expected every class in one", missing)
        return groups

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.groups is None) == (self.modulo is None):
            came = "none" if self.groups is None else "both"
            raise PydanticCustomError("one_view", "expected one of `groups` and `modulo`; came {came}", {"came": came})
        return self

    def problem_with(self, classes: int) -> str | None:
        """Return what is wrong with the view for a source of `classes` classes, or None."""
        if self.modulo is not None:
            if self.modulo <= classes:
                return None
            return f"modulo is {self.modulo}, but there are only {classes} classes to fold"
        members = {index for group in self.groups or () for index in group}
        if unknown := sorted(index for index in members if index >= classes):
            return f"{_listed(unknown)} not there: the data has {classes} classes, 0 to {classes - 1}"
        if missing := sorted(set(range(classes)) - members):
            return f"{_listed(missing)} in no group; expected every one of {classes} classes in one"
        return None

    def classes(self) -> int:
        return len(self.groups) if self.groups is not None else int(self.modulo or 0)

    def members(self, classes: int) -> tuple[tuple[int, ...], ...]:
        """Return the stored classes of each class of the view."""
        if self.groups is not None:
            return self.groups
        step = int(self.modulo or 1)
        return tuple(tuple(range(first, classes, step)) for first in range(step))

    def names(self, stored: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the view's classes, made of the names of their members."""
        groups = self.members(len(stored))
        return tuple(_name(index, [stored[member] for member in group]) for index, group in enumerate(groups))

    def apply(self, labels: Int64Array, classes: int) -> Int64Array:
        """Return the view's labels (N,) of the stored `labels` (N,)."""
        table = np.zeros(classes, dtype=np.int64)
        for index, group in enumerate(self.members(classes)):
            table[list(group)] = index
        return table[labels]


def _name(index: int, members: list[str]) -> str:
    joined = "/".join(members)
    if len(joined) <= NAME_LENGTH:
        return joined
    return f"group {index} ({members[0]} and {len(members) - 1} more)"


def _problem(template: str, indexes: list[int]) -> PydanticCustomError:
    return PydanticCustomError("relabel", template, {"classes": _listed(indexes)})


def _listed(indexes: list[int]) -> str:
    shown = ", ".join(map(str, indexes[:20])) + (f" and {len(indexes) - 20} more" if len(indexes) > 20 else "")
    return f"class {shown} is" if len(indexes) == 1 else f"classes {shown} are"
