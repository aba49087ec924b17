"""Logits against reference logits, judged by the gate of a precision. Pure functions of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import BundleError, ExportError


@dataclass(frozen=True)
class Gate:
    """What a form may differ by from its reference.

    max_error_over_std: largest absolute logit error, in standard deviations of the reference logits.
    top1_agreement: least share of rows with the same prediction.
    metric_drop_points: largest loss of accuracy, in percentage points.
    """

    max_error_over_std: float
    top1_agreement: float
    metric_drop_points: float


# By the precision that the manifest gives for a format.
GATES: Mapping[str, Gate] = {
    "fp32": Gate(max_error_over_std=1e-4, top1_agreement=1.0, metric_drop_points=0.0),
    "packed": Gate(max_error_over_std=1e-4, top1_agreement=1.0, metric_drop_points=0.0),
    "fp16": Gate(max_error_over_std=2e-2, top1_agreement=0.99, metric_drop_points=0.1),
    "bf16": Gate(max_error_over_std=1e-1, top1_agreement=0.98, metric_drop_points=0.3),
    "int8": Gate(max_error_over_std=3e-1, top1_agreement=0.97, metric_drop_points=1.0),
    "int8_cpu": Gate(max_error_over_std=3e-1, top1_agreement=0.97, metric_drop_points=1.0),
    "int4": Gate(max_error_over_std=3e-1, top1_agreement=0.97, metric_drop_points=1.0),
    "qonnx": Gate(max_error_over_std=3e-1, top1_agreement=0.97, metric_drop_points=1.0),
}
# Both of two logits may be off by as much as two engines of float32 differ: a row decided by less is a tie.
TIE_OVER_STD = 2 * GATES["fp32"].max_error_over_std
# A form whose logits vary by less than this share of the reference's gives every input the same ones.
CONSTANT_SHARE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """Logits against reference logits. The errors are None where there are values that are not finite.

    reference_std: standard deviation of all reference logits; errors are divided by it (by 1 where it is 0).
    top1_agreement: share of rows with the same prediction, where the reference decides by more than `TIE_OVER_STD`;
    any of the classes that it does not tell apart agrees with it.
    metric_drop_points: reference accuracy minus accuracy, in percentage points; negative: the form is better. A tie
    counts as in the reference.
    reasons: each missed gate, with what came and what is allowed; empty when all hold.
    """

    rows: int
    reference_std: float
    max_error_over_std: float | None
    rms_error_over_std: float | None
    top1_agreement: float
    reference_accuracy: float
    accuracy: float
    metric_drop_points: float
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "reasons": list(self.reasons), "passed": self.passed}


def gate_of(precision: str) -> Gate:
    """Return the gate of a precision. Raises BundleError where there is none."""
    if precision not in GATES:
        raise BundleError(f"precision '{precision}' has no parity gate; there are gates for {', '.join(GATES)}")
    return GATES[precision]


def looser(gate: Gate, other: Gate) -> Gate:
    """Return what is allowed by either gate, number by number."""
    return Gate(
        max_error_over_std=max(gate.max_error_over_std, other.max_error_over_std),
        top1_agreement=min(gate.top1_agreement, other.top1_agreement),
        metric_drop_points=max(gate.metric_drop_points, other.metric_drop_points),
    )


def compare(reference_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray, gate: Gate) -> Comparison:
    """Compare logits (N, C) with reference logits (N, C) on rows with labels (N,), and judge by `gate`.

    Raises ExportError on other shapes.
    """
    _require_shapes(reference_logits, logits, labels)
    reference, came = reference_logits.astype(np.float64), logits.astype(np.float64)
    unfit = (*_not_finite(reference, "reference logits"), *_not_finite(came, "logits"))
    reference_std = 0.0 if unfit else float(reference.std())
    predicted, expected = came.argmax(axis=1), reference.argmax(axis=1)
    rows = np.arange(len(labels))
    margin = reference[rows, expected] - reference[rows, predicted]
    agrees = margin <= TIE_OVER_STD * reference_std
    correct = int((predicted == labels).sum())
    reference_correct = int((expected == labels).sum())
    counted = int((np.where(agrees, expected, predicted) == labels).sum())
    scale = reference_std or 1.0  # a reference of one single value has no spread to measure by
    error = np.abs(came - reference) / scale if not unfit else None
    comparison = Comparison(
        rows=len(labels),
        reference_std=reference_std,
        max_error_over_std=None if error is None else float(error.max()),
        rms_error_over_std=None if error is None else float(np.sqrt(np.square(error).mean())),
        top1_agreement=float(agrees.mean()),
        reference_accuracy=reference_correct / len(labels),
        accuracy=correct / len(labels),
        metric_drop_points=100 * (reference_correct - counted) / len(labels),
    )
    constant = () if unfit else _constant(reference, came)
    return dataclasses.replace(comparison, reasons=(*unfit, *constant, *_missed(comparison, gate)))


@dataclass(frozen=True)
class ClassCount:
    """Of the `rows` rows with this label, how many the reference and the form get right."""

    label: int
    rows: int
    reference_correct: int
    correct: int


@dataclass(frozen=True)
class WorstRow:
    """A row by its largest logit error, in standard deviations of the reference logits; None where it is not finite.

    reference_logits, logits (C,): None for a number that is not finite.
    """

    row_id: int
    label: int
    error_over_std: float | None
    reference_class: int
    predicted_class: int
    reference_logits: tuple[float | None, ...]
    logits: tuple[float | None, ...]


def by_class(reference_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple[ClassCount, ...]:
    """Return what both get right of every class that has rows, from logits (N, C) twice and labels (N,)."""
    expected, predicted = reference_logits.argmax(axis=1), logits.argmax(axis=1)
    counted = []
    for label in np.unique(labels).tolist():
        rows = labels == label
        right = (int((each[rows] == label).sum()) for each in (expected, predicted))
        counted.append(ClassCount(label, int(rows.sum()), *right))
    return tuple(counted)


def worst_rows(
    reference_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray, row_ids: np.ndarray, count: int
) -> tuple[WorstRow, ...]:
    """Return the `count` rows with the largest logit errors, worst first; those that are not finite before all."""
    reference, came = reference_logits.astype(np.float64), logits.astype(np.float64)
    finite = reference[np.isfinite(reference)]
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        error = np.abs(came - reference).max(axis=1) / ((float(finite.std()) if finite.size else 0.0) or 1.0)
    order = np.argsort(-np.nan_to_num(error, nan=np.inf, posinf=np.inf), kind="stable")[:count]
    return tuple(
        WorstRow(
            row_id=int(row_ids[row]),
            label=int(labels[row]),
            error_over_std=_finite_or_none(error[row]),
            reference_class=int(reference[row].argmax()),
            predicted_class=int(came[row].argmax()),
            reference_logits=tuple(map(_finite_or_none, reference_logits[row])),
            logits=tuple(map(_finite_or_none, logits[row])),
        )
        for row in order
    )


def _finite_or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _constant(reference: np.ndarray, came: np.ndarray) -> tuple[str, ...]:
    spreads = [float(np.ptp(each, axis=0).max()) for each in (reference, came)]
    if spreads[0] == 0 or spreads[1] > CONSTANT_SHARE * spreads[0]:
        return ()
    return ("every input gets the same logits, and the reference tells inputs apart",)


def _missed(comparison: Comparison, gate: Gate) -> list[str]:
    error, drop = comparison.max_error_over_std, comparison.metric_drop_points
    missed = []
    if error is not None and error > gate.max_error_over_std:
        missed.append(f"max error / std is {error:.3g}, allowed {gate.max_error_over_std:g}")
    if comparison.top1_agreement < gate.top1_agreement:
        missed.append(
            f"top-1 agreement is {100 * comparison.top1_agreement:.2f} %, "
            f"allowed {100 * gate.top1_agreement:g} % or more"
        )
    if drop > gate.metric_drop_points:
        missed.append(f"accuracy drops by {drop:.2f} points, allowed {gate.metric_drop_points:g}")
    return missed


def _not_finite(values: np.ndarray, what: str) -> list[str]:
    rows = int((~np.isfinite(values)).any(axis=1).sum())
    return [f"{what} are not finite in {rows} of {len(values)} rows, expected none"] if rows else []


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """The worst of each number; an error that is not a number is worse than any."""

    def largest(errors: Sequence[float | None]) -> float | None:
        known = [each for each in errors if each is not None]
        return max(known) if len(known) == len(errors) else None

    return dataclasses.replace(
        comparisons[0],
        max_error_over_std=largest([each.max_error_over_std for each in comparisons]),
        rms_error_over_std=largest([each.rms_error_over_std for each in comparisons]),
        top1_agreement=min(each.top1_agreement for each in comparisons),
        accuracy=min(each.accuracy for each in comparisons),
        metric_drop_points=max(each.metric_drop_points for each in comparisons),
        reasons=tuple(dict.fromkeys(reason for each in comparisons for reason in each.reasons)),
    )


def _require_shapes(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
    if reference.ndim != 2 or not len(reference) or reference.shape != logits.shape:
        raise ExportError(
            f"logits of shape {logits.shape} cannot be compared with reference logits of shape "
            f"{reference.shape}; expected (N, C) twice, with N at least 1"
        )
    if labels.shape != (len(reference),):
        raise ExportError(f"labels have shape {labels.shape}; expected ({len(reference)},)")
