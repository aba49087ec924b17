"""Probabilistic knowledge transfer: which examples of a batch are neighbours."""

from __future__ import annotations

from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec


class ProbabilisticTransferSpec(TermSpec):
    """Divergence of the batch's cosine similarities, read as probabilities, of embeddings (Passalis & Tefas 2018).

    It is a mean over N² small numbers, so it wants a large weight; RepDistiller takes 30,000.
    """

    kind = "pkt"
    needs = frozenset({"embedding"})

    def problem(self, heads: Heads) -> str | None:
        return None  # Subclasses of the two heads need not agree: no logits are compared.

    def build(self, heads: Heads) -> ProbabilisticTransfer:
        return ProbabilisticTransfer()


class ProbabilisticTransfer(Term):
    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        return functional.probabilistic_transfer(student.embedding, teacher.embedding)
