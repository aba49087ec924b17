"""Where two ONNX models part: the first node whose output departs, on the same inputs. Needs onnx and onnxruntime.

A value that departs is no proof by itself: a batch norm that one model has folded makes the convolution before it
differ and nothing behind it. So the search goes backwards, from outputs that depart and through values that depart or
have no counterpart, and stops at values that agree. Of what it passes, the first one in the graph is the culprit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.alignment import How, Pair, aligned
from export.node_differences import is_number, node_differences
from export.trace import Trace
from runtime.errors import ExportError

TRACED = 64  # rows that all values are looked at of: those with the largest errors of the output

# A value that hardly varies is measured by this share of its size: float32 knows no more of it.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Departure:
    """A value beside its counterpart. operator, node: what makes it, and which of the model's nodes that is.

    error, rms_error: largest and root mean square difference over the counterpart's standard deviation; infinite where
    shapes differ or only one of them is finite.
    """

    value: str
    reference: str
    how: How
    operator: str
    node: int
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]
    error: float
    rms_error: float
    departs: bool

    def to_json(self) -> dict[str, Any]:
        known = {key: getattr(self, key) for key in ("error", "rms_error")}
        finite = {key: value if np.isfinite(value) else None for key, value in known.items()}
        return {**dataclasses.asdict(self), **finite, "shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class Bisection:
    """Two models on rows. values: every pair on `traced` of them, in the model's order. nodes: how many the model has.

    first: the first value that departs on the way to an output that does, or None. inputs: the pairs that its node
    reads, straight or through nodes without a counterpart, which are `between`. differences: of the two nodes, in
    words. unpaired: how many values have no counterpart. written_agree: whether the outputs agree where each model runs
    exactly as its nodes say. outputs, reference_outputs: the first output (N, C) of all rows as deployed.
    """

    traced: int
    nodes: int
    tolerance: float
    values: tuple[Departure, ...]
    first: Departure | None
    inputs: tuple[Departure, ...]
    between: tuple[str, ...]
    differences: tuple[str, ...]
    unpaired: int
    written_agree: bool
    outputs: np.ndarray
    reference_outputs: np.ndarray

    def largest(self, count: int) -> list[Departure]:
        """Return the `count` largest departures in the order of the graph; the first and the last are among them."""
        by_error = sorted(self.values, key=lambda each: -each.error)
        chosen = dict.fromkeys(each.value for each in [*filter(None, [self.first]), *self.values[-1:], *by_error])
        names = set(list(chosen)[:count])
        return [each for each in self.values if each.value in names]

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": len(self.outputs),
            "traced": self.traced,
            "nodes": self.nodes,
            "tolerance": self.tolerance,
            "first": self.first.to_json() if self.first else None,
            "inputs": [each.to_json() for each in self.inputs],
            "between": list(self.between),
            "differences": list(self.differences),
            "unpaired": self.unpaired,
            "written_agree": self.written_agree,
            "values": [each.to_json() for each in self.values],
        }


def bisect(
    model: bytes,
    reference: bytes,
    rows: np.ndarray,
    *,
    tolerance: float,
    names: tuple[str, str] = ("the model", "the reference"),
    libraries: tuple[Path | None, Path | None] = (None, None),
) -> Bisection:
    """Run both models on `rows` (N, *shape) with all values as outputs, and find where they part.

    tolerance: what a value may differ by, in standard deviations of its counterpart. libraries: of custom operators.
    Raises ExportError where a model does not run or both cannot take the same rows.
    """
    one, other = (
        Trace(data, name, library=library)
        for data, name, library in zip((model, reference), names, libraries, strict=True)
    )
    _require_same_argument(one, other)
    outputs, expected_outputs = one.as_deployed(rows), other.as_deployed(rows)
    if outputs.shape != expected_outputs.shape:
        came = f"{names[0]} gives {list(outputs.shape)} and {names[1]} {list(expected_outputs.shape)}"
        raise ExportError(f"{came}: nothing to compare", "Give two models of one task.")
    worst = rows[_worst_rows(outputs, expected_outputs)]
    pairs: list[Pair] | None = None
    sums: list[_Sums] = []
    for batch in one.batches(worst):
        found, expected = one.run(batch), other.run(batch)
        if pairs is None:
            together = list(zip(one.outputs, other.outputs, strict=False))
            pairs = aligned(one.values(found), other.values(expected), outputs=together)
            sums = [_Sums() for _ in pairs]
        for pair, total in zip(pairs, sums, strict=True):
            total.add(found[one.live[pair.value]], expected[other.live[pair.reference]])
    assert pairs is not None  # as_deployed found a batch
    values = tuple(_departure(pair, total, one, other, tolerance) for pair, total in zip(pairs, sums, strict=True))
    by_value = {each.value: each for each in values}
    first = _first(one, by_value)
    inputs, between = _before(one, by_value, first) if first else ((), ())
    return Bisection(
        traced=len(worst),
        nodes=len(one.graph.node),
        tolerance=tolerance,
        values=values,
        first=first,
        inputs=inputs,
        between=between,
        differences=_differences(first, one, other, tolerance) if first else (),
        unpaired=len(one.live) - len(values),
        written_agree=not any(by_value[each].departs for each in one.outputs if each in by_value),
        outputs=outputs,
        reference_outputs=expected_outputs,
    )


def _worst_rows(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the positions of `TRACED` rows, of the largest errors, ascending."""
    with np.errstate(invalid="ignore"):
        error = np.abs(outputs.astype(np.float64) - reference).reshape(len(outputs), -1).max(axis=1)
    return np.sort(np.argsort(-np.nan_to_num(error, nan=np.inf, posinf=np.inf), kind="stable")[:TRACED])


