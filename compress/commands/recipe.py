"""Verbs that take a recipe: check, plan, train, run, report, analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.commands.options import (
    data_option,
    json_option,
    quick_option,
    run_options,
    runs_option,
    selection_options,
    targets_option,
)
from compress.commands.recipe_runs import prepared, run_until
from runtime.errors import EdgefoldError, UsageError


@click.command()
@click.argument("recipes", nargs=-1)
@targets_option
@json_option
def check(recipes: tuple[str, ...], targets_file: Path, as_json: bool) -> None:
    """Check recipes without data, GPU or training; without a name, all that come with the package.

    The devices that `benchmark:` names are looked up where --targets is there.

    \b
    Example:
      edgefold check my-recipe.yaml
    """
    from compress.device_run import require_devices
    from compress.library import find_recipe, shipped_recipes
    from compress.recipe_warnings import warnings_of
    from compress.terminal.lists import print_check
    from compress.variants import load_variants

    paths = [find_recipe(name) for name in recipes] or list(shipped_recipes().values())
    results: list[dict[str, Any]] = []
    errors: list[EdgefoldError] = []
    for path in paths:
        try:
            variants = load_variants(path)
            if targets_file.exists():
                require_devices([variant.recipe for variant in variants], targets_file)
            results.append(
                {
                    "recipe": str(path),
                    "stages": len(variants[0].recipe.stages),
                    "runs": len(variants),
                    "warnings": list(warnings_of(variants)),
                    "error": None,
                }
            )
        except EdgefoldError as error:
            errors.append(error)
            results.append({"recipe": str(path), "stages": None, "runs": None, "warnings": [], "error": error.message})
    print_check(results, as_json)
    if errors:
        raise UsageError("\n".join(map(str, errors)))


@click.command()
@click.argument("recipe")
@runs_option
@data_option
@json_option
@selection_options
def plan(recipe: str, as_json: bool, **options: Any) -> None:
    """Show the resolved stages of a recipe, and which of them are finished.

    \b
    Example:
      edgefold plan quickstart
    """
    from compress.terminal.plans import print_plans

    plans, settings = prepared(recipe, **options)
    print_plans(plans, settings.runs, as_json)


@click.command()
@click.argument("recipe")
@click.option("--stage", help="Train this stage only, with those it needs.")
@run_options
def train(recipe: str, stage: str | None, as_json: bool, **options: Any) -> None:
    """Train a recipe's stages, or one of them, and stop before export.

    \b
    Example:
      edgefold train quickstart --stage teacher
    """
    run_until(recipe, "train", as_json, stage=stage, **options)


@click.command()
@click.argument("recipe")
@quick_option
@targets_option
@run_options
def run(recipe: str, quick: bool, as_json: bool, **options: Any) -> None:
    """Run a recipe end to end: train, fold, export, verify, measure, report.

    Devices that `benchmark:` names are those of --targets; a missed limit of one ends with exit code 3.

    \b
    Example:
      edgefold run quickstart
      edgefold run subclass-distillation/mnist-2x5 --data-root ~/data
      edgefold run subclass-distillation/mnist-2x5 --data-root ~/data --scale 0.02 --seed 0
    """
    run_until(recipe, "benchmark", as_json, quick=quick, **options)


@click.command()
@click.argument("recipe")
@quick_option
@targets_option
@run_options
def report(recipe: str, quick: bool, as_json: bool, **options: Any) -> None:
    """Write report.html again from a recipe's results; makes what is missing.

    Without --quick, quick measurements are made again in full.

    \b
    Example:
      edgefold report quickstart
    """
    run_until(recipe, "benchmark", as_json, quick=quick, **options)


@click.command()
@click.argument("recipe")
@click.option("--stage", help="Analyse this stage only.")
@click.option("--transfer", metavar="DATA", help="Also fit a linear probe on other data: a kind or `kind: {options}`.")
@click.option(
    "--transfer-rows", type=click.IntRange(min=1), metavar="N", help="Train rows of DATA, drawn [default: all]."
)
@click.option("--no-plots", is_flag=True, help="Leave out t-SNE and the plots.")
@run_options
def analyse(
    recipe: str, stage: str | None, transfer: str | None, transfer_rows: int | None, no_plots: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Compare student and teacher in the papers' measures; trains what is missing.

    Writes analysis.json and analysis/*.svg into the run's folder.

    \b
    Example:
      edgefold analyse quickstart
      edgefold analyse my-recipe.yaml --transfer cifar100 --transfer-rows 10000 --data-root ~/data
    """
    from compress.analysis.command import analyse_plans
    from compress.analysis.transfer import open_transfer
    from compress.terminal.console import Narrator
    from compress.terminal.results import print_analyses

    if transfer_rows is not None and transfer is None:
        raise UsageError("--transfer-rows says nothing without --transfer", "Add --transfer DATA.")
    plans, settings = prepared(recipe, **options)
    narrator = Narrator()
    probe = open_transfer(transfer, settings, transfer_rows) if transfer else None
    analyses = analyse_plans(plans, settings, narrator, only=stage, transfer=probe, with_plots=not no_plots)
    narrator.close()
    print_analyses(analyses, as_json)


VERBS = (check, plan, train, run, report, analyse)
