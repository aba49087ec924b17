"""Distillation from subclasses alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec, subclass_mismatch


class IntraSubclassSpec(TermSpec):
    """One softmax per class group, no labels and no class probabilities: Müller et al. 2020, section 4.4."""

    kind = "intra_subclass"
    needs = frozenset({"logits"})

    tau: float = Field(4.0, gt=0)
    rescale: Literal["none", "tau2"] = "none"

    def problem(self, heads: Heads) -> str | None:
        if not heads.compare_subclasses:
            return "both this stage and its teacher need `subclasses:` of 2 or more"
        return subclass_mismatch(heads)

    def build(self, heads: Heads) -> IntraSubclass:
        return IntraSubclass(heads.subclasses, self.tau, self.rescale)


class IntraSubclass(Term):
    def __init__(self, subclasses: int, tau: float, rescale: functional.Rescale) -> None:
        super().__init__()
        self.subclasses = subclasses
        self.tau = tau
        self.rescale = rescale

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        return functional.intra_subclass(student.logits, teacher.logits, self.subclasses, self.tau, self.rescale)
