"""A small stage to train an objective on: random 8×8 images of three classes, a frozen teacher, two epochs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.datasets import Dataset, Split
from compress.models import ModelSpec, shapes_of
from compress.objectives import Heads
from compress.plan import StagePlan
from compress.recipe import StageSpec, TrainSpec
from compress.teacher import Teacher, frozen
from compress.train import Trained, Trainer
from export.graph import InputSignature, Normalization

CLASSES, SIGNATURE = 3, InputSignature((8, 8, 1))


@dataclass(frozen=True)
class SmallStage:
    """A student of two stages and its teacher of three. A batch is 8 of 17 rows, so an epoch's last one has one row."""

    monkeypatch: pytest.MonkeyPatch
    teacher_subclasses: int = 2

    def plan(self, objective: tuple[Any, ...], **train: Any) -> StagePlan:
        spec, outputs = _stage((4, 8), objective), CLASSES * self.teacher_subclasses
        shapes = [shapes_of(model, signature=SIGNATURE, outputs=outputs) for model in (spec.model, _teacher_model())]
        settings = {"epochs": 2, "batch_size": 8, "optimizer": {"adam": {"lr": 0.01}}, **train}
        return StagePlan(
            name="student", key="key", seed=0, spec=spec, train=TrainSpec.model_validate(settings),
            heads=Heads(CLASSES, 1, self.teacher_subclasses, *shapes), signature=SIGNATURE, augment=(),
            teachers=("teacher",), init_from=None, parameters=0, expect=None, resolved={},
        )  # fmt: skip

    def teacher(self) -> Teacher:
        torch.manual_seed(1)
        model = _teacher_model().build(signature=SIGNATURE, outputs=CLASSES * self.teacher_subclasses)
        return frozen(model, self.teacher_subclasses)

    def trainer(
        self, objective: tuple[Any, ...], folder: Path, checkpoint_every_s: float = 1e9, **train: Any
    ) -> Trainer:
        return Trainer(
            self.plan(objective, **train), _dataset(), self.teacher(), initial=None, device=torch.device("cpu"),
            folder=folder, notify=lambda event: None, checkpoint_every_s=checkpoint_every_s,
        )  # fmt: skip

    def cut_and_resumed(self, objective: tuple[Any, ...], folder: Path) -> dict[str, Tensor]:
        """Train, stop after the first step of the second epoch, train on; return the end's `state`."""
        cut = self.trainer(objective, folder, 0.0)
        original = cut._step
        taken: list[int] = []

        def failing(index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            if len(taken) == 4:  # of three steps an epoch, the last of which has one row
                raise KeyboardInterrupt
            taken.append(len(index))
            return original(index, *rest)

        self.monkeypatch.setattr(cut, "_step", failing)
        with pytest.raises(KeyboardInterrupt):
            cut.run()
        again = self.trainer(objective, folder)
        resumed = again.run()
        assert resumed.resumed_at_step == 4
        assert 1 in taken
        return self.state(again, resumed)

    def state(self, run: Trainer, trained: Trained) -> dict[str, Tensor]:
        """Return all that a run has trained, by name: the model's tensors and those of the objective's terms."""
        terms = {f"term.{name}": value for name, value in run.objective.state_dict().items()}
        return {**trained.model.state_dict(), **terms}


def _stage(widths: tuple[int, ...], objective: tuple[Any, ...] = ("ce",)) -> StageSpec:
    return StageSpec.model_validate({"model": {"small_cnn": {"widths": widths}}, "objective": objective})


def _teacher_model() -> ModelSpec:
    return _stage((4, 6, 12)).model


def _dataset() -> Dataset:
    rng = np.random.default_rng(0)

    def split(rows: int, first_id: int) -> Split:
        labels = rng.integers(0, CLASSES, rows)
        images = rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8)
        return Split(images, labels, None, np.arange(first_id, first_id + rows))

    splits = split(17, 0), split(8, 100), split(8, 200)
    scaling = Normalization(1 / 255, (0.4,), (0.3,))
    return Dataset("random", ("a", "b", "c"), None, SIGNATURE, scaling, "0", *splits)


@pytest.fixture
def small_stage(monkeypatch: pytest.MonkeyPatch) -> SmallStage:
    """The small stage, its teacher with two subclasses a class."""
    return SmallStage(monkeypatch)
