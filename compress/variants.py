"""A recipe file as the runs it stands for: each combination of its sweep, each seed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.recipe import Recipe, load_recipe, recipe_from_value
from compress.recipe_checks import check_recipe
from compress.recipe_report import recipe_error
from compress.yaml_document import Document, Problem


@dataclass(frozen=True)
class Variant:
    """One run: a recipe with the swept values put in, and one seed.

    `folder` is its place below the run folder ("" when there is only one), `settings` the swept values by path.
    """

    folder: str
    settings: Mapping[str, Any]
    seed: int
    recipe: Recipe


def load_variants(path: Path) -> tuple[Variant, ...]:
    """Read a recipe file and return its runs, checked as far as is possible without data.

    Raises RecipeError naming every problem of the file at once.
    """
    recipe, document = load_recipe(path)
    combinations: list[tuple[dict[str, Any], Recipe]] = []
    problems: list[Problem] = []
    for settings, value in _combinations(document, problems):
        swept, found = recipe_from_value(value, document)
        checked = check_recipe(swept, document) if swept is not None else ()
        problems += [_in_sweep(problem, settings, document) for problem in (*found, *checked)]
        if swept is not None:
            combinations.append((settings, swept))
    if problems:
        raise recipe_error(path, problems)
    return tuple(
        Variant(_folder(i, len(combinations), seed, len(recipe.all_seeds)), settings, seed, swept)
        for i, (settings, swept) in enumerate(combinations)
        for seed in recipe.all_seeds
    )


def _combinations(document: Document, problems: list[Problem]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    sweep = document.value.get("sweep") or {}
    usable = {path: values for path, values in sweep.items() if not _refused(path, document, problems)}
    for values in itertools.product(*usable.values()):
        value = copy.deepcopy(document.value)
        for path, setting in zip(usable, values, strict=True):
            *parents, last = path.split(".")
            target = value
            for parent in parents:
                target = target[parent]
            target[last] = setting
        yield dict(zip(usable, values, strict=True)), value


def _refused(path: str, document: Document, problems: list[Problem]) -> bool:
    *parents, last = path.split(".")
    target: Any = document.value
    for parent in parents:
        target = target.get(parent) if isinstance(target, dict) else None
    at = ("sweep", path)
    if not isinstance(target, dict) or not last:
        message = f"'{path}' is not a place in this recipe"
        problems.append(
            Problem(at, document.line_of(at), message, "Name an existing key, such as stages.student.model.")
        )
        return True
    if parents == [] and last in ("name", "seed", "seeds", "sweep"):
        problems.append(Problem(at, document.line_of(at), f"'{path}' cannot be swept"))
        return True
    return False


def _in_sweep(problem: Problem, settings: Mapping[str, Any], document: Document) -> Problem:
    """Return the problem at the line of the sweep when a swept value caused it."""
    dotted = ".".join(map(str, problem.path))
    for path in settings:
        if dotted == path or dotted.startswith(path + "."):
            return Problem(problem.path, document.line_of(("sweep", path)), problem.message, problem.remedy)
    return problem


def _folder(combination: int, combinations: int, seed: int, seeds: int) -> str:
    parts = [f"variant-{combination + 1}"] if combinations > 1 else []
    parts += [f"seed-{seed}"] if seeds > 1 else []
    return "/".join(parts)
