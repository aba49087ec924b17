"""Neuron selectivity transfer: the distribution of a map's channels over positions."""

from __future__ import annotations

from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.at import position_problem
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.layers import Layers, layer_problem, resolve


class NeuronSelectivitySpec(TermSpec):
    """Squared MMD of the channels of feature maps, summed over the pairs of `layers` (Huang & Wang 2017).

    The kernel is the polynomial one, (x·y)². Maps of different size are averaged to the smaller height and width first.
    """

    kind = "nst"
    needs = frozenset({"features"})

    layers: Layers = "last"

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads) or position_problem(self.layers, heads)

    def build(self, heads: Heads) -> NeuronSelectivity:
        return NeuronSelectivity(heads, self.layers)


class NeuronSelectivity(Term):
    def __init__(self, heads: Heads, layers: Layers) -> None:
        super().__init__()
        self.pairs = resolve(layers, heads)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        losses = [
            functional.neuron_selectivity(student.features[mine], teacher.features[yours]) for mine, yours in self.pairs
        ]
        return sum(losses[1:], start=losses[0])
