"""Decoupled knowledge distillation: the true class and the others, each with a weight of its own."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from export.fold import fold_logits


class DKDSpec(TermSpec):
    """tau² (tckd · TCKD + nckd · NCKD) of class logits (folded where there are subclasses), Zhao et al. 2022.

    The published recipes add the cross-entropy, which is `ce` beside it, and let the term's weight grow over the first
    20 epochs, which is not done here: with a large nckd use warm-up epochs or a smaller weight.
    """

    kind = "dkd"
    needs = frozenset({"logits"})

    tau: float = Field(4.0, gt=0)
    tckd: float = Field(1.0, ge=0)
    nckd: float = Field(8.0, ge=0)

    def problem(self, heads: Heads) -> str | None:
        if heads.classes == 1:
            return "there is one class, so there are no other classes to compare"
        return None  # Subclasses of the two heads need not agree: both are folded.

    def build(self, heads: Heads) -> DKD:
        return DKD(heads, self)


class DKD(Term):
    def __init__(self, heads: Heads, options: DKDSpec) -> None:
        super().__init__()
        self.heads = heads
        self.options = options

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        options = self.options
        return functional.decoupled_kd(
            fold_logits(student.logits, self.heads.subclasses),
            fold_logits(teacher.logits, self.heads.teacher_subclasses or 1),
            labels,
            tau=options.tau,
            tckd=options.tckd,
            nckd=options.nckd,
        )
