"""Which value of one graph stands for which of another one: by name, by name without suffixes, else by order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

How = Literal["name", "suffix", "order"]

_SUFFIX = re.compile(r"[._/:-][^._/:-]+$")
_SAME_OPERATOR, _SAME_SHAPE = 3, 1


@dataclass(frozen=True)
class Value:
    """A value of a graph, as it came out on rows: the operator that made it, its shape with the batch, its numbers.

    real: whether those are floating point; whole numbers of a quantised value never stand for real ones.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    real: bool = True

    def is_like(self, other: Value) -> bool:
        return (self.shape, self.real) == (other.shape, other.real)


@dataclass(frozen=True)
class Pair:
    """Positions of two values that stand for each other, and how that was found."""

    value: int
    reference: int
    how: How


def aligned(
    values: Sequence[Value], reference: Sequence[Value], *, outputs: Sequence[tuple[str, str]] = ()
) -> list[Pair]:
    """Pair the values of a graph with those of another one, both in topological order; some stay alone.

    outputs: names that stand for each other whatever they are. Then by equal names, of values with the same shape or
    operator; by names of which one has suffixes, as copies in other precisions give (`y`, `y.half`), and the same
    shape. What is left between those is paired in order: the most values with the same shape, those of one operator
    first.
    """
    mine, theirs = ({each.name: i for i, each in enumerate(every)} for every in (values, reference))
    known = [(mine[a], theirs[b], a == b) for a, b in outputs if a in mine and b in theirs]
    found = {i: Pair(i, j, "name" if same else "order") for i, j, same in known}
    for pair in _by_name(values, reference):
        found.setdefault(pair.value, pair)
    for pair in _by_suffix(values, reference, found):
        found.setdefault(pair.value, pair)
    for pair in _by_order(values, reference, found):
        found[pair.value] = pair
    return [found[position] for position in sorted(found)]


def _by_name(values: Sequence[Value], reference: Sequence[Value]) -> list[Pair]:
    positions = {each.name: i for i, each in enumerate(reference)}
    pairs = []
    for i, value in enumerate(values):
        j = positions.get(value.name)
        # Exporters number their values: equal names of unlike values are an accident.
        if j is not None and (value.is_like(reference[j]) or value.operator == reference[j].operator):
            pairs.append(Pair(i, j, "name"))
    return pairs


def _by_suffix(values: Sequence[Value], reference: Sequence[Value], found: dict[int, Pair]) -> list[Pair]:
    """Pair what is left; a value of the reference may stand for several, as before and behind a cast."""
    pairs = []
    plain = {each.name: j for j, each in enumerate(reference)}
    taken = {pair.reference for pair in found.values()}
    suffixed = {stem: j for j, each in enumerate(reference) if j not in taken for stem in _stems(each.name)}
    for i, value in enumerate(values):
        if i in found:
            continue
        candidates = [*(plain.get(stem) for stem in _stems(value.name)), suffixed.get(value.name)]
        match = next((j for j in candidates if j is not None and value.is_like(reference[j])), None)
        if match is not None:
            pairs.append(Pair(i, match, "suffix"))
    return pairs


def _stems(name: str) -> list[str]:
    """Return a name without its last suffix, without the last two, and so on."""
    stems = []
    while (stem := _SUFFIX.sub("", name)) != name:
        stems.append(stem)
        name = stem
    return stems


def _by_order(values: Sequence[Value], reference: Sequence[Value], found: dict[int, Pair]) -> list[Pair]:
    pairs: list[Pair] = []
    taken = {pair.reference for pair in found.values()}
    start, least = 0, 0
    anchors = [(i, found[i].reference) for i in sorted(found)]
    for end, most in [*anchors, (len(values), len(reference))]:
        if most < least:  # named out of order: no place to cut at
            continue
        left = [i for i in range(start, end) if i not in found]
        right = [j for j in range(least, most) if j not in taken]
        pairs += [Pair(left[a], right[b], "order") for a, b in _heaviest(values, reference, left, right)]
        start, least = end + 1, most + 1
    return pairs


def _heaviest(
    values: Sequence[Value], reference: Sequence[Value], left: Sequence[int], right: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the pairs, both ascending, of the largest total weight: the longest common subsequence, weighted."""
    weights = np.array([[_weight(values[i], reference[j]) for j in right] for i in left]).reshape(len(left), len(right))
    total = np.zeros((len(left) + 1, len(right) + 1), np.int64)
    for a, row in enumerate(weights, start=1):
        with_pair = np.where(row > 0, total[a - 1, :-1] + row, 0)
        total[a, 1:] = np.maximum.accumulate(np.maximum(total[a - 1, 1:], with_pair))
    pairs = []
    a, b = len(left), len(right)
    while a and b:
        weight = weights[a - 1, b - 1]
        if weight and total[a, b] == total[a - 1, b - 1] + weight:
            pairs.append((a - 1, b - 1))
            a, b = a - 1, b - 1
        elif total[a, b] == total[a, b - 1]:
            b -= 1
        else:
            a -= 1
    return pairs[::-1]


def _weight(value: Value, other: Value) -> int:
    if not value.is_like(other):
        return 0
    return _SAME_OPERATOR if value.operator == other.operator else _SAME_SHAPE
