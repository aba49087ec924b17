"""A trained model as a teacher: frozen, and asked only for what the objective reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.evaluate import outputs_of
from compress.models import Classifier, Output
from compress.objectives.base import TeacherOutput
from compress.rows import Rows


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode, and its head."""

    model: Classifier
    subclasses: int


def frozen(model: Classifier, subclasses: int) -> Teacher:
    """Return `model` as a teacher: evaluation mode (its batch-norm statistics stay), no gradients."""
    return Teacher(model.eval().requires_grad_(False), subclasses)


class TeacherOutputs:
    """Gives a batch's teacher outputs: None where no term reads any, looked up where they were computed before."""

    def __init__(self, teacher: Teacher | None, needs: frozenset[TeacherOutput]) -> None:
        self.teacher = teacher if needs else None
        self.needs = needs
        self.kept: Output | None = None

    def precompute(self, rows: Rows, preprocess: nn.Module) -> bool:
        """Compute logits and embedding of every row, where they are all that is read; return whether it was done.

        Only for inputs that are the same in every epoch. Feature maps are never kept: they are larger than the data.
        """
        if self.teacher is None or "features" in self.needs:
            return False
        self.kept = outputs_of(self.teacher.model, preprocess, rows)
        return True

    def __call__(self, index: Tensor, x: Tensor) -> Output | None:
        """Return the outputs for the rows `index` (N,), whose preprocessed inputs are x (N, channels, H, W)."""
        if self.teacher is None:
            return None
        if self.kept is not None:
            return Output(self.kept.logits[index], self.kept.embedding[index], ())
        with torch.no_grad():
            return self.teacher.model(x)
