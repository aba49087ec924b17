"""The measures of one stage as a flat mapping of numbers, each None where it has no meaning, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.analysis import calibration, distances
from compress.analysis.clusters import mutual_information
from compress.analysis.outputs import StageOutputs
from compress.subclass_metrics import (
    best_matching,
    effective_label_bits,
    prediction_entropy_bits,
    utilisation_entropy_bits,
)

Labels = NDArray[np.int64]
HISTOGRAM_BINS = 40
NO_EMBEDDING = "the teacher gives no embedding (several have none in common)"


@dataclass
class Measures:
    """Numbers by name. `missing` says of each None why it has no meaning here."""

    values: dict[str, float | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def absent(self, names: Sequence[str], reason: str) -> None:
        self.values.update(dict.fromkeys(names))
        self.missing.update(dict.fromkeys(names, reason))

    def to_json(self) -> dict[str, Any]:
        return {"values": self.values, "missing": self.missing}


def prediction_measures(student: StageOutputs, teacher: StageOutputs | None, labels: Labels) -> Measures:
    """Return what class probabilities, logits and embeddings tell, beside the teacher's; labels (N,)."""
    found = Measures()
    probabilities = student.class_probabilities
    bins = calibration.reliability(probabilities, labels)
    found.values = {
        "accuracy": float((student.class_logits.argmax(1) == labels).mean()),
        "cross_entropy": distances.cross_entropy(student, labels),
        "expected_calibration_error": bins.expected_error,
        "maximum_calibration_error": bins.maximum_error,
        "brier_score": calibration.brier_score(probabilities, labels),
    }
    _measure_teacher(found, student, teacher)
    return found


def _measure_teacher(found: Measures, student: StageOutputs, teacher: StageOutputs | None) -> None:
    of_embedding = ("embedding_distance", "normalised_embedding_distance")
    if teacher is None:
        found.absent(("teacher_kl", "teacher_agreement", "teacher_logit_distance", *of_embedding), "no teacher")
        return
    found.values["teacher_kl"] = distances.kl_divergence(teacher, student)
    found.values["teacher_agreement"] = distances.agreement(teacher, student)
    found.values["teacher_logit_distance"] = float(distances.logit_distances(teacher, student).mean())
    if not teacher.embedding.shape[1]:
        found.absent(of_embedding, NO_EMBEDDING)
        return
    widths = teacher.embedding.shape[1], student.embedding.shape[1]
    if widths[0] != widths[1]:
        found.absent(of_embedding, f"the teacher's embedding is {widths[0]} wide, the student's {widths[1]}")
        return
    found.values["embedding_distance"] = distances.embedding_distance(teacher, student)
    found.values["normalised_embedding_distance"] = distances.embedding_distance(teacher, student, normalised=True)


def cluster_measures(
    student: StageOutputs, teacher: StageOutputs | None, *, labels: Labels, classes: int, hidden: Labels | None,
    hidden_labels: int,
) -> Measures:  # fmt: skip
    """Return the normalised mutual information of k-means clusters with labels (N,), and with the teacher's clusters.

    k is the number of classes, and again the number of hidden labels where the recipe regroups them.
    """
    found = Measures()
    rows = student.clustered_rows
    for suffix, true, count in (("classes", labels, classes), ("hidden", hidden, hidden_labels)):
        names = (f"nmi_{suffix}", f"nmi_teacher_{suffix}")
        if true is None:
            found.absent(names, "the recipe does not regroup classes")
            continue
        ours = student.clusters(count)
        found.values[names[0]] = mutual_information(true[rows], ours)
        if teacher is None or not teacher.embedding.shape[1]:
            found.absent(names[1:], "no teacher" if teacher is None else NO_EMBEDDING)
            continue
        found.values[names[1]] = mutual_information(teacher.clusters(count), ours)
    return found


def subclass_measures(
    student: StageOutputs, hidden: Labels | None, members: Sequence[Sequence[int]] | None
) -> Measures:
    """Return how the subclasses are used and what they tell of hidden labels (N,).

    members: the hidden labels of each class, None where there are none. Effective label bits are of the accuracy under
    the best permutation within the classes, and only where every class hides as many labels as it has subclasses.
    """
    found = Measures()
    matched = ("permutation_accuracy", "permutation_accuracy_within_class", "effective_label_bits")
    entropies = ("utilisation_entropy", "prediction_entropy")
    if student.subclasses == 1:
        found.absent((*matched, *entropies), "no subclasses")
        return found
    logits = torch.from_numpy(student.logits)
    found.values["utilisation_entropy"] = utilisation_entropy_bits(logits)
    found.values["prediction_entropy"] = prediction_entropy_bits(logits)
    if hidden is None or members is None:
        found.absent(matched, "no hidden labels: the recipe does not regroup classes")
        return found
    best = best_matching(student.logits.argmax(1), hidden, members=members, subclasses=student.subclasses)
    found.values["permutation_accuracy"] = best.accuracy
    found.values["permutation_accuracy_within_class"] = best.within_class
    sizes = {len(own) for own in members}
    if sizes == {student.subclasses}:
        bits = effective_label_bits(best.within_class, student.subclasses)
        found.values["effective_label_bits"] = float(bits)
    else:
        hide = " and ".join(map(str, sorted(sizes)))
        reason = f"classes hide {hide} labels but have {student.subclasses} subclasses: the formula takes equal numbers"
        found.absent(matched[2:], reason)
    return found


def logit_histograms(student: StageOutputs, teacher: StageOutputs | None) -> dict[str, Any]:
    """Return counts of the logits' sum of a row, and of ||z_t - z_s||_2, in bins that both models share.

    Both tell whether a student follows the teacher's logits or only their differences (Kim et al. 2021, section 3).
    """
    if teacher is None:
        return {"logits": "own", "sum": _histogram(student=student.logits.sum(1)), "distance": None}
    theirs, ours = distances.comparable_logits(teacher, student)
    return {
        "logits": "all" if teacher.subclasses == student.subclasses else "class",
        "sum": _histogram(student=ours.sum(1), teacher=theirs.sum(1)),
        "distance": _histogram(student=distances.logit_distances(teacher, student)),
    }


def _histogram(**values: NDArray[np.float64]) -> dict[str, Any]:
    edges = np.histogram_bin_edges(np.concatenate([*values.values()]), HISTOGRAM_BINS)
    counts = {name: np.histogram(rows, edges)[0].tolist() for name, rows in values.items()}
    means = {name: float(rows.mean()) for name, rows in values.items()}
    return {"edges": edges.tolist(), "counts": counts, "means": means}
