"""A trained model as a teacher: frozen, and asked only for what the objective reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.evaluate import outputs_of
from compress.models import Classifier, Output
from compress.objectives.base import TeacherOutput
from compress.recipe import EnsembleLogits
from compress.rows import Rows


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode, and its head."""

    model: Classifier
    subclasses: int


def frozen(model: Classifier, subclasses: int) -> Teacher:
    """Return `model` as a teacher: evaluation mode (its batch-norm statistics stay), no gradients."""
    return Teacher(model.eval().requires_grad_(False), subclasses)


def combined(logits: Sequence[Tensor], how: EnsembleLogits) -> Tensor:
    """Return several models' logits (N, K) as one: the mean (Kim et al. 2021), or the sum as in that paper's code."""
    total = torch.stack(list(logits)).sum(0)
    return total / len(logits) if how == "mean" else total


class Ensemble(Classifier):
    """Several models as one teacher, by their logits. It has no embedding: those of its members do not combine."""

    def __init__(self, members: Sequence[Classifier], how: EnsembleLogits) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.how: EnsembleLogits = how

    def forward(self, x: Tensor) -> Output:
        logits = combined([member(x).logits.float() for member in self.members], self.how)
        return Output(logits, logits[:, :0], ())


class TeacherOutputs:
    """Gives a batch's teacher outputs: None where no term reads any, looked up where they were computed before.

    kept: one Output of all training rows for each way in which augmentation may show them.
    """

    def __init__(self, teacher: Teacher | None, needs: frozenset[TeacherOutput]) -> None:
        self.teacher = teacher if needs else None
        self.needs = needs
        self.kept: tuple[Output, ...] = ()

    def precompute(self, views: Sequence[Rows], preprocess: nn.Module) -> bool:
        """Compute logits and embedding of every row in every view, where they are all that is read.

        Return whether it was done. Feature maps are never kept: they are larger than the data.
        """
        if self.teacher is None or "features" in self.needs:
            return False
        model = self.teacher.model
        self.kept = tuple(outputs_of(model, preprocess, view) for view in views)
        return True

    def __call__(self, index: Tensor, x: Tensor, choice: Tensor | None) -> Output | None:
        """Return the outputs for the rows `index` (N,), shown in the view `choice` (N,) as preprocessed inputs x.

        x: (N, channels, H, W). choice: None where there is one view.
        """
        if self.teacher is None:
            return None
        if not self.kept:
            with torch.no_grad():
                return self.teacher.model(x)
        logits = self._looked_up([output.logits for output in self.kept], index, choice)
        return Output(logits, self._looked_up([output.embedding for output in self.kept], index, choice), ())

    @staticmethod
    def _looked_up(views: Sequence[Tensor], index: Tensor, choice: Tensor | None) -> Tensor:
        rows = views[0][index]
        if choice is not None:
            for i, view in enumerate(views[1:], start=1):
                rows = torch.where((choice.to(rows.device) == i)[:, None], view[index], rows)
        return rows
