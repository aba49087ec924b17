"""Penultimate-layer distillation: the student's embedding against the teacher's."""

from __future__ import annotations

from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.functional.precision import at_least_float32
from compress.objectives.layers import shapes_of_both


class EmbeddingSpec(TermSpec):
    """Distance of embeddings: squared (Müller et al. 2020, equation 5) or the norm itself (Loo et al., equation 2).

    Where the widths differ, a linear map without bias that trains with the student brings the student's embedding to
    the teacher's width.
    """

    kind = "embedding"
    needs = frozenset({"embedding"})

    variant: functional.EmbeddingVariant = "squared"

    def problem(self, heads: Heads) -> str | None:
        return None  # Subclasses of the two heads need not agree: no logits are compared.

    def build(self, heads: Heads) -> Embedding:
        return Embedding(heads, self.variant)


class Embedding(Term):
    def __init__(self, heads: Heads, variant: functional.EmbeddingVariant) -> None:
        super().__init__()
        student, teacher = (shapes.embedding for shapes in shapes_of_both(heads))
        self.variant = variant
        self.connector = nn.Linear(student, teacher, bias=False) if student != teacher else nn.Identity()

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        connected = self.connector(at_least_float32(student.embedding))  # (N, D of the teacher)
        return functional.embedding_distance(connected, teacher.embedding, self.variant)
