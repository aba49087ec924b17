"""The auxiliary loss of a subclass teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec


class SubclassAuxiliarySpec(TermSpec):
    """Keeps a subclass head from using one subclass only: Müller et al. 2020, equations 6 and 7."""

    kind = "subclass_auxiliary"

    tau: float = Field(1.0, gt=0)
    form: Literal["unitnorm", "literal"] = "unitnorm"

    def problem(self, heads: Heads) -> str | None:
        if heads.subclasses == 1:
            return "this stage has no subclasses; set `subclasses:` to 2 or more, or leave the term out"
        return None

    def build(self, heads: Heads) -> SubclassAuxiliary:
        return SubclassAuxiliary(self.tau, self.form)


class SubclassAuxiliary(Term):
    def __init__(self, tau: float, form: Literal["unitnorm", "literal"]) -> None:
        super().__init__()
        self.tau = tau
        self.form: Literal["unitnorm", "literal"] = form

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        return functional.subclass_auxiliary(student.logits, self.tau, self.form)
