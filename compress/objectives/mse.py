"""Squared distance from the teacher's logits."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec


class MSESpec(TermSpec):
    """Squared distance of logits: summed over them as the KL-vs-MSE paper prints it, or the mean as its code has it."""

    kind = "mse"
    needs = frozenset({"logits"})

    reduction: Literal["sum", "mean"] = "sum"

    def build(self, heads: Heads) -> MSE:
        return MSE(heads, self.reduction)


class MSE(Term):
    def __init__(self, heads: Heads, reduction: Literal["sum", "mean"]) -> None:
        super().__init__()
        self.heads = heads
        self.reduction: Literal["sum", "mean"] = reduction

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        return functional.logit_mse(*self.heads.comparable(student.logits, teacher.logits), self.reduction)
