"""Similarity-preserving distillation: which examples of a batch activate a map alike."""

from __future__ import annotations

from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.layers import Layers, layer_problem, resolve


class SimilarityPreservingSpec(TermSpec):
    """Distance of the batch's similarity matrices, summed over the pairs of `layers` (Tung & Mori 2019).

    Maps are flattened as they are: the compared matrices are N×N whatever a map's size. `rows: l1` is torchdistill's.
    """

    kind = "sp"
    needs = frozenset({"features"})

    layers: Layers = "last"
    rows: functional.SimilarityRows = "l2"

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads)

    def build(self, heads: Heads) -> SimilarityPreserving:
        return SimilarityPreserving(heads, self.layers, self.rows)


class SimilarityPreserving(Term):
    def __init__(self, heads: Heads, layers: Layers, rows: functional.SimilarityRows) -> None:
        super().__init__()
        self.pairs = resolve(layers, heads)
        self.rows = rows

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        losses = [
            functional.similarity_preserving(student.features[mine], teacher.features[yours], self.rows)
            for mine, yours in self.pairs
        ]
        return sum(losses[1:], start=losses[0])
