"""Correlation congruence: the kernel matrices of a batch's embeddings."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.functional.directions import unit
from compress.objectives.functional.precision import at_least_float32
from compress.objectives.layers import shapes_of_both


class CorrelationSpec(TermSpec):
    """Distance of the correlations of embeddings (Peng et al. 2019), which is the squared norm in the paper.

    variant: `torchdistill` takes the norm itself, `repdistiller` products of consecutive examples without a kernel.
    kernel, gamma, order: of the first two. The gaussian kernel's series is that of unit vectors, so embeddings are
    divided by their norm for it. width: of repdistiller's linear maps on both sides, which train with the student.
    """

    kind = "cc"
    needs = frozenset({"embedding"})

    variant: functional.CorrelationVariant = "paper"
    kernel: functional.CorrelationKernel = "gaussian"
    gamma: float = Field(0.4, gt=0)
    order: int = Field(2, ge=1)
    width: int = Field(128, ge=1)

    def problem(self, heads: Heads) -> str | None:
        return None  # Subclasses of the two heads need not agree: no logits are compared.

    def build(self, heads: Heads) -> Correlation:
        return Correlation(heads, self)


class Correlation(Term):
    def __init__(self, heads: Heads, options: CorrelationSpec) -> None:
        super().__init__()
        self.options = options
        self.student: nn.Module = nn.Identity()
        self.teacher: nn.Module = nn.Identity()
        if options.variant == "repdistiller":
            student, teacher = (shapes.embedding for shapes in shapes_of_both(heads))
            self.student, self.teacher = nn.Linear(student, options.width), nn.Linear(teacher, options.width)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        options = self.options
        own, taught = (
            self.student(at_least_float32(student.embedding)),
            self.teacher(at_least_float32(teacher.embedding)),
        )
        if options.variant != "repdistiller" and options.kernel == "gaussian":
            own, taught = unit(own, 1), unit(taught, 1)
        return functional.correlation_congruence(
            own, taught, options.variant, kernel=options.kernel, gamma=options.gamma, order=options.order
        )
