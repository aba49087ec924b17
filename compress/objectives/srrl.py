"""Softmax regression representation learning: the student's features, seen by the teacher's own classifier."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from compress.models.base import Output, Shapes
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, Term, TermSpec
from compress.objectives.connectors import Connector
from compress.objectives.kl import Temperature
from compress.objectives.layers import shapes_of_both


class SRRLSpec(TermSpec):
    """Feature matching and softmax regression, Yang et al. 2021 (SRRL), each with a weight, without the label loss.

    h_t is the teacher's embedding. h_s is the student's last map through a 1×1 convolution, batch norm and ReLU (also
    where the widths agree), averaged over positions; where the student's embedding is not the average of its last map,
    as in an MLP, the connector is Linear, batch norm and ReLU on the embedding. The label loss reads the student's own
    head: write `ce` beside it. The paper's h sums over positions; here it is their average, as in the published code,
    because that is what a classifier reads. With a subclass teacher, all S×C logits of its classifier take part.

    feature_matching, softmax_regression: the factors of the two (the paper's alpha and beta). sr: how the logits are
    compared (`functional.srrl_softmax_regression`); the paper's choice is l2. `tau` is read by ce and kl. reduction:
    squared norms as in the paper, or means over the width as in its code.
    """

    kind = "srrl"
    needs = frozenset({"embedding"})

    feature_matching: float = Field(1.0, ge=0)
    softmax_regression: float = Field(1.0, ge=0)
    sr: functional.SoftmaxRegression = "l2"
    tau: Temperature = 1.0
    reduction: functional.SRRLReduction = "paper"

    def problem(self, heads: Heads) -> str | None:
        if self.feature_matching == self.softmax_regression == 0:
            return "feature_matching and softmax_regression are both 0, so nothing is left of it"
        if self.sr == "ce" and self.tau == "inf":
            return "sr: ce has no gradient at an infinite tau; sr: kl has one, because its tau² has a limit"
        return None  # Subclasses of the two heads need not agree: only the teacher's classifier is read.

    def build(self, heads: Heads) -> SRRL:
        return SRRL(heads, self)


class SRRL(Term):
    """`weight` (C*S, D) and `bias` (C*S,) are the teacher's classifier, copied in `prepare`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, heads: Heads, options: SRRLSpec) -> None:
        super().__init__()
        student, teacher = shapes_of_both(heads)
        self.options = options
        self.tau = float(options.tau)
        self.subclasses = heads.teacher_subclasses or 1
        self.reads_map = _averages_its_last_map(student)
        self.connector = Connector(student.embedding, teacher.embedding, bias=False)
        # NaN, so that a term which was not prepared cannot pass for one whose loss is small.
        logits = heads.classes * self.subclasses
        self.register_buffer("weight", torch.full((logits, teacher.embedding), math.nan))
        self.register_buffer("bias", torch.full((logits,), math.nan))

    def prepare(self, preparation: Preparation) -> None:
        classifier = preparation.teacher.classifier
        self.weight.copy_(classifier.weight.detach())
        if classifier.bias is None:
            self.bias.zero_()
        else:
            self.bias.copy_(classifier.bias.detach())

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        matching, regression = self.parts(student, teacher, labels)
        return self.options.feature_matching * matching + self.options.softmax_regression * regression

    def parts(self, student: Output, teacher: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature matching and the softmax regression loss, unweighted."""
        h = self.connector(student.features[-1] if self.reads_map else student.embedding)
        h_s = h.mean((2, 3)) if self.reads_map else h  # (N, D of the teacher)
        h_t = teacher.embedding
        options = self.options
        return functional.srrl_feature_matching(h_s, h_t, options.reduction), functional.srrl_softmax_regression(
            h_s,
            h_t,
            self.weight,
            self.bias,
            options.sr,
            reduction=options.reduction,
            tau=self.tau,
            labels=labels,
            subclasses=self.subclasses,
        )


def _averages_its_last_map(shapes: Shapes) -> bool:
    """Whether the embedding is the last map's average over positions, told by its width."""
    return bool(shapes.features) and len(shapes.features[-1]) == 3 and shapes.features[-1][0] == shapes.embedding