class _Sums:
    """What a pair of values comes to over batches, in float64."""

    def __init__(self) -> None:
        self.shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.count = 0
        self.largest = self.squares = self.total = self.total_squares = 0.0

    def add(self, value: np.ndarray, reference: np.ndarray) -> None:
        self.shapes = (value.shape, reference.shape)
        if value.shape != reference.shape or not is_number(value) or not is_number(reference):
            self.largest = np.inf if value.shape != reference.shape else self.largest
            return
        came, expected = value.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        with np.errstate(invalid="ignore"):  # infinity minus infinity, of a mask that both have
            error = np.where((came == expected) | (np.isnan(came) & np.isnan(expected)), 0.0, np.abs(came - expected))
        error = np.nan_to_num(error, nan=np.inf, posinf=np.inf)
        finite = expected[np.isfinite(expected)]
        self.largest = max(self.largest, float(error.max(initial=0)))
        self.squares += float(np.square(error).sum())
        self.count += len(finite)
        self.total += float(finite.sum())
        self.total_squares += float(np.square(finite).sum())

    def over_spread(self) -> tuple[float, float]:
        """Return the largest and the root mean square error over the reference's standard deviation."""
        count = max(self.count, 1)
        mean, square = self.total / count, self.total_squares / count
        spread = max(float(np.sqrt(max(square - mean**2, 0.0))), _LEAST_SPREAD * float(np.sqrt(square))) or 1.0
        return self.largest / spread, float(np.sqrt(self.squares / count)) / spread


def _departure(pair: Pair, sums: _Sums, one: Trace, other: Trace, tolerance: float) -> Departure:
    value, reference = one.live[pair.value], other.live[pair.reference]
    error, rms = sums.over_spread()
    return Departure(
        value=value,
        reference=reference,
        how=pair.how,
        operator=one.producer[value].op_type,
        node=one.position[value],
        shape=sums.shapes[0],
        reference_shape=sums.shapes[1],
        error=error,
        rms_error=rms,
        departs=not error <= tolerance,
    )


def _first(one: Trace, by_value: dict[str, Departure]) -> Departure | None:
    """Return the earliest departing value that leads to an output through nothing that agrees."""
    passed: set[str] = set()
    pending = [each for each in one.outputs if each in by_value and by_value[each].departs]
    while pending:
        value = pending.pop()
        agrees = value in by_value and not by_value[value].departs
        if value == one.input or value in passed or agrees:
            continue
        passed.add(value)
        pending += one.live_inputs(value)
    return min((by_value[each] for each in passed if each in by_value), key=lambda each: each.node, default=None)


def _before(
    one: Trace, by_value: dict[str, Departure], first: Departure
) -> tuple[tuple[Departure, ...], tuple[str, ...]]:
    """Return the pairs that lead to `first`, and the nodes without a counterpart that lie between."""
    inputs: dict[str, Departure] = {}
    between: dict[str, None] = {}
    pending = one.live_inputs(first.value)
    while pending:
        value = pending.pop()
        if value in by_value:
            inputs[value] = by_value[value]
        elif value != one.input and value not in between:
            between[value] = None
            pending += one.live_inputs(value)
    ordered = sorted(between, key=lambda value: one.position[value])
    return tuple(inputs.values()), tuple(f"{one.producer[value].op_type} '{value}'" for value in ordered)


def _differences(first: Departure, one: Trace, other: Trace, tolerance: float) -> tuple[str, ...]:
    constants = (one.constants, other.constants)
    nodes = (one.producer[first.value], other.producer[first.reference])
    if first.how == "suffix" and nodes[0].op_type != nodes[1].op_type:  # a cast or a quantisation, by its purpose
        return ()
    return node_differences(*nodes, *constants, tolerance=tolerance)


def _require_same_argument(one: Trace, other: Trace) -> None:
    alike = one.argument.type == other.argument.type
    if not alike or not _compatible(one.argument.shape[1:], other.argument.shape[1:]):
        came = " and ".join(
            f"{each.name} takes {each.argument.type} {list(each.argument.shape)}" for each in (one, other)
        )
        raise ExportError(f"{came}: they cannot run on the same rows", "Give two models of one input.")


def _compatible(shape: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return whether rows can have both shapes; a size without a number fits any."""
    return len(shape) == len(other) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(shape, other, strict=True)
    )
