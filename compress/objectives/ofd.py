"""Overhaul of feature distillation: the teacher's maps through a margin ReLU, and a partial squared distance."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, Term, TermSpec
from compress.objectives.connectors import Projection
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve
from compress.objectives.margins import batch_norm_margins, is_rectified, measured_margins

# Rows that measured margins are taken from, and how many at a time: all layers' outputs of one batch are kept.
MEASURED_ROWS, MEASURED_BATCH = 512, 8


class OFDSpec(TermSpec):
    """Partial squared distance to max(t, margin), summed over a map and over `layers` (Heo et al. 2019, overhaul).

    The student's map goes through a 1×1 convolution and batch norm; each layer has half the weight of the next deeper
    one. Sums over a map are large: the published weight is 1e-3. Each channel's margin is the mean of the teacher's
    negative responses before its ReLU. margin: `batch_norm` computes it from the last batch norm before the map, as
    the paper does; `measured` is the mean over training rows, for teachers without batch norm.

    The paper compares maps before their ReLUs. Models here give them behind; a zero of the teacher then counts as the
    margin, the mean of what it can stand for. Maps of different size are averaged to the smaller height and width, the
    teacher's after its margin ReLU.
    """

    kind = "ofd"
    needs = frozenset({"features"})

    layers: Layers = "all"
    margin: Literal["batch_norm", "measured"] = "batch_norm"

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads)

    def build(self, heads: Heads) -> OFD:
        return OFD(heads, self)


class OFD(Term):
    """`margin0`, `margin1`, ... (D,) and `rectified` (layers,) are looked up in `prepare`."""

    rectified: Tensor

    def __init__(self, heads: Heads, options: OFDSpec) -> None:
        super().__init__()
        self.pairs = resolve(options.layers, heads)
        self.options = options
        shapes = layer_shapes(options.layers, heads)
        self.connectors = nn.ModuleList(Projection(student[0], teacher[0]) for student, teacher in shapes)
        for i, (_, teacher) in enumerate(shapes):
            # NaN, so that a term which was not prepared cannot pass for one whose loss is small.
            self.register_buffer(f"margin{i}", torch.full((teacher[0],), math.nan))
        self.register_buffer("rectified", torch.zeros(len(shapes), dtype=torch.bool))

    @property
    def margins(self) -> list[Tensor]:
        return [self.get_buffer(f"margin{i}") for i in range(len(self.pairs))]

    def prepare(self, preparation: Preparation) -> None:
        rows = len(preparation.labels)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(preparation.seed))
        batches = order[:MEASURED_ROWS].to(preparation.labels.device).split(MEASURED_BATCH)
        positions = [yours for _, yours in self.pairs]
        first = preparation.inputs(batches[0])
        if self.options.margin == "batch_norm":
            margins = batch_norm_margins(preparation.teacher, first, positions)
        else:
            margins = measured_margins(preparation.teacher, map(preparation.inputs, batches), positions)
        for buffer, margin in zip(self.margins, margins, strict=True):
            buffer.copy_(margin)
        with torch.no_grad():
            features = preparation.teacher(first).features
        self.rectified.copy_(torch.tensor([is_rectified(features[position]) for position in positions]))

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        losses = []
        for i, (mine, yours) in enumerate(self.pairs):
            target = functional.margin_relu(teacher.features[yours], self.get_buffer(f"margin{i}"), self.rectified[i])
            small, target = functional.same_size(student.features[mine], target)
            losses.append(functional.overhaul(self.connectors[i](small), target))
        return functional.halved_sum(losses)
