"""What the verbs of a recipe do first: find it, choose its runs, and make what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compress.plan import Plan
    from compress.stages import Settings
    from compress.variant_run import Step


def prepared(
    recipe: str,
    *,
    runs: Path,
    data_root: Path | None,
    device: str = "auto",
    checkpoint_every: float = 30.0,
    quick: bool = False,
    targets_file: Path = Path("targets.yaml"),
    seeds: tuple[int, ...] = (),
    variants: tuple[str, ...] = (),
    scale: float = 1.0,
    opset: int | None = None,
) -> tuple[tuple[Plan, ...], Settings]:
    from compress.library import find_recipe
    from compress.pipeline import plans_of
    from compress.recipe_warnings import warnings_of
    from compress.stages import Settings
    from compress.variants import Selection

    settings = Settings(runs, data_root, device, checkpoint_every, quick, targets_file)
    plans = plans_of(find_recipe(recipe), data_root, Selection(seeds, variants, scale, opset))
    for warning in warnings_of([plan.variant for plan in plans]):
        click.echo(f"warning: {warning}", err=True)
    return plans, settings


def run_until(recipe: str, until: Step, as_json: bool, *, stage: str | None = None, **options: Any) -> None:
    from compress.pipeline import run_plans
    from compress.terminal.console import Narrator
    from compress.terminal.plans import announce
    from compress.terminal.results import print_outcome

    plans, settings = prepared(recipe, **options)
    narrator = Narrator()
    announce(plans, settings.runs)
    outcome = run_plans(plans, settings, narrator, until=until, only=stage)
    narrator.close()
    print_outcome(outcome, recipe, until, as_json)
    outcome.require_gates()
