"""The measures of a stage together: which there are, and why the others are missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress.analysis.measures import cluster_measures, logit_histograms, prediction_measures, subclass_measures
from compress.analysis.table import METRICS, lines

Make = Callable[..., Any]
MEMBERS = ((0, 1), (2, 3))


def drawn(seed: int, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, width))


def all_measures(student: Any, teacher: Any, labels: Any, hidden: Any, members: Any) -> tuple[dict, dict]:
    found = (
        prediction_measures(student, teacher, labels),
        cluster_measures(student, teacher, labels=labels, classes=2, hidden=hidden, hidden_labels=4),
        subclass_measures(student, hidden, members),
    )
    values = {name: value for measures in found for name, value in measures.values.items()}
    return values, {name: reason for measures in found for name, reason in measures.missing.items()}


def test_the_table_names_every_measure_and_no_other(outputs: Make) -> None:
    student = outputs(drawn(0, 40, 4), subclasses=2)
    hidden = np.arange(40) % 4
    values, missing = all_measures(student, student, hidden // 2, hidden, MEMBERS)
    assert set(values) == {metric.name for metrics in METRICS.values() for metric in metrics}
    assert missing == {}
    assert all(isinstance(value, float) and math.isfinite(value) for value in values.values())


def test_a_student_that_equals_its_teacher(outputs: Make) -> None:
    student = outputs(drawn(0, 40, 4), subclasses=2)
    hidden = np.arange(40) % 4
    values, _ = all_measures(student, student, hidden // 2, hidden, MEMBERS)
    for name in ("teacher_kl", "teacher_logit_distance", "embedding_distance", "normalised_embedding_distance"):
        assert values[name] == pytest.approx(0, abs=1e-12)
    for name in ("teacher_agreement", "nmi_teacher_classes", "nmi_teacher_hidden"):
        assert values[name] == pytest.approx(1)


def test_without_teacher_view_and_subclasses_the_rest_is_missing_with_its_reason(outputs: Make) -> None:
    student = outputs(drawn(0, 1, 2))
    values, missing = all_measures(student, None, np.array([0]), None, None)
    assert set(missing.values()) == {"no teacher", "the recipe does not regroup classes", "no subclasses"}
    assert {name for name, value in values.items() if value is None} == set(missing)
    assert {name for name, value in values.items() if value is not None} == {
        "accuracy", "cross_entropy", "expected_calibration_error", "maximum_calibration_error", "brier_score",
        "nmi_classes",
    }  # fmt: skip


def test_embeddings_of_other_widths_have_no_distance(outputs: Make) -> None:
    student, teacher = outputs(drawn(0, 9, 2), drawn(0, 9, 3)), outputs(drawn(1, 9, 2), drawn(1, 9, 5))
    found = prediction_measures(student, teacher, np.zeros(9, int))
    assert found.values["embedding_distance"] is found.values["normalised_embedding_distance"] is None
    assert found.missing["embedding_distance"] == "the teacher's embedding is 5 wide, the student's 3"


def test_subclasses_that_find_the_hidden_labels_in_another_order(outputs: Make) -> None:
    hidden = np.array([0, 1, 2, 3] * 5)
    found = subclass_measures(outputs(50 * np.eye(4)[[1, 0, 2, 3] * 5], subclasses=2), hidden, MEMBERS).values
    assert found["permutation_accuracy"] == found["permutation_accuracy_within_class"] == 1.0
    assert found["effective_label_bits"] == pytest.approx(1.0)
    assert found["utilisation_entropy"] == pytest.approx(2.0)
    assert found["prediction_entropy"] == pytest.approx(0.0, abs=1e-9)


def test_classes_that_hide_another_number_of_labels_than_they_have_subclasses(outputs: Make) -> None:
    hidden = np.array([0, 1, 2, 3, 3])
    members = ((0, 1, 2), (3,))
    found = subclass_measures(outputs(np.eye(4)[[0, 1, 1, 2, 3]], subclasses=2), hidden, members)
    # Of labels 0 to 2 two are matched, one row each; of label 3 one subclass, with one of two rows.
    assert found.values["permutation_accuracy"] == pytest.approx(3 / 5)
    assert found.values["effective_label_bits"] is None
    assert found.missing == {
        "effective_label_bits": "classes hide 1 and 3 labels but have 2 subclasses: the formula takes equal numbers"
    }


def test_histograms_share_bins_and_count_every_row(outputs: Make) -> None:
    student, teacher = outputs(drawn(0, 50, 4), subclasses=2), outputs(drawn(1, 50, 4) + 5, subclasses=2)
    found = logit_histograms(student, teacher)
    assert found["logits"] == "all"
    edges = np.array(found["sum"]["edges"])
    for role, model in (("student", student), ("teacher", teacher)):
        sums = model.logits.sum(1)
        assert found["sum"]["counts"][role] == np.histogram(sums, edges)[0].tolist()
        assert sum(found["sum"]["counts"][role]) == 50
        assert found["sum"]["means"][role] == pytest.approx(sums.mean())
    distance = np.sqrt(((student.logits - teacher.logits) ** 2).sum(1))
    assert found["distance"]["means"]["student"] == pytest.approx(distance.mean())


def test_histograms_of_other_heads_of_one_row_and_without_a_teacher(outputs: Make) -> None:
    student, teacher = outputs([[1.0, 2.0]]), outputs([[0.0, 0, 0, 0]], subclasses=2)
    found = logit_histograms(student, teacher)
    assert found["logits"] == "class"
    assert found["sum"]["means"]["teacher"] == pytest.approx(2 * math.log(2))
    alone = logit_histograms(student, None)
    assert (alone["distance"], alone["sum"]["means"], sum(alone["sum"]["counts"]["student"])) == (
        None,
        {"student": 3.0},
        1,
    )


def record(accuracy: float, kl: float | None, **transfer: Any) -> dict[str, Any]:
    names = [metric.name for metrics in METRICS.values() for metric in metrics]
    values: dict[str, float | None] = {**dict.fromkeys(names), "accuracy": accuracy, "teacher_kl": kl}
    missing = {name: "no teacher" for name, value in values.items() if value is None}
    return {"test": {"values": values, "missing": missing}, "transfer": transfer}


def test_the_table_is_mean_and_sample_deviation_over_seeds() -> None:
    records = {
        "teacher": [record(0.98, None), record(0.99, None)],
        "student": [record(0.90, 0.25), record(0.94, 0.35)],
    }
    accuracy, kl = lines(records)  # lines without any figure are left out
    assert (accuracy.group, accuracy.metric.name) == ("Predictions", "accuracy")
    assert accuracy.cells() == ["98.50 ± 0.71", "92.00 ± 2.83"]
    assert kl.cells() == ["", "0.300 ± 0.071"]
    assert kl.figures[0].reason == "no teacher"
    assert lines({"teacher": records["teacher"][:1]})[0].cells() == ["98.00"]


def test_a_probe_of_every_data_set_is_a_line() -> None:
    probe = {"data": "cifar100", "accuracy": 0.5, "test_rows": 100, "train_rows": 500}
    *_, line = lines({"a": [record(0.9, None, key=probe)], "b": [record(0.9, None)]})
    assert (line.group, line.metric.label) == ("Transfer", "linear probe, cifar100")
    assert line.cells() == ["50.00", ""]
