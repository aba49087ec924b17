"""Cross-entropy with the labels."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from export.fold import fold_logits


class CrossEntropySpec(TermSpec):
    """Cross-entropy of the class logits (folded where there are subclasses) with the labels."""

    kind = "ce"

    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def build(self, heads: Heads) -> CrossEntropy:
        return CrossEntropy(heads.subclasses, self.label_smoothing)


class CrossEntropy(Term):
    def __init__(self, subclasses: int, smoothing: float) -> None:
        super().__init__()
        self.subclasses = subclasses
        self.smoothing = smoothing

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        return functional.cross_entropy(fold_logits(student.logits, self.subclasses), labels, self.smoothing)
