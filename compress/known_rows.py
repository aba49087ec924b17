"""Which training rows a stage sees, and with which labels: the papers' semi-supervised settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from compress.datasets import Split
from compress.datasets.base import Int64Array
from compress.datasets.holdout import stratified_holdout
from compress.recipe import LabelsSpec
from runtime.errors import RecipeError


def known_rows(split: Split, labels: LabelsSpec, seed: int, classes: Callable[[Split], Int64Array]) -> Split:
    """Return the training rows as a stage knows them.

    `labels.rows` of them keep their label, each class with its share, drawn by `seed` from `split` alone, so that a
    teacher and a student of the same number know the same labels. The rest is left out, or labelled by `classes`, which
    gives the teacher's prediction (N,) of a split. Raises RecipeError where there are fewer rows.
    """
    if labels.rows > len(split):
        raise RecipeError(
            f"labels.rows is {labels.rows:,}, and there are {len(split):,} training rows",
            "Write fewer, or leave `labels` out to use all of them.",
        )
    unlabelled, labelled = stratified_holdout(split.labels, labels.rows / len(split), seed)
    if labels.rest == "leave_out":
        return split.take(labelled)
    known = split.labels.copy()
    if len(unlabelled):
        known[unlabelled] = classes(split.take(unlabelled)).astype(np.int64)
    return replace(split, labels=known)
