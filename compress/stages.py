"""The stages of one variant: its data, its trained models, and the training of what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from compress.artifact import StageArtifact, StageStore, locked
from compress.datasets import Dataset, Split, load
from compress.datasets.base import Int64Array
from compress.evaluate import agreement, predict, score
from compress.known_rows import known_rows
from compress.models import Classifier
from compress.plan import Plan, StagePlan
from compress.progress import Notify
from compress.ready_made import ReadyMade
from compress.recipe_report import did_you_mean
from compress.rows import Rows
from compress.targets import DEFAULT_FILE
from compress.teacher import Ensemble, Teacher, frozen
from compress.train import Trainer, own_random_state
from export.fold import fold_logits
from export.graph import Preprocess
from runtime.errors import TrainingError, UsageError
from runtime.files import remove_leftovers, write_json


@dataclass(frozen=True)
class Settings:
    """Where and how to run; nothing here changes what a recipe's stages are."""

    runs: Path = Path("runs")
    data_root: Path | None = None
    device: str = "auto"
    checkpoint_every_s: float = 30.0
    quick: bool = False
    targets: Path = DEFAULT_FILE

    @property
    def cache(self) -> Path:
        return self.runs / "cache"


def torch_device(name: str) -> torch.device:
    """Return the device of `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises UsageError when it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device '{name}' is not known", "Use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' is not supported", "Use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count() > 0:
        raise UsageError(f"device '{name}' is not here: there are {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is usable here", "Use --device cpu, or see `edgefold doctor`.")
    return device


def run_folder(plan: Plan, settings: Settings) -> Path:
    return settings.runs / plan.name / plan.variant.folder


class Stages:
    """What a variant has on disk below `runs`, by stage. `artifacts` holds the finished stages once `train` has run."""

    def __init__(self, plan: Plan, settings: Settings, notify: Notify) -> None:
        self.plan = plan
        self.settings = settings
        self.notify = notify
        self.device = torch_device(settings.device)
        self.store = StageStore(settings.runs)
        self.folder = run_folder(plan, settings)
        self.artifacts: dict[str, StageArtifact] = {}

    @cached_property
    def dataset(self) -> Dataset:
        recipe = self.plan.recipe
        return load(
            recipe.data,
            seed=self.plan.variant.seed,
            data_root=self.settings.data_root,
            cache=self.settings.cache,
        )

    @cached_property
    def test_rows(self) -> Rows:
        return Rows(self.dataset.test, self.device)

    @cached_property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.dataset.signature, self.dataset.normalization).to(self.device)

    def train(self, only: str | None = None) -> None:
        """Make every stage (or `only` one, with those it needs), reusing finished ones; write run.json.

        run.json keeps the stages of earlier calls that are still those of the recipe.
        """
        if only is not None and only not in self.plan.recipe.stages:
            raise UsageError(f"no stage '{only}'", did_you_mean(only, list(self.plan.recipe.stages)))
        for stage in self.plan.stages:
            if only is None or stage.name in self._ancestry(only):
                self.artifacts[stage.name] = self._stage(stage)
        write_json(
            self.folder / "run.json",
            {
                "format_version": 1,
                "recipe": self.plan.name,
                "settings": dict(self.plan.variant.settings),
                "seed": self.plan.variant.seed,
                "stages": self._named_stages(),
            },
        )

    def _named_stages(self) -> dict[str, str]:
        """Return the key of each stage that was made now, or before by the same recipe, in running order."""
        try:
            before = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["stages"].items()
        except (OSError, ValueError, KeyError, AttributeError):
            before = ()
        made = {*before, *((name, artifact.key) for name, artifact in self.artifacts.items())}
        return {stage.name: stage.key for stage in self.plan.stages if (stage.name, stage.key) in made}

    def _ancestry(self, name: str) -> set[str]:
        return {name}.union(*(self._ancestry(parent) for parent in self.plan.stage(name).parents))

    def _stage(self, stage: StagePlan) -> StageArtifact:
        lock = self.store.root / f"{stage.key}.lock"
        with locked(lock, f"stage {stage.name} ({stage.key[:12]})", self.notify):
            found = self.store.find(stage.key, self.notify)
            if found is not None:
                return found
            remove_leftovers(self.store.folder(stage.key))
            return self._train(stage)

    def _train(self, stage: StagePlan) -> StageArtifact:
        teacher = self._teacher(stage)
        initial = self.artifacts[stage.init_from].weights() if stage.init_from else None
        with own_random_state():
            trainer = Trainer(
                stage,
                self._data_of(stage, teacher),
                teacher,
                initial=initial,
                device=self.device,
                folder=self.store.folder(stage.key),
                notify=self.notify,
                checkpoint_every_s=self.settings.checkpoint_every_s,
            )
            trained = trainer.run()
        metrics = {
            "epoch": trained.epoch,
            "parameters": stage.parameters,
            **{name: value for name, value in trained.records[-1].items() if name == "binary"},
            **self._metrics(stage, trained.model, teacher),
        }
        return self.store.save(stage.key, trained.model.state_dict(), resolved=stage.resolved, metrics=metrics)

    def _teacher(self, stage: StagePlan) -> Teacher | None:
        if not stage.taught_by:
            return None
        models = [self.teacher_model(each) for each in stage.taught_by]
        model = models[0] if len(models) == 1 else Ensemble(models, stage.spec.ensemble or "mean")
        return frozen(model, stage.heads.teacher_subclasses or 1)

    def _data_of(self, stage: StagePlan, teacher: Teacher | None) -> Dataset:
        """Return the data set with the training rows and labels that the stage knows."""
        if stage.spec.labels is None:
            return self.dataset
        train = known_rows(self.dataset.train, stage.spec.labels, stage.seed, partial(self._classes, teacher))
        return replace(self.dataset, train=train)

    def _classes(self, teacher: Teacher | None, split: Split) -> Int64Array:
        """Return the classes (N,) that the teacher predicts."""
        assert teacher is not None  # recipe_checks
        logits = predict(teacher.model, self.preprocess, Rows(split, self.device))
        return fold_logits(logits, teacher.subclasses).argmax(1).cpu().numpy()

    def _metrics(self, stage: StagePlan, model: Classifier, teacher: Teacher | None) -> dict[str, Any]:
        subclasses = stage.heads.subclasses
        logits = predict(model, self.preprocess, self.test_rows)
        if not bool(logits.isfinite().all()):
            raise TrainingError(
                f"stage {stage.name}: its logits on the test rows are not finite, though its weights are",
                "Train longer, so that batch norms settle, or try a smaller lr or weight of a term.",
            )
        metrics: dict[str, Any] = {
            "test": score(logits, self.test_rows.labels, subclasses).to_json(),
            "validation": None,
            "agreement_with_teacher": None,
        }
        if len(self.dataset.validation):
            rows = Rows(self.dataset.validation, self.device)
            metrics["validation"] = score(predict(model, self.preprocess, rows), rows.labels, subclasses).to_json()
        if teacher is not None:
            taught = predict(teacher.model, self.preprocess, self.test_rows)
            metrics["agreement_with_teacher"] = agreement(logits, subclasses, taught, teacher.subclasses)
        return metrics

    def teacher_model(self, teacher: str | ReadyMade) -> Classifier:
        """Return the model of an earlier stage or of a file, in evaluation mode."""
        if isinstance(teacher, str):
            return self.model(teacher)
        return teacher.build(self.preprocess).to(self.device).eval()

    def model(self, stage_name: str) -> Classifier:
        """Return a trained stage's model, in evaluation mode."""
        model = self.plan.stage(stage_name).build_model()
        model.load_state_dict(self.artifacts[stage_name].weights())
        return model.to(self.device).eval()
