"""Smooth L1 distance from the teacher's logits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec


class SmoothL1Spec(TermSpec):
    """Squared below a difference of `threshold`, linear beyond, as the KL-vs-MSE code offers beside `mse`.

    reduction: the mean over the logits, as that code has it, or their sum.
    """

    kind = "smooth_l1"
    needs = frozenset({"logits"})

    threshold: float = Field(1.0, gt=0)
    reduction: Literal["sum", "mean"] = "mean"

    def build(self, heads: Heads) -> SmoothL1:
        return SmoothL1(heads, self)


class SmoothL1(Term):
    def __init__(self, heads: Heads, options: SmoothL1Spec) -> None:
        super().__init__()
        self.heads = heads
        self.options = options

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        compared = self.heads.comparable(student.logits, teacher.logits)
        return functional.logit_smooth_l1(*compared, threshold=self.options.threshold, reduction=self.options.reduction)
