"""Contrastive representation distillation: a row's two embeddings belong together, those of other classes do not."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, Term, TermSpec
from compress.objectives.functional.precision import at_least_float32
from compress.objectives.layers import shapes_of_both
from runtime.errors import TrainingError

# Far apart, so that neighbouring seeds do not share a batch's draws; not the stride that the rows' order uses.
SEED_STRIDE = 1_000_000_007


class CRDSpec(TermSpec):
    """Contrast of student and teacher embeddings against memories of all training rows (Tian et al. 2020).

    Both embeddings go through a Linear layer to `width` and to length one; the two layers train with the student. Each
    is compared with the other side's memory: the row's own entry against `negatives` rows of other classes, drawn anew
    for every batch, with replacement (the published code repeats none while there are enough). Memories move towards
    the new embeddings with `momentum`. They take 8 · width bytes a training row, in checkpoints too.
    """

    kind = "crd"
    needs = frozenset({"embedding"})

    negatives: int = Field(16384, ge=1, le=1_000_000)
    width: int = Field(128, ge=1, le=65536)
    tau: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1)

    def problem(self, heads: Heads) -> str | None:
        if heads.classes == 1:
            return "there is one class, so there are no rows of other classes to contrast with"
        return None  # Only embeddings are read: subclasses of the two heads need not agree.

    def build(self, heads: Heads) -> CRD:
        return CRD(heads, self)


class CRD(Term):
    """Holds memories of the training rows; `observe` must name the rows of each batch before `forward`.

    memory_student, memory_teacher: (n, width). log_z: (2,), of the student's and the teacher's embeddings, NaN before
    the first batch. order, first, count: the rows by class (`functional.other_class_rows`). Negatives come from a
    generator of their own, made anew for each batch from `seed` and `step`: two numbers in a checkpoint, whatever the
    device, where a generator's own state is kilobytes and differs from device to device.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    log_z: Tensor
    order: Tensor
    first: Tensor
    count: Tensor
    seed_and_step: Tensor

    def __init__(self, heads: Heads, options: CRDSpec) -> None:
        super().__init__()
        student, teacher = shapes_of_both(heads)
        self.options = options
        self.classes = heads.classes
        self.embed_student = nn.Linear(student.embedding, options.width)
        self.embed_teacher = nn.Linear(teacher.embedding, options.width)
        self.rows: Tensor | None = None
        # How many rows there are is not known before `prepare`.
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, torch.empty(0, options.width))
        self.register_buffer("log_z", torch.full((2,), math.nan))
        for name in ("order", "first", "count"):
            self.register_buffer(name, torch.empty(0, dtype=torch.long))
        self.register_buffer("seed_and_step", torch.zeros(2, dtype=torch.long))

    def prepare(self, preparation: Preparation) -> None:
        labels = preparation.labels
        self.order = labels.argsort(stable=True)
        self.count = labels.bincount(minlength=self.classes)
        self.first = self.count.cumsum(0) - self.count
        if int(self.count.max()) == len(labels):
            raise TrainingError("crd: all training rows are of one class, so there is nothing to contrast them with")
        # On the host, where reading the two numbers does not wait for the device.
        self.seed_and_step = torch.tensor([preparation.seed, 0])
        generator = torch.Generator().manual_seed(preparation.seed)
        limit = math.sqrt(3 / self.options.width)  # Rows of length one, on average, as in the published code.
        for name in ("memory_student", "memory_teacher"):
            drawn = torch.rand(len(labels), self.options.width, generator=generator)
            setattr(self, name, (limit * (2 * drawn - 1)).to(labels.device))

    def observe(self, rows: Tensor) -> None:
        self.rows = rows

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        if not len(self.order):
            raise RuntimeError("CRD has no memories yet; call prepare(preparation) first")
        if self.rows is None or len(self.rows) != len(labels):
            raise RuntimeError(f"CRD does not know the rows of this batch of {len(labels)}; call observe(rows) first")
        index = torch.cat([self.rows[:, None], self._negatives(labels)], dim=1)  # (N, K + 1)
        return self.contrast(student.embedding, teacher.embedding, index)

    def contrast(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Return the loss of embeddings (N, D of each) with rows `index` (N, K + 1), the own first.

        In training mode it also moves the memories, and the first batch fixes both Z.
        """
        options, rows = self.options, len(self.memory_student)
        ours = functional.unit_rows(self.embed_student(at_least_float32(student)))  # (N, width)
        theirs = functional.unit_rows(self.embed_teacher(at_least_float32(teacher)))
        scores = (
            functional.memory_scores(ours, self.memory_teacher, index, options.tau),
            functional.memory_scores(theirs, self.memory_student, index, options.tau),
        )
        measured = torch.stack([functional.log_partition(score, rows) for score in scores])
        log_z = torch.where(self.log_z.isnan(), measured, self.log_z)
        if self.training:
            self.log_z = log_z
            self.memory_student = functional.moved_memory(self.memory_student, index[:, 0], ours, options.momentum)
            self.memory_teacher = functional.moved_memory(self.memory_teacher, index[:, 0], theirs, options.momentum)
        student_loss, teacher_loss = (
            functional.noise_contrast(score, z, rows) for score, z in zip(scores, log_z, strict=True)
        )
        return student_loss + teacher_loss

    def _negatives(self, labels: Tensor) -> Tensor:
        seed, step = self.seed_and_step.tolist()
        generator = torch.Generator(labels.device).manual_seed((seed * SEED_STRIDE + step) % 2**63)
        if self.training:
            self.seed_and_step[1] += 1
        return functional.other_class_rows(
            labels, self.order, self.first, self.count, self.options.negatives, generator
        )
