"""Kullback-Leibler divergence from the teacher's softened probabilities."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec


def _named_infinity(value: Any) -> Any:
    return "inf" if isinstance(value, float) and value == math.inf else value


# JSON has no infinity, so a resolved recipe says "inf"; YAML may say `inf` or `.inf`.
Temperature = Annotated[Annotated[float, Field(gt=0)] | Literal["inf"], BeforeValidator(_named_infinity)]


class KLSpec(TermSpec):
    """KL(teacher ‖ student) at temperature tau, of all S×C logits where both have them, of class logits otherwise."""

    kind = "kl"
    needs = frozenset({"logits"})

    tau: Temperature = 4.0
    rescale: functional.Rescale = "tau2"

    def build(self, heads: Heads) -> KL:
        return KL(heads, float(self.tau), self.rescale)


class KL(Term):
    def __init__(self, heads: Heads, tau: float, rescale: functional.Rescale) -> None:
        super().__init__()
        self.heads = heads
        self.tau = tau
        self.rescale = rescale

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        return functional.kl_divergence(
            *self.heads.comparable(student.logits, teacher.logits), tau=self.tau, rescale=self.rescale
        )
