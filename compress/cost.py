"""What a recipe costs before anything is trained: multiply-accumulates of all its steps, and the data that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.datasets import Declaration, declare
from compress.models import profile_of
from compress.recipe import Recipe, StageSpec
from compress.rows import steps_per_epoch
from compress.variants import Variant

# The gradients with respect to inputs and to weights cost a forward pass each.
PASSES_OF_A_STEP = 3


@dataclass(frozen=True)
class Cost:
    """steps: of the optimizer. macs: of all passes forward and backward; validation, test and export are left out.

    Both are None where the number of rows or classes, or a model's shapes, are known only once its files are there.
    """

    runs: int
    steps: int | None
    macs: int | None
    data: str


def cost_of(variants: Sequence[Variant]) -> Cost:
    """Return the cost of all runs of a recipe. A stage that two runs share is trained once, and counted once."""
    stages = {
        _identity(variant, name): (variant.recipe, name) for variant in variants for name in variant.recipe.stages
    }
    costs = [_of_stage(recipe, name) for recipe, name in stages.values()]
    known = [cost for cost in costs if cost is not None]
    complete = len(known) == len(costs)
    return Cost(
        runs=len(variants),
        steps=sum(steps for steps, _ in known) if complete else None,
        macs=sum(macs for _, macs in known) if complete else None,
        data=variants[0].recipe.data.source.kind,
    )


def _identity(variant: Variant, name: str) -> tuple[object, ...]:
    """Return what is equal where two runs train the same stage, as its key would be, which only the data can tell."""
    recipe = variant.recipe
    stage = recipe.stages[name]
    parents = (*stage.teachers, *([stage.init_from] if stage.init_from else []))
    own = stage.model_dump_json(exclude={"teacher", "init_from", "expect", "train"})
    train = recipe.train_spec(name).model_dump_json()
    ancestors = tuple(_identity(variant, parent) for parent in parents)
    return variant.seed, recipe.data.model_dump_json(), own, train, ancestors


def _of_stage(recipe: Recipe, name: str) -> tuple[int, int] | None:
    """Return (steps, multiply-accumulates), or None where the declaration does not say enough."""
    declaration, stage, train = declare(recipe.data), recipe.stages[name], recipe.train_spec(name)
    if declaration.rows is None or declaration.classes is None or declaration.signature is None:
        return None
    rows = declaration.rows["train"]
    if stage.labels is not None and stage.labels.rest == "leave_out":
        rows = min(rows, stage.labels.rows)
    steps = train.epochs_run * steps_per_epoch(rows, train.batch_size, train.drop_last)
    a_row = PASSES_OF_A_STEP * _macs(stage, declaration)
    if any(term.needs for term in stage.objective):
        a_row += sum(_macs(recipe.stages[teacher], declaration) for teacher in stage.teachers)
    return steps, train.epochs_run * rows * a_row


def _macs(stage: StageSpec, declaration: Declaration) -> int:
    assert declaration.signature is not None  # the caller looked
    assert declaration.classes is not None
    outputs = declaration.classes * stage.subclasses
    return profile_of(stage.network, signature=declaration.signature, outputs=outputs).total_macs
