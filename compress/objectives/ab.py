"""Activation boundaries: the student's maps on the teacher's side of zero."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.connectors import Projection
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve


class ABSpec(TermSpec):
    """Hinge on which of the teacher's units are active, summed over `layers` (Heo et al. 2019, activation boundaries).

    The student's map goes through a 1×1 convolution and batch norm, with no ReLU after them, also where the widths
    agree (the authors' code then leaves them out). The teacher's map may stand before or after its ReLU. Maps of
    different size are averaged to the smaller height and width first: then a unit of the teacher counts as active where
    its average is positive. variant: `paper` adds the layers as they are; `repdistiller` gives each half the weight of
    the next deeper one, and takes 3/1000 of all, as the authors' code for CIFAR-10 does too. Sums over a map want a
    small weight. The paper trains with this term alone first: a stage with `ab`, and `init_from` in the next.
    """

    kind = "ab"
    needs = frozenset({"features"})

    layers: Layers = "all"
    margin: float = Field(1.0, gt=0)
    variant: functional.ABVariant = "paper"

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads)

    def build(self, heads: Heads) -> AB:
        return AB(heads, self)


class AB(Term):
    def __init__(self, heads: Heads, options: ABSpec) -> None:
        super().__init__()
        self.pairs = resolve(options.layers, heads)
        self.options = options
        self.connectors = nn.ModuleList(
            Projection(student[0], teacher[0]) for student, teacher in layer_shapes(options.layers, heads)
        )

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        compared = []
        for (mine, yours), connector in zip(self.pairs, self.connectors, strict=True):
            small, large = functional.same_size(student.features[mine], teacher.features[yours])
            compared.append((connector(small), large))
        return functional.activation_boundaries(compared, self.options.margin, self.options.variant)
