"""Hinton's mix: divergence from the teacher and cross-entropy with the labels, in one term."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.kl import Temperature
from export.fold import fold_logits


class KDSpec(TermSpec):
    """kl_weight · tau² KL(teacher ‖ student) + ce_weight · cross-entropy: Hinton et al. 2015, in one term.

    Sources put one alpha on KL (Kim et al. 2021, equation 2), on the cross-entropy, or give each a factor of its own;
    here both factors have names. KL compares S×C logits where both sides have them; the labels are those of the folded
    classes. With `kl` and `ce` as two terms the report shows them apart.
    """

    kind = "kd"
    needs = frozenset({"logits"})

    tau: Temperature = 4.0
    kl_weight: float = Field(0.9, ge=0)
    ce_weight: float = Field(0.1, ge=0)
    rescale: functional.Rescale = "tau2"

    def build(self, heads: Heads) -> KD:
        return KD(heads, self)


class KD(Term):
    def __init__(self, heads: Heads, options: KDSpec) -> None:
        super().__init__()
        self.heads = heads
        self.tau = float(options.tau)
        self.rescale: functional.Rescale = options.rescale
        self.kl_weight = options.kl_weight
        self.ce_weight = options.ce_weight

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        compared = self.heads.comparable(student.logits, teacher.logits)
        kl = functional.kl_divergence(*compared, tau=self.tau, rescale=self.rescale)
        ce = functional.cross_entropy(fold_logits(student.logits, self.heads.subclasses), labels)
        return self.kl_weight * kl + self.ce_weight * ce
