"""Cross-entropy with the teacher's softened probabilities as targets."""

from __future__ import annotations

from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.kl import Temperature


class SoftCrossEntropySpec(TermSpec):
    """Cross-entropy with the teacher's probabilities at temperature tau (Müller et al. 2020, equation 3).

    `kl` with the same options has the same gradient and is smaller by the teacher's entropy, so that it is 0 where the
    student agrees. A kind of its own, because its values are not comparable with those of `kl` in a log, and because it
    has none at an infinite tau: the entropy times tau² grows without limit.
    """

    kind = "soft_ce"
    needs = frozenset({"logits"})

    tau: Temperature = 4.0
    rescale: functional.Rescale = "tau2"

    def problem(self, heads: Heads) -> str | None:
        if float(self.tau) > functional.FLOAT64_TAU:
            return (
                f"tau is {self.tau}, and the cross-entropy times tau² has no limit; write kl, which has the same "
                f"gradient and a limit, or a tau of at most {functional.FLOAT64_TAU:g}"
            )
        return super().problem(heads)

    def build(self, heads: Heads) -> SoftCrossEntropy:
        return SoftCrossEntropy(heads, float(self.tau), self.rescale)


class SoftCrossEntropy(Term):
    def __init__(self, heads: Heads, tau: float, rescale: functional.Rescale) -> None:
        super().__init__()
        self.heads = heads
        self.tau = tau
        self.rescale: functional.Rescale = rescale

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        compared = self.heads.comparable(student.logits, teacher.logits)
        return functional.soft_cross_entropy(*compared, tau=self.tau, rescale=self.rescale)
