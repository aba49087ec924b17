"""Relational distillation: distances and angles between the embeddings of a batch."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec


class RelationalSpec(TermSpec):
    """distance · L_D + angle · L_A of embeddings (Park et al. 2019), 25 and 50 as in its image classification.

    Embeddings are taken as they are, as in RepDistiller; the authors' classification code divides them by their norm.
    The angles take N² · (N + D) numbers of memory on each side.
    """

    kind = "rkd"
    needs = frozenset({"embedding"})

    distance: float = Field(25.0, ge=0)
    angle: float = Field(50.0, ge=0)

    def problem(self, heads: Heads) -> str | None:
        if self.distance == self.angle == 0:
            return "distance and angle are both 0, so nothing is left of it"
        return None  # Subclasses of the two heads need not agree: no logits are compared.

    def build(self, heads: Heads) -> Relational:
        return Relational(self.distance, self.angle)


class Relational(Term):
    def __init__(self, distance: float, angle: float) -> None:
        super().__init__()
        self.distance = distance
        self.angle = angle

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        return functional.relational(student.embedding, teacher.embedding, distance=self.distance, angle=self.angle)
