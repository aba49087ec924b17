"""The only training loop."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from compress.datasets import Dataset
from compress.datasets.augment import Augment, in_decoding, of_batches
from compress.evaluate import predict, score
from compress.layers.latent import latent_weights
from compress.layers.watch import BinaryWatch
from compress.loss_sums import LossSums, NotFiniteError
from compress.models import Classifier, Output
from compress.objectives import Objective, Preparation
from compress.optimization import rate_factor
from compress.plan import StagePlan
from compress.progress import Notify, Progress
from compress.rows import Rows, epoch_order, steps_per_epoch
from compress.teacher import Teacher, TeacherOutputs
from export.graph import Preprocess
from runtime.errors import TrainingError
from runtime.files import write_atomically, write_json

# Views of augmented rows (mirrored or not: 2) that a teacher sees once for all epochs; a run has more epochs than that.
MOST_VIEWS = 4
# Training rows, as they are, on which channels of binary layers are looked at after each epoch.
WATCHED_ROWS = 256
# How many steps' losses wait to be summed up and looked at.
STEPS_BETWEEN_CHECKS = 64


@dataclass(frozen=True)
class Trained:
    """A stage's result: weights by name, one record per epoch, the epoch that was taken."""

    model: Classifier
    records: tuple[dict[str, Any], ...]
    epoch: int
    resumed_at_step: int | None


@dataclass
class _Position:
    """What a checkpoint must hold beside tensors."""

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    rows: int = 0
    epoch_seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_epoch: int = -1


