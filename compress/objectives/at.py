"""Attention transfer: where the student's and the teacher's feature maps are active."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve


class AttentionSpec(TermSpec):
    """Distance of attention maps, summed over the pairs of `layers` (Zagoruyko & Komodakis 2017).

    Maps of different size are averaged to the smaller height and width first. `variant: paper` is the norm of the
    difference, `code` the mean of its square. The paper's beta / 2 is `weight`; the weight that goes with `code` is
    1,000, in the authors' commands as in RepDistiller.
    """

    kind = "at"
    needs = frozenset({"features"})

    layers: Layers = "all"
    variant: functional.AttentionVariant = "paper"
    power: int = Field(2, ge=1)

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads) or position_problem(self.layers, heads)

    def build(self, heads: Heads) -> Attention:
        return Attention(heads, self)


class Attention(Term):
    def __init__(self, heads: Heads, options: AttentionSpec) -> None:
        super().__init__()
        self.pairs = resolve(options.layers, heads)
        self.options = options

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        losses = [
            functional.attention_transfer(
                student.features[mine], teacher.features[yours], self.options.variant, power=self.options.power
            )
            for mine, yours in self.pairs
        ]
        return sum(losses[1:], start=losses[0])


def position_problem(layers: Layers, heads: Heads) -> str | None:
    """Say which pair has a single position to compare, or None: over one position every map of norm 1 is the same."""
    if heads.student is None or heads.teacher is None:
        return None
    pairs, shapes = resolve(layers, heads), layer_shapes(layers, heads)
    for (mine, yours), sides in zip(pairs, shapes, strict=True):
        height, width = (min(side[i] if len(side) == 3 else 1 for side in sides) for i in (1, 2))
        if height == width == 1:
            return (
                f"the student's '{heads.student.feature_names[mine]}' and the teacher's "
                f"'{heads.teacher.feature_names[yours]}' have one position in common, and it compares positions; "
                "name pairs of larger maps in layers"
            )
    return None
