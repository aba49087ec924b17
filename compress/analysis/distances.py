"""How far a student is from its teacher: probabilities, logits, embeddings. All in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.analysis.outputs import StageOutputs

Floats = NDArray[np.float64]


def cross_entropy(outputs: StageOutputs, labels: NDArray[np.int64]) -> float:
    """Return the mean over rows of -log p(label), in nats, of class probabilities at tau 1."""
    return float(-outputs.class_log_probabilities[np.arange(len(labels)), labels].mean())


def kl_divergence(teacher: StageOutputs, student: StageOutputs) -> float:
    """Return KL(teacher || student) of class probabilities at tau 1, in nats, mean over rows."""
    log_t, log_s = teacher.class_log_probabilities, student.class_log_probabilities
    return float((np.exp(log_t) * (log_t - log_s)).sum(1).mean())


def agreement(teacher: StageOutputs, student: StageOutputs) -> float:
    """Return the share of rows on which both predict the same class."""
    # On logits, as evaluate.py does: where both probabilities round to 1, only they still tell the larger.
    return float((teacher.class_logits.argmax(1) == student.class_logits.argmax(1)).mean())


def comparable_logits(teacher: StageOutputs, student: StageOutputs) -> tuple[Floats, Floats]:
    """Return the logits of both that stand for the same things: all C*S where S is equal, class logits otherwise."""
    if teacher.subclasses == student.subclasses:
        return teacher.logits, student.logits
    return teacher.class_logits, student.class_logits


def logit_distances(teacher: StageOutputs, student: StageOutputs) -> Floats:
    """Return ||z_t - z_s||_2 of every row (N,) (Kim et al. 2021, "Comparing Kullback-Leibler divergence and MSE")."""
    ours, theirs = comparable_logits(student, teacher)
    distances: Floats = np.linalg.norm(ours - theirs, axis=1)
    return distances


def embedding_distance(teacher: StageOutputs, student: StageOutputs, *, normalised: bool = False) -> float:
    """Return the mean over rows of ||h_t - h_s||_2 of embeddings (N, D), each divided by its own norm on request.

    An embedding of zeros stays zero when it is normalised. Raises ValueError where the widths differ.
    """
    theirs, ours = teacher.embedding, student.embedding
    if theirs.shape != ours.shape:
        raise ValueError(f"the teacher's embedding is {theirs.shape}, the student's {ours.shape}; expected equal")
    if normalised:
        theirs, ours = _unit_rows(theirs), _unit_rows(ours)
    return float(np.linalg.norm(theirs - ours, axis=1).mean())


def _unit_rows(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(norms > 0, norms, 1)
    return unit
