"""FitNet hints: the student's feature map, regressed to the teacher's width, against the teacher's."""

from __future__ import annotations

from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.connectors import Connector
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve


class FitNetSpec(TermSpec):
    """Distance of feature maps after a 1×1 regressor, summed over the pairs of `layers` (Romero et al. 2015).

    Maps of different size are averaged to the smaller height and width first, where the paper's regressor has a larger
    kernel; a vector is compared with the other map's average. The regressor ends in ReLU, as the teacher's maps do, and
    is there also where the shapes agree (the authors' code then leaves it out). `variant: paper` sums over a map, so
    its value grows with the map and wants a small weight; `repdistiller` is the mean and puts batch norm into the
    regressor. The paper trains with hints alone first: a stage with `fitnet`, and `init_from` in the next.
    """

    kind = "fitnet"
    needs = frozenset({"features"})

    layers: Layers = "middle"
    variant: functional.FitNetVariant = "paper"

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads)

    def build(self, heads: Heads) -> FitNet:
        return FitNet(heads, self.layers, self.variant)


class FitNet(Term):
    """`connectors` holds one regressor for each of `pairs`, the positions of the compared maps (student, teacher)."""

    def __init__(self, heads: Heads, layers: Layers, variant: functional.FitNetVariant) -> None:
        super().__init__()
        self.pairs = resolve(layers, heads)
        self.variant = variant
        self.connectors = nn.ModuleList(
            Connector(student[0], teacher[0], bias=True, normalise=variant == "repdistiller")
            for student, teacher in layer_shapes(layers, heads)
        )

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        losses = []
        for (mine, yours), connector in zip(self.pairs, self.connectors, strict=True):
            small, large = functional.same_size(student.features[mine], teacher.features[yours])
            losses.append(functional.fitnet(connector(small), large, self.variant))
        return sum(losses[1:], start=losses[0])
