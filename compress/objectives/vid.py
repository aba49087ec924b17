"""Variational information distillation: how well the student's maps predict the teacher's."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Term, TermSpec
from compress.objectives.connectors import as_map
from compress.objectives.functional.precision import at_least_float32
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve


class VIDSpec(TermSpec):
    """-log of a Gaussian with one variance a channel at the teacher's map, summed over `layers` (Ahn et al. 2019).

    The Gaussian's mean is the student's map through three 1×1 convolutions without bias, ReLU between them; maps of
    different size are averaged to the smaller height and width first. The loss may be negative. variant: `paper` sums
    over a map, so it wants a small weight; `repdistiller` is the mean. init_variance: where the variances start.
    """

    kind = "vid"
    needs = frozenset({"features"})

    layers: Layers = "all"
    variant: functional.VIDVariant = "paper"
    init_variance: float = Field(5.0, ge=1e-3, le=500)
    eps: float = Field(1e-5, gt=0, lt=1e-3)

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads)

    def build(self, heads: Heads) -> VID:
        return VID(heads, self)


class VID(Term):
    def __init__(self, heads: Heads, options: VIDSpec) -> None:
        super().__init__()
        self.pairs = resolve(options.layers, heads)
        self.options = options
        self.regressors = nn.ModuleList(
            Regressor(student[0], teacher[0], options.init_variance, options.eps)
            for student, teacher in layer_shapes(options.layers, heads)
        )

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        losses = []
        for (mine, yours), regressor in zip(self.pairs, self.regressors, strict=True):
            small, large = functional.same_size(student.features[mine], teacher.features[yours])
            mean, log_scale = regressor(small)
            options = self.options
            losses.append(functional.variational_information(mean, log_scale, large, options.variant, options.eps))
        return sum(losses[1:], start=losses[0])


class Regressor(nn.Module):
    """Predicts the teacher's map: (N, inputs, H, W) -> its mean (N, outputs, H, W) and `log_scale` (outputs,).

    The latter gives the variance of each channel (`functional.variational_information`). Vectors stay vectors.
    """

    def __init__(self, inputs: int, outputs: int, init_variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
        )
        self.log_scale = nn.Parameter(torch.full((outputs,), functional.log_scale_of(init_variance, eps)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean: Tensor = self.mean(as_map(at_least_float32(x)))
        return mean.flatten(1) if x.dim() == 2 else mean, self.log_scale
