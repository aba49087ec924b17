"""`--scale`: the same recipe with a fraction of its epochs and of its rows, to try it where the whole is too long."""

from __future__ import annotations

from typing import Any

from compress.datasets.share import LEAST_OF_A_CLASS
from compress.recipe import LabelsSpec, Recipe, StageSpec, TrainSpec

# A scaled epoch has at least so many steps: batches shrink with the rows, or there would be none. After fewer, batch
# norms still stand near the statistics that they start with, and a deep network's outputs explode in evaluation.
LEAST_STEPS = 16
# Batch norm needs more than one row.
LEAST_BATCH = 2


def scaled(recipe: Recipe, scale: float) -> Recipe:
    """Return the recipe with `scale` times its epochs (at least one) and its rows (a few of each class at least).

    What is counted in epochs or in rows shrinks along: steps of the schedule, warm-up, `stop_after`, `train_rows` and
    `labels.rows`. The batch size is cut when the rows are known (`with_smaller_batches`).
    """
    data = recipe.data
    least = LEAST_OF_A_CLASS * (data.source.declare().classes or 1)
    changes: dict[str, Any] = {"share": scale * (data.share or 1.0)}
    if data.train_rows is not None:
        changes["train_rows"] = _scaled_rows(data.train_rows, scale, least)
    stages = {name: _scaled_stage(recipe, name, scale, least) for name in recipe.stages}
    return recipe.model_copy(update={"data": data.model_copy(update=changes), "stages": stages})


def _scaled_rows(rows: int, scale: float, least: int) -> int:
    return min(rows, max(least, round(scale * rows)))


def _scaled_stage(recipe: Recipe, name: str, scale: float, least: int) -> StageSpec:
    stage = recipe.stages[name]
    changes: dict[str, Any] = {"train": _scaled_train(recipe.train_spec(name), scale)}
    if stage.labels is not None:
        rows = _scaled_rows(stage.labels.rows, scale, least // 2)  # half: a share of train may be held out
        changes["labels"] = LabelsSpec(rows=rows, rest=stage.labels.rest)
    return stage.model_copy(update=changes)


def _scaled_train(train: TrainSpec, scale: float) -> TrainSpec:
    epochs = max(1, round(scale * train.epochs))
    shrunk = epochs / train.epochs  # of the epochs that are there, not `scale`: the schedule keeps its shape
    changes: dict[str, Any] = {
        "epochs": epochs,
        "warmup_epochs": shrunk * train.warmup_epochs,
        "schedule": train.schedule.scaled(shrunk),
        "drop_last": True,  # a small last batch says little, and batch norm refuses one row
    }
    if train.stop_after is not None:
        changes["stop_after"] = min(epochs, max(1, round(shrunk * train.stop_after)))
    # Written out in full: a stage's settings stand over the recipe's, and these are of the stage by now.
    return TrainSpec.model_validate({**dict(train), **changes})


def with_smaller_batches(train: TrainSpec, rows: int) -> TrainSpec:
    """Return the options with batches of which an epoch over `rows` has at least a few.

    The learning rate shrinks with the batch, in proportion (Goyal et al. 2017): at the full rate the large networks
    diverge on a few rows.
    """
    size = max(LEAST_BATCH, min(train.batch_size, rows // LEAST_STEPS))
    optimizer = train.optimizer.model_copy(update={"lr": train.optimizer.lr * min(1.0, size / train.batch_size)})
    return train.model_copy(update={"batch_size": size, "optimizer": optimizer})
