"""Flow of solution procedure: how each feature map relates to the next one."""

from __future__ import annotations

from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.connectors import as_map
from compress.objectives.functional.precision import at_least_float32
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve


class FlowSpec(TermSpec):
    """Distance of the flow matrices between consecutive maps of `layers`, summed over them (Yim et al. 2017).

    Flow matrices are means over positions, so the student's maps need not have the teacher's size. The paper takes the
    first and the last map of each stage; models here give one map a stage. It has models of equal widths; where they
    differ, a 1×1 convolution without bias that trains with the student brings the student's map to the teacher's
    channels. The paper trains with `fsp` alone first: a stage of its own, and `init_from` in the next. `variant: paper`
    is a sum over the matrix, `repdistiller` the mean, `torchdistill` a sum of norms.
    """

    kind = "fsp"
    needs = frozenset({"features"})

    layers: Layers = "all"
    variant: functional.FlowVariant = "paper"

    def problem(self, heads: Heads) -> str | None:
        missing = layer_problem(self.layers, heads)
        if missing is not None or heads.student is None or heads.teacher is None:
            return missing
        if len(resolve(self.layers, heads)) < 2:
            return "a flow goes from one map to the next, so layers must give two pairs of maps or more; it gives one"
        return None

    def build(self, heads: Heads) -> Flow:
        return Flow(heads, self.layers, self.variant)


class Flow(Term):
    """`connectors` holds one layer a pair, Identity where the channels agree."""

    def __init__(self, heads: Heads, layers: Layers, variant: functional.FlowVariant) -> None:
        super().__init__()
        self.pairs = resolve(layers, heads)
        self.variant = variant
        self.connectors = nn.ModuleList(
            nn.Identity() if student[0] == teacher[0] else nn.Conv2d(student[0], teacher[0], 1, bias=False)
            for student, teacher in layer_shapes(layers, heads)
        )

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        own = [
            connector(at_least_float32(as_map(student.features[mine])))
            for (mine, _), connector in zip(self.pairs, self.connectors, strict=True)
        ]
        return functional.flow(own, [as_map(teacher.features[yours]) for _, yours in self.pairs], self.variant)
