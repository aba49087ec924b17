"""Softmax regression representation learning: the student's features, seen by the teacher's own last layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from compress.models.base import Output, Shapes
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, TeacherOutput, Term, TermSpec
from compress.objectives.connectors import Connector
from compress.objectives.kl import Temperature
from compress.objectives.layers import shapes_of_both, unknown_map

# The paper's positions are the groups of a residual network whose conv1 is the stem: conv2 gives the first stage's map.
PAPER_POSITIONS = {"conv2": "stage1", "conv3": "stage2", "conv4": "stage3"}


class SRRLSpec(TermSpec):
    """Feature matching and softmax regression, Yang et al. 2021 (SRRL), each with a weight, without the label loss.

    At the `last` position h_t is the teacher's embedding. h_s is the student's last map through a 1×1 convolution,
    batch norm and ReLU (also where the widths agree), averaged over positions; where the student's embedding is not the
    average of its last map, as in an MLP, the connector is Linear, batch norm and ReLU on the embedding. The paper's h
    sums over positions; here it is their average, as in the published code, because that is what a classifier reads.

    position: `last`, or an earlier map: a name that student and teacher both have (`stage2`), a pair `[student's,
    teacher's]`, or the paper's conv2, conv3, conv4, which are the maps stage1, stage2, stage3 of models with stages.
    There the channels' means and deviations of the connected student's map take the place of those of the teacher's
    map (AdaIN: Yang et al. 2020), the teacher's frozen layers behind it make logits of that, and these are compared
    with the teacher's own. Several positions are several terms. AdaIN for earlier positions and their names are the
    paper's; its code has the last one only. The same connector at each position, and that feature matching compares
    means and deviations there, is our reading.

    The label loss reads the student's own head: write `ce` beside it. With a subclass teacher, all S×C logits of its
    classifier take part.

    feature_matching, softmax_regression: the factors of the two (the paper's alpha and beta). sr: how the logits are
    compared (`functional.srrl_softmax_regression`); the paper's choice is l2. `tau` is read by ce and kl. reduction:
    squared norms as in the paper, or means over the width as in its code.
    """

    kind = "srrl"
    reads_classifier = True

    position: str | tuple[str, str] = "last"
    feature_matching: float = Field(1.0, ge=0)
    softmax_regression: float = Field(1.0, ge=0)
    sr: functional.SoftmaxRegression = "l2"
    tau: Temperature = 1.0
    reduction: functional.SRRLReduction = "paper"

    @property
    def needs(self) -> frozenset[TeacherOutput]:  # type: ignore[override]  # Of the instance: the position decides.
        return frozenset({"embedding"} if self.position == "last" else {"features", "logits"})

    def problem(self, heads: Heads) -> str | None:
        if self.feature_matching == self.softmax_regression == 0:
            return "feature_matching and softmax_regression are both 0, so nothing is left of it"
        if self.sr == "ce" and self.tau == "inf":
            return "sr: ce has no gradient at an infinite tau; sr: kl has one, because its tau² has a limit"
        # Subclasses of the two heads need not agree: only the teacher's layers are read.
        return None if self.position == "last" else _position_problem(self.position, heads)

    def build(self, heads: Heads) -> SRRL | EarlierSRRL:
        return SRRL(heads, self) if self.position == "last" else EarlierSRRL(heads, self)


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


class EarlierSRRL(Term):
    """SRRL at one pair of maps (`mine` the student's position, `yours` the teacher's).

    `behind` is what the teacher makes of a map there, given in `prepare`. It is a function and no module: the teacher
    stays frozen in evaluation mode and outside the term's parameters and state, but gradients flow through it.
    """

    def __init__(self, heads: Heads, options: SRRLSpec) -> None:
        super().__init__()
        student, teacher = shapes_of_both(heads)
        mine, yours = _names(options.position, heads)
        self.mine, self.yours = student.feature_names.index(mine), teacher.feature_names.index(yours)
        self.options = options
        self.subclasses = heads.teacher_subclasses or 1
        self.connector = Connector(student.features[self.mine][0], teacher.features[self.yours][0], bias=False)
        self.behind: Callable[[Tensor, int], Tensor] | None = None

    def prepare(self, preparation: Preparation) -> None:
        self.behind = preparation.teacher.from_feature

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        if self.behind is None:
            raise RuntimeError("srrl: the term has no teacher yet; call prepare before the first batch")
        options = self.options
        connected, taught = self.connector(student.features[self.mine]), teacher.features[self.yours]
        regressed = self.behind(
            functional.adaptive_instance_norm(taught, *functional.channel_statistics(connected)), self.yours
        )
        regression = functional.srrl_logits(
            regressed,
            teacher.logits,
            options.sr,
            reduction=options.reduction,
            tau=float(options.tau),
            labels=labels,
            subclasses=self.subclasses,
        )
        matching = functional.statistics_matching(connected, taught, options.reduction)
        return options.feature_matching * matching + options.softmax_regression * regression


def _averages_its_last_map(shapes: Shapes) -> bool:
    """Whether the embedding is the last map's average over positions, told by its width."""
    return bool(shapes.features) and len(shapes.features[-1]) == 3 and shapes.features[-1][0] == shapes.embedding


def _names(position: str | tuple[str, str], heads: Heads) -> tuple[str, str]:
    """Return the names of the student's and the teacher's map."""
    student, teacher = shapes_of_both(heads)
    mine, yours = (position, position) if isinstance(position, str) else position
    return _own_name(mine, student), _own_name(yours, teacher)


def _own_name(name: str, shapes: Shapes) -> str:
    """Return a model's own name of a map. It comes before the paper's: a model may call its second map conv2."""
    paper = PAPER_POSITIONS.get(name, name)
    return paper if name not in shapes.feature_names and paper in shapes.feature_names else name


def _position_problem(position: str | tuple[str, str], heads: Heads) -> str | None:
    """Say which map of an earlier position is missing, or None; None too where the shapes are not known."""
    if heads.student is None or heads.teacher is None:
        return None
    for side, shapes, name in zip(
        ("student", "teacher"), (heads.student, heads.teacher), _names(position, heads), strict=True
    ):
        if not shapes.features:
            return f"the {side} gives no feature maps, so position can only be last"
        if name not in shapes.feature_names:
            return f"position: {unknown_map(side, name, shapes.feature_names)}{_ways_out(shapes)}"
    return None


def _ways_out(shapes: Shapes) -> str:
    papers = [paper for paper, name in PAPER_POSITIONS.items() if name in shapes.feature_names]
    known = f"The paper calls {'them' if len(papers) > 1 else 'it'} {', '.join(papers)}. " if papers else ""
    return f" {known}Write last, a name that both have, or a pair, the student's first."
