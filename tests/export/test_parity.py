"""Gates and comparisons, against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export.parity import GATES, TIE_OVER_STD, ClassCount, Gate, by_class, compare, gate_of, worst, worst_rows
from runtime.errors import BundleError, ExportError

# Standard deviation 2 (mean 0, every value ±2), predictions 0, 1, 0, 1.
REFERENCE = np.array([[2, -2], [-2, 2], [2, -2], [-2, 2]], dtype=np.float32)
LABELS = np.array([0, 1, 0, 0])
OPEN = Gate(max_error_over_std=1e9, top1_agreement=0.0, metric_drop_points=100.0)


def test_the_gates_are_those_of_the_design() -> None:
    assert {name: (g.max_error_over_std, g.top1_agreement, g.metric_drop_points) for name, g in GATES.items()} == {
        "fp32": (1e-4, 1.0, 0.0),
        "packed": (1e-4, 1.0, 0.0),
        "fp16": (2e-2, 0.99, 0.1),
        "bf16": (1e-1, 0.98, 0.3),
        "int8": (3e-1, 0.97, 1.0),
        "int8_cpu": (3e-1, 0.97, 1.0),
        "int4": (3e-1, 0.97, 1.0),
        "qonnx": (3e-1, 0.97, 1.0),
    }


def test_unknown_precision_should_fail_and_list_the_gates() -> None:
    with pytest.raises(
        BundleError, match="'fp8' has no parity gate; there are gates for fp32, packed, fp16, bf16, int8"
    ):
        gate_of("fp8")


def test_equal_logits_pass_the_tightest_gate() -> None:
    comparison = compare(REFERENCE, REFERENCE.copy(), LABELS, GATES["fp32"])
    assert comparison.passed
    assert (comparison.max_error_over_std, comparison.rms_error_over_std) == (0.0, 0.0)
    assert (comparison.top1_agreement, comparison.metric_drop_points) == (1.0, 0.0)
    assert comparison.reference_std == 2.0


def test_numbers_by_hand() -> None:
    logits = REFERENCE.copy()
    logits[0] = [-2, 2]  # one flip: was right, is wrong; error 4 twice
    comparison = compare(REFERENCE, logits, LABELS, OPEN)
    assert comparison.max_error_over_std == 4 / 2
    assert comparison.rms_error_over_std == pytest.approx(np.sqrt(2 * 16 / 8) / 2)
    assert comparison.top1_agreement == 0.75
    assert (comparison.reference_accuracy, comparison.accuracy) == (0.75, 0.5)
    assert comparison.metric_drop_points == 25.0
    assert comparison.passed


def test_better_accuracy_is_a_negative_drop_and_no_miss() -> None:
    logits = REFERENCE.copy()
    logits[3] = [2, -2]
    comparison = compare(REFERENCE, logits, LABELS, Gate(10.0, 0.5, 0.0))
    assert comparison.metric_drop_points == -25.0
    assert comparison.passed


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (Gate(1.9, 0.0, 100.0), "max error / std is 2, allowed 1.9"),
        (Gate(9.0, 0.8, 100.0), "top-1 agreement is 75.00 %, allowed 80 % or more"),
        (Gate(9.0, 0.0, 24.0), "accuracy drops by 25.00 points, allowed 24"),
    ],
)
def test_each_gate_is_missed_by_itself(gate: Gate, said: str) -> None:
    logits = REFERENCE.copy()
    logits[0] = [-2, 2]
    comparison = compare(REFERENCE, logits, LABELS, gate)
    assert comparison.reasons == (said,)
    assert not comparison.passed


def test_gates_hold_at_their_very_limit() -> None:
    logits = REFERENCE.copy()
    logits[0] = [-2, 2]
    assert compare(REFERENCE, logits, LABELS, Gate(2.0, 0.75, 25.0)).passed
    # One image in a thousand is the 0.1 points that fp16 may lose, whatever binary fractions make of it.
    many, labels = np.tile(REFERENCE, (250, 1)), np.tile([0, 1, 0, 1], 250)
    one_off = many.copy()
    one_off[0] = [1.999, 2.0]
    assert compare(many, one_off, labels, Gate(9.0, 0.99, 0.1)).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_any_gate(value: float) -> None:
    logits = REFERENCE.copy()
    logits[2, 1] = value
    for pair, what in (((REFERENCE, logits), "logits"), ((logits, REFERENCE), "reference logits")):
        comparison = compare(*pair, LABELS, OPEN)
        assert f"{what} are not finite in 1 of 4 rows, expected none" in comparison.reasons
        assert comparison.max_error_over_std is None
        json.dumps(comparison.to_json(), allow_nan=False)


def test_constant_reference_is_measured_in_absolute_terms() -> None:
    constant = np.full((4, 2), 3.0, dtype=np.float32)
    assert compare(constant, constant, LABELS, GATES["fp32"]).passed
    comparison = compare(constant, constant + np.float32(0.5), LABELS, GATES["fp32"])
    assert comparison.max_error_over_std == 0.5
    assert not comparison.passed


def test_any_of_the_reference_s_equal_top_logits_agrees() -> None:
    reference = np.array([[1.0, 1.0, 0.0], [0.0, 5.0, 1.0]])
    nudged = reference + np.array([[0.0, 1e-6, 0.0], [0.0, 0.0, 0.0]])
    assert compare(reference, nudged, np.array([1, 1]), OPEN).top1_agreement == 1.0
    wrong = np.array([[0.0, 0.0, 2.0], [0.0, 5.0, 1.0]])
    assert compare(reference, wrong, np.array([1, 1]), OPEN).top1_agreement == 0.5


def test_a_row_decided_by_less_than_engines_differ_is_a_tie() -> None:
    """Two rows of the reference are all but equal; what they become changes neither agreement nor accuracy."""
    reference = np.array([[0, 1], [4, 0], [2, 2 - 1e-4], [0, 3]])
    std = reference.std()
    assert 1e-4 < TIE_OVER_STD * std < 1e-3
    labels = np.array([1, 0, 0, 1])
    flipped = reference.copy()
    flipped[2] = [2 - 1e-4, 2]
    comparison = compare(reference, flipped, labels, GATES["fp32"])
    assert comparison.passed
    assert (comparison.top1_agreement, comparison.metric_drop_points) == (1.0, 0.0)
    assert (comparison.reference_accuracy, comparison.accuracy) == (1.0, 0.75)  # as they are
    reference[2] = [2, 2 - 1e-3]
    comparison = compare(reference, flipped, labels, OPEN)
    assert (comparison.top1_agreement, comparison.metric_drop_points) == (0.75, 25.0)


def test_a_form_that_gives_every_input_the_same_is_refused_by_any_gate() -> None:
    said = "every input gets the same logits, and the reference tells inputs apart"
    same = np.tile([2.0, 1.0], (4, 1)) + 1e-6 * np.arange(4)[:, None]
    assert compare(REFERENCE, same, LABELS, OPEN).reasons == (said,)
    assert compare(REFERENCE, 0.1 * REFERENCE, LABELS, OPEN).passed
    # A constant reference is told by `verify_format`, and a single row says nothing.
    assert compare(same, same, LABELS, OPEN).passed
    assert compare(REFERENCE[:1], REFERENCE[:1], LABELS[:1], OPEN).passed


def test_classes_are_counted_by_label() -> None:
    logits = REFERENCE.copy()
    logits[0] = [-2, 2]
    # Predictions of the reference 0 1 0 1, of the form 1 1 0 1; labels 0 1 0 0.
    assert by_class(REFERENCE, logits, LABELS) == (ClassCount(0, 3, 2, 1), ClassCount(1, 1, 1, 1))


def test_worst_rows_come_worst_first_with_both_logits() -> None:
    logits = REFERENCE.copy()
    logits[1] = [-2, 1]
    logits[2] = [-1, 1]
    first, second = worst_rows(REFERENCE, logits, LABELS, np.arange(70, 74), 2)
    assert (first.row_id, first.label, first.error_over_std) == (72, 0, 1.5)  # 3 of a deviation of 2
    assert (first.reference_class, first.predicted_class) == (0, 1)
    assert (first.reference_logits, first.logits) == ((2.0, -2.0), (-1.0, 1.0))
    assert (second.row_id, second.error_over_std) == (71, 0.5)
    logits[3, 0] = np.nan
    broken = worst_rows(REFERENCE, logits, LABELS, np.arange(70, 74), 2)
    assert [(each.row_id, each.error_over_std) for each in broken] == [(73, None), (72, 1.5)]
    assert broken[0].logits == (None, 2.0)


def test_worst_takes_each_number_from_where_it_is_worst() -> None:
    logits = REFERENCE.copy()
    logits[1] = [-2.5, 2.5]
    small, flipped = compare(REFERENCE, logits, LABELS, OPEN), compare(REFERENCE, -REFERENCE, LABELS, OPEN)
    broken = compare(REFERENCE, np.where(REFERENCE > 0, np.nan, REFERENCE), LABELS, OPEN)
    both = worst([small, flipped])
    assert (both.max_error_over_std, both.top1_agreement, both.metric_drop_points) == (2.0, 0.0, 50.0)
    assert worst([broken, small]).max_error_over_std is None
    assert worst([small, broken]).reasons == broken.reasons


@pytest.mark.parametrize(
    ("reference", "logits", "labels", "said"),
    [
        (
            REFERENCE,
            REFERENCE[:3],
            LABELS,
            r"\(3, 2\) cannot be compared with reference logits of shape \(4, 2\)",
        ),
        (REFERENCE[:0], REFERENCE[:0], LABELS[:0], "N at least 1"),
        (REFERENCE, REFERENCE, LABELS[:3], r"labels have shape \(3,\); expected \(4,\)"),
    ],
)
def test_other_shapes_should_fail(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        compare(reference, logits, labels, OPEN)