class Trainer:
    """Trains one stage. `folder` takes checkpoints and the log; `notify` receives Progress and plain messages."""

    def __init__(
        self,
        stage: StagePlan,
        dataset: Dataset,
        teacher: Teacher | None,
        *,
        initial: Mapping[str, Tensor] | None,
        device: torch.device,
        folder: Path,
        notify: Notify,
        checkpoint_every_s: float,
    ) -> None:
        self.stage = stage
        self.settings = stage.train
        self.epochs = stage.train.epochs_run
        self.device = device
        self.folder = folder
        self.notify = notify
        self.checkpoint_every_s = checkpoint_every_s
        self.train_rows = Rows(dataset.train, device)
        self.validation_rows = Rows(dataset.validation, device) if len(dataset.validation) else None
        self.test_rows = Rows(dataset.test, device) if stage.train.test_curve else None
        self.crop = in_decoding(stage.augment)
        augment = of_batches(stage.augment)
        self.augment = Augment(augment) if augment else None
        self.augment_generator = torch.Generator(device).manual_seed(stage.seed)
        self.preprocess = Preprocess(dataset.signature, dataset.normalization).to(device)
        self.steps = steps_per_epoch(len(self.train_rows), self.settings.batch_size, self.settings.drop_last)
        if self.steps == 0:
            raise TrainingError(
                f"stage {stage.name}: {len(self.train_rows)} training rows make no batch of {self.settings.batch_size}",
                "Use a smaller batch_size, or drop_last: false.",
            )
        torch.manual_seed(stage.seed)
        self.model = stage.build_model().to(device)
        if self.settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if initial is not None:
            self.model.load_state_dict(dict(initial))
        else:
            stage.spec.network.load_pretrained(self.model)
        self.objective = Objective(stage.spec.objective, stage.heads).to(device)
        self.teacher = TeacherOutputs(teacher, self.objective.needs)
        # A frozen part of a model is not the optimizer's: no step, no decay, no state.
        parameters = [p for p in (*self.model.parameters(), *self.objective.parameters()) if p.requires_grad]
        self.optimizer = self.settings.optimizer.build(parameters, latent_weights(self.model))
        self.watch = BinaryWatch(self.model)
        self.parameters = parameters
        self.position = _Position()
        self.losses = self._loss_sums()
        self.best: dict[str, Tensor] = {}
        self.resumed_at_step: int | None = None

    def run(self) -> Trained:
        """Train to the end, from the newest valid checkpoint if there is one.

        Raises TrainingError when the loss stops being finite; the last good checkpoint is kept.
        """
        self._prepare_teacher()
        self._resume()
        self.last_checkpoint = time.monotonic()
        while self.position.epoch < self.epochs:
            self._train_epoch()
            self._end_epoch()
        weights = self.best if self.settings.select == "best" else self.model.state_dict()
        epoch = self.position.best_epoch if self.settings.select == "best" else self.epochs
        self.model.load_state_dict(weights)
        broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise TrainingError(
                f"stage {self.stage.name}: the trained weights hold NaN or Inf: {', '.join(broken[:5])}"
            )
        return Trained(self.model.eval(), tuple(self.position.records), epoch, self.resumed_at_step)

    def _train_epoch(self) -> None:
        position, batch = self.position, self.settings.batch_size
        order = epoch_order(len(self.train_rows), seed=self.stage.seed, epoch=position.epoch, device=self.device)
        self.model.train()
        self.watch.begin_epoch(position.epoch / self.settings.epochs, resumed=position.step > 0)
        started, seconds_before = time.monotonic(), position.epoch_seconds
        left = order.split(batch)[position.step : self.steps]
        cut = self.crop.in_epoch(seed=self.stage.seed, epoch=position.epoch) if self.crop else None
        with contextlib.closing(self.train_rows.batches(left, cut)) as batches:
            for index, (inputs, labels) in zip(left, batches, strict=True):
                losses = self._step(index, inputs, labels, position.epoch + position.step / self.steps)
                self.losses.add(len(index), losses)
                position.step += 1
                last = position.step == self.steps
                checkpoint = self._checkpoint_is_due() and not last
                if last or checkpoint or len(self.losses.pending) == STEPS_BETWEEN_CHECKS:
                    self._settle(order)
                    position.epoch_seconds = seconds_before + time.monotonic() - started
                    self._report(None)
                if checkpoint:
                    self._save_checkpoint()

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self.last_checkpoint > self.checkpoint_every_s

    def _step(self, index: Tensor, inputs: Tensor, labels: Tensor, epoch: float) -> tuple[Tensor, ...]:
        """Take one optimizer step on the rows `index`; return the total and each term, scalars on the device."""
        choice = None
        if self.augment is not None:
            choice = self.augment.draw(len(index), self.augment_generator)
            inputs = self.augment.apply(inputs, choice)
        x = self.preprocess(inputs)  # (N, channels, H, W), or ids (N, length)
        if self.settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        self._set_rate(epoch)
        with self._autocast():
            output = self._forward(x)
            taught = self.teacher(index, x, choice)
        self.objective.observe(index)
        losses = self.objective(output, taught, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        return (losses.total.detach(), *(term.detach() for term in losses.terms))

    def _forward(self, x: Tensor) -> Output:
        try:
            return self.model(x)
        except ValueError as error:
            if len(x) > 1:
                raise
            raise TrainingError(
                f"stage {self.stage.name}: the last batch of an epoch has one row, and batch norm needs more",
                "Set drop_last: true, or another batch_size.",
            ) from error

    def _set_rate(self, epoch: float) -> None:
        settings = self.settings
        factor = rate_factor(
            settings.schedule, epoch=epoch, epochs=settings.epochs, warmup_epochs=settings.warmup_epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * factor

    def _inputs(self, rows: Tensor) -> Tensor:
        """Return the preprocessed inputs of training rows, unaugmented."""
        x: Tensor = self.preprocess(self.train_rows.gather(rows)[0])
        return x

    def _prepare_teacher(self) -> None:
        """Let the terms look at the teacher once, and compute its outputs once where they never change."""
        views = self._views()
        with self._autocast():
            computed = bool(views) and self.teacher.precompute(views, self.preprocess)
        if computed:
            rows = f"{len(self.train_rows):,} rows" + (f" in {len(views)} views" if len(views) > 1 else "")
            self.notify(f"{self.stage.name}: teacher outputs of {rows} computed once and kept")
        if self.teacher.teacher is not None:
            self.objective.prepare(self._preparation(self.teacher.teacher))

    def _preparation(self, teacher: Teacher) -> Preparation:
        # Kept outputs are those of the rows as they are, in full precision: what a fit takes for a direction and not
        # for rounding is measured by that.
        as_they_are = self.augment is None and self.settings.precision == "fp32"
        return Preparation(
            teacher.model,
            self._inputs,
            self.train_rows.labels,
            self.stage.seed,
            self.train_rows.hidden,
            self.teacher.kept[0] if self.teacher.kept and as_they_are else None,
        )

    def _views(self) -> list[Rows]:
        """Return the training rows in every way in which they are shown; none where there are too many to compute."""
        if self.crop is not None:
            return []
        if self.augment is None:
            return [self.train_rows]
        if self.augment.choices > MOST_VIEWS:
            return []
        return [self.train_rows.changed(partial(self._augmented, choice)) for choice in range(self.augment.choices)]

    def _augmented(self, choice: int, inputs: Tensor) -> Tensor:
        assert self.augment is not None
        return self.augment.apply(inputs, torch.full((len(inputs),), choice))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _loss_sums(self) -> LossSums:
        """Return the sums of the epoch so far, as `position` has them."""
        names = ("total", *self.objective.names)
        return LossSums(names, self.position.sums, self.position.rows, self.position.step)

    def _settle(self, order: Tensor) -> None:
        """Sum up the losses of the last steps; refuse NaN and Inf."""
        try:
            self.losses.settle()
        except NotFiniteError as error:
            self._diverged(error, order)
        self.position.sums, self.position.rows = self.losses.sums, self.losses.rows

    def _diverged(self, error: NotFiniteError, order: Tensor) -> None:
        step, batch = error.step, self.settings.batch_size
        rows = self.train_rows.row_ids[order[step * batch : (step + 1) * batch].cpu().numpy()].tolist()
        values = {name: str(value) for name, value in error.losses.items()}
        record = {
            "stage": self.stage.name,
            "epoch": self.position.epoch + 1,
            "step": step,
            "losses": values,
            "row_ids": rows,
        }
        write_json(self.folder / "diverged.json", record)
        raise TrainingError(
            f"stage {self.stage.name}: the loss is not finite in epoch {self.position.epoch + 1}, step {step + 1}: "
            + ", ".join(f"{name} {value}" for name, value in values.items()),
            f"The batch's row ids are in {self.folder / 'diverged.json'}; the last good checkpoint is kept. "
            "Try a smaller lr, warmup_epochs, or clip_norm.",
        ) from None

    def _end_epoch(self) -> None:
        position = self.position
        accuracy = None
        if self.validation_rows is not None:
            accuracy = self._accuracy(self.validation_rows)
            if self.settings.select == "best" and accuracy > position.best_accuracy:
                position.best_accuracy, position.best_epoch = accuracy, position.epoch + 1
                self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        position.records.append(
            {
                "epoch": position.epoch + 1,
                "lr": self.optimizer.param_groups[0]["lr"],
                "losses": self.losses.means,
                "validation_accuracy": accuracy,
                "test_accuracy": self._accuracy(self.test_rows) if self.test_rows is not None else None,
                "seconds": round(position.epoch_seconds, 3),
                "rows_per_s": round(position.rows / max(position.epoch_seconds, 1e-9), 1),
                **self.watch.end_epoch(self._watched()),
            }
        )
        self._report(accuracy, ended=True)
        self.position = replace(
            position,
            epoch=position.epoch + 1,
            step=0,
            sums=[],
            rows=0,
            epoch_seconds=0.0,
        )
        self.losses = self._loss_sums()
        self._write_log()
        if self._checkpoint_is_due():
            self._save_checkpoint()

    def _watched(self) -> Tensor | None:
        """Return the inputs on which the watch looks at channels, None where it has none to look at."""
        if not self.watch.signed:
            return None
        return self._inputs(torch.arange(min(WATCHED_ROWS, len(self.train_rows)), device=self.device))

    def _accuracy(self, rows: Rows) -> float:
        logits = predict(self.model, self.preprocess, rows)
        return score(logits, rows.labels, self.stage.heads.subclasses).accuracy

    def _report(self, accuracy: float | None, *, ended: bool = False) -> None:
        position = self.position
        done = position.epoch + position.step / self.steps
        speed = position.rows / max(position.epoch_seconds, 1e-9)
        rows_left = (self.epochs - done) * len(self.train_rows)
        if accuracy is None and position.records:
            accuracy = position.records[-1]["validation_accuracy"]
        self.notify(
            Progress(
                stage=self.stage.name,
                epoch=position.epoch + 1,
                epochs=self.epochs,
                fraction=done / self.epochs,
                losses=self.losses.means,
                validation_accuracy=accuracy,
                rows_per_s=speed,
                seconds_left=rows_left / max(speed, 1e-9),
                epoch_ended=ended,
            )
        )

    def _write_log(self) -> None:
        lines = [json.dumps({"stage": self.stage.name, **record}) for record in self.position.records]
        write_atomically(self.folder / "log.jsonl", "\n".join(lines) + "\n")

    def _save_checkpoint(self) -> None:
        tensors = {
            **with_prefix("model", self.model.state_dict()),
            **with_prefix("objective", self.objective.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
            **with_prefix("best", self.best),
            **with_prefix("signs", self.watch.signs),
            "random.cpu": torch.get_rng_state(),
            "random.augment": self.augment_generator.get_state(),
        }
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        step = self.position.epoch * self.steps + self.position.step
        save_checkpoint(self.folder / "checkpoint", step, tensors, vars(self.position), key=self.stage.key)
        self.last_checkpoint = time.monotonic()

    def _resume(self) -> None:
        checkpoint, damaged = newest_checkpoint(self.folder / "checkpoint", key=self.stage.key)
        for name in damaged:
            self.notify(f"warning: {self.stage.name}: checkpoint {name} is damaged and was passed over")
        if checkpoint is not None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        self.model.load_state_dict(without_prefix("model", tensors))
        self.objective.load_state_dict(without_prefix("objective", tensors))
        restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
        self.best = {name: value.to(self.device) for name, value in without_prefix("best", tensors).items()}
        self.watch.signs = {name: value.to(self.device) for name, value in without_prefix("signs", tensors).items()}
        torch.set_rng_state(tensors["random.cpu"])
        self.augment_generator.set_state(tensors["random.augment"])
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.position = _Position(**checkpoint.state)
        self.losses = self._loss_sums()
        self.resumed_at_step = checkpoint.step
        self.notify(f"{self.stage.name}: continued at epoch {self.position.epoch + 1}, step {self.position.step}")


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Leave the caller's random states as they were, whatever the block draws."""
    with torch.random.fork_rng():
        yield
