"""LELP: subclasses from linear projections of the teacher's embeddings, no retraining of the teacher."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from compress.embedding_sums import EmbeddingSums
from compress.lelp import Project, Sigma, fit, random_rotations
from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, Term, TermSpec
from compress.objectives.functional.logits import FLOAT64_TAU
from compress.objectives.layers import shapes_of_both
from export.fold import fold_logits


class LELPSpec(TermSpec):
    """KL of the student's C·S subclasses from the teacher's classes, split along its embeddings (Loo et al. 2024).

    S is the stage's `subclasses`. The directions are fitted once, before training, on the embeddings of all training
    rows by class label. A teacher that has subclasses itself is folded to classes.

    beta: temperature within a class; tau: of the classes, and of the student. project: what becomes of the embeddings,
    for the ablation of appendix C (`compress.lelp.fit`). variant: the scale of the directions, `raw` as printed or
    `centred` as the text describes it.
    """

    kind = "lelp"
    needs = frozenset({"logits", "embedding"})
    reads_classifier = True

    tau: float = Field(4.0, gt=0, le=FLOAT64_TAU)
    beta: float = Field(1.0, gt=0)
    project: Project = "lelp"
    variant: Sigma = "raw"

    def problem(self, heads: Heads) -> str | None:
        if heads.teacher is None:
            return None
        width, outputs = heads.teacher.embedding, heads.classes * (heads.teacher_subclasses or 1)
        free = width if self.project == "identity" else width - outputs
        if heads.subclasses <= free:
            return None
        outside = "" if self.project == "identity" else f", {max(free, 0)} of them outside its classifier's {outputs}"
        return (
            f"{heads.subclasses} subclasses per class need as many directions, and the teacher's embedding has "
            f"{width}{outside}"
        )

    def build(self, heads: Heads) -> LELP:
        return LELP(heads, self)


class LELP(Term):
    """means: (C, D), projections: (C, S, D), float32, from the fit; NaN before, so that it cannot be left out."""

    means: Tensor
    projections: Tensor

    def __init__(self, heads: Heads, options: LELPSpec) -> None:
        super().__init__()
        _, teacher = shapes_of_both(heads)
        self.heads = heads
        self.options = options
        self.register_buffer("means", torch.full((heads.classes, teacher.embedding), math.nan))
        self.register_buffer("projections", torch.full((heads.classes, heads.subclasses, teacher.embedding), math.nan))

    def prepare(self, preparation: Preparation) -> None:
        classes, subclasses = self.heads.classes, self.heads.subclasses
        sums = EmbeddingSums(classes, self.means.shape[1], device=str(preparation.labels.device))
        for rows, embeddings in preparation.embeddings():
            sums.add(embeddings, preparation.labels[rows])
        fitted = fit(
            sums,
            preparation.teacher.classifier.weight,
            subclasses,
            rotations=random_rotations(classes, subclasses, preparation.seed),
            project=self.options.project,
            sigma=self.options.variant,
            seed=preparation.seed,
        )
        self.means.copy_(fitted.means)
        self.projections.copy_(fitted.projections)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        return functional.lelp(
            student.logits,
            fold_logits(teacher.logits, self.heads.teacher_subclasses or 1),
            teacher.embedding,
            self.means,
            self.projections,
            tau=self.options.tau,
            beta=self.options.beta,
        )
