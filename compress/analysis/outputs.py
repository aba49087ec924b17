"""What a trained stage says of a split, and what its teacher says of the same rows: computed once for all measures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from compress.analysis.clusters import CLUSTERED_ROWS, kmeans_labels, sampled_rows
from compress.datasets import Split
from compress.evaluate import outputs_of
from compress.ready_made import ReadyMade
from compress.rows import Rows
from compress.stages import Stages
from compress.teacher import combined
from export.fold import fold_logits
from runtime.errors import TrainingError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
SplitName = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class StageOutputs:
    """Logits (N, C*S), class-major, and embedding (N, D) of one stage on N rows. Both finite: others are refused.

    Raises TrainingError for NaN or infinity, ValueError for no rows.
    """

    stage: str
    logits: Floats
    embedding: Floats
    subclasses: int

    _clusters: dict[int, Labels] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.logits) or len(self.logits) != len(self.embedding):
            raise ValueError(
                f"logits are {self.logits.shape} and embedding {self.embedding.shape}; expected equal rows, at least 1"
            )
        for name, values in (("logits", self.logits), ("embedding", self.embedding)):
            bad = int((~np.isfinite(values)).any(1).sum())
            if bad:
                raise TrainingError(
                    f"stage '{self.stage}': {name} of {bad:,} of {len(values):,} rows are not finite",
                    "Such a model cannot be analysed: train it with a lower learning rate or with train.clip_norm.",
                )

    @property
    def clustered_rows(self) -> NDArray[np.intp]:
        """Return the positions of the rows that `clusters` is of: equal for all stages of a run."""
        return sampled_rows(len(self.embedding), CLUSTERED_ROWS)

    def clusters(self, count: int) -> Labels:
        """Return the k-means cluster, of `count`, of the embedding of each of `clustered_rows`; computed once."""
        if count not in self._clusters:
            self._clusters[count] = kmeans_labels(self.embedding[self.clustered_rows], count)
        return self._clusters[count]

    @cached_property
    def class_log_probabilities(self) -> Floats:
        """Return log p (N, C) at tau 1, folded where there are subclasses, in nats."""
        folded = fold_logits(torch.from_numpy(self.logits), self.subclasses)
        log_p: Floats = folded.log_softmax(1).numpy()
        return log_p

    @property
    def class_probabilities(self) -> Floats:
        return np.exp(self.class_log_probabilities)

    @property
    def class_logits(self) -> Floats:
        """Return the logits (N, C) that a deployed model gives."""
        logits: Floats = fold_logits(torch.from_numpy(self.logits), self.subclasses).numpy()
        return logits


class OutputsOfRun:
    """The outputs of a run's stages, each computed when it is first asked for."""

    def __init__(self, run: Stages) -> None:
        self.run = run
        self._kept: dict[tuple[str, SplitName], StageOutputs] = {}

    def split(self, name: SplitName) -> Split:
        return self.run.dataset.test if name == "test" else self.run.dataset.validation

    def __call__(self, stage: str, split: SplitName = "test") -> StageOutputs:
        """Return what a trained stage gives for the rows of a split."""
        return self._of(stage, stage, self.run.plan.stage(stage).heads.subclasses, split)

    def _of(self, name: str, source: str | ReadyMade, subclasses: int, split: SplitName) -> StageOutputs:
        kept = (source if isinstance(source, str) else json.dumps(source.identity), split)
        if kept not in self._kept:
            rows = self.run.test_rows if split == "test" else Rows(self.split(split), self.run.device)
            output = outputs_of(self.run.teacher_model(source), self.run.preprocess, rows)
            logits, embedding = (each.cpu().double().numpy() for each in (output.logits, output.embedding))
            self._kept[kept] = StageOutputs(name, logits, embedding, subclasses)
        return self._kept[kept]

    def of_teacher(self, stage: str, split: SplitName = "test") -> StageOutputs | None:
        """Return what the teacher of a stage gives for the same rows, None where it has none.

        Several teachers give combined logits and an embedding without width.
        """
        plan = self.run.plan.stage(stage)
        each = [
            self(teacher, split)
            if isinstance(teacher, str)
            else self._of(teacher.name, teacher, teacher.subclasses, split)
            for teacher in plan.taught_by
        ]
        if len(each) < 2:
            return each[0] if each else None
        logits = combined([torch.from_numpy(one.logits) for one in each], plan.spec.ensemble or "mean")
        nothing = np.empty((len(logits), 0))
        return StageOutputs(" + ".join(plan.teacher_names), logits.numpy(), nothing, each[0].subclasses)
