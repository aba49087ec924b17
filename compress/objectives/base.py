"""A distillation objective: a weighted sum of terms, nothing added silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.kinds import Spec
from compress.models.base import Classifier, Output, Shapes
from export.fold import fold_logits

TeacherOutput = Literal["logits", "embedding", "features"]
TeacherGives = Literal["logits", "embedding", "features", "classifier"]
# Rows of one pass of the teacher while a term prepares.
BATCH = 1000


@dataclass(frozen=True)
class Heads:
    """The two models that an objective stands between. `teacher_subclasses` is None without a teacher.

    student, teacher: the shapes of their embeddings and feature maps; None where nothing has been built yet.
    """

    classes: int
    subclasses: int
    teacher_subclasses: int | None = None
    student: Shapes | None = None
    teacher: Shapes | None = None

    @property
    def compare_subclasses(self) -> bool:
        """Whether logit terms compare all S×C logits: only where both sides have subclasses."""
        return self.subclasses > 1 and (self.teacher_subclasses or 1) > 1

    def comparable(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides' logits in the one shape they share: (N, C*S) or, folded, (N, C)."""
        if self.compare_subclasses:
            return student, teacher
        return fold_logits(student, self.subclasses), fold_logits(teacher, self.teacher_subclasses or 1)


@dataclass(frozen=True)
class Preparation:
    """What a term may look at once, before training.

    teacher: the frozen model. inputs: gives the preprocessed inputs of training rows (positions (n,)) as
    (n, channels, H, W) on the device. labels: (N,) of all training rows, on the device. hidden: (N,) their classes as
    stored, where the recipe regroups them, else None. kept: the teacher's logits and embedding of all training rows,
    where they were computed before.
    """

    teacher: Classifier
    inputs: Callable[[Tensor], Tensor]
    labels: Tensor
    seed: int
    hidden: Tensor | None = None
    kept: Output | None = None

    def embeddings(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions (n,), the teacher's embeddings (n, D)) over all training rows in order."""
        for rows in torch.arange(len(self.labels), device=self.labels.device).split(BATCH):
            if self.kept is not None:
                yield rows, self.kept.embedding[rows]
                continue
            with torch.no_grad():
                yield rows, self.teacher(self.inputs(rows)).embedding


class Term(nn.Module):
    """One term: `forward(student, teacher, labels)` -> scalar, unweighted; `teacher` is None where `needs` is empty."""

    def prepare(self, preparation: Preparation) -> None:
        """Look at the teacher and the training rows once. What is kept must be a buffer: checkpoints hold buffers."""

    def observe(self, rows: Tensor) -> None:
        """Learn which training rows (positions (N,)) the next batch holds; for terms with a memory of rows."""

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class TermSpec(Spec):
    """Options of one term. `needs` names the teacher outputs it reads; reads_classifier: also its last layer."""

    needs: ClassVar[frozenset[TeacherOutput]] = frozenset()
    reads_classifier: ClassVar[bool] = False

    weight: float = Field(1.0, ge=0)

    def problem(self, heads: Heads) -> str | None:
        """Say why the term cannot work between these heads, or None."""
        if not self.needs or heads.teacher_subclasses is None:
            return None
        return subclass_mismatch(heads)

    def build(self, heads: Heads) -> Term:
        raise NotImplementedError(f"{type(self).__name__} must define build")


def subclass_mismatch(heads: Heads) -> str | None:
    if heads.compare_subclasses and heads.subclasses != heads.teacher_subclasses:
        return (
            f"the student has {heads.subclasses} subclasses per class and the teacher {heads.teacher_subclasses}: "
            f"{heads.classes * heads.subclasses} logits cannot be compared with "
            f"{heads.classes * (heads.teacher_subclasses or 1)}"
        )
    return None


class Losses(NamedTuple):
    """`total` is the weighted sum that is minimised; `terms` the unweighted values in the recipe's order."""

    total: Tensor
    terms: tuple[Tensor, ...]


class Objective(nn.Module):
    """The weighted sum of a stage's terms. Parameters of its terms (connectors) train with the student."""

    def __init__(self, specs: Sequence[TermSpec], heads: Heads) -> None:
        super().__init__()
        self.names = term_names(specs)
        self.weights = tuple(spec.weight for spec in specs)
        self.in_order = [spec.build(heads) for spec in specs]
        self.terms = nn.ModuleList(self.in_order)
        self.observers = [term for term in self.in_order if type(term).observe is not Term.observe]
        self.needs: frozenset[TeacherOutput] = frozenset().union(*(spec.needs for spec in specs))

    def prepare(self, preparation: Preparation) -> None:
        for term in self.in_order:
            term.prepare(preparation)

    def observe(self, rows: Tensor) -> None:
        for term in self.observers:
            term.observe(rows)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Losses:
        values = tuple(term(student, teacher, labels) for term in self.terms)
        weighted = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return Losses(sum(weighted[1:], start=weighted[0]), values)


def term_names(specs: Sequence[TermSpec]) -> tuple[str, ...]:
    """Return a name for each term: its kind, numbered where one kind stands more than once."""
    kinds = [spec.kind for spec in specs]
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)
    )
