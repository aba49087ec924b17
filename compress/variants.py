"""A recipe file as the runs it stands for: each combination of its sweep, each seed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from compress.formats import opset_problem
from compress.recipe import Recipe, load_recipe, recipe_from_value
from compress.recipe_checks import check_recipe
from compress.recipe_report import recipe_error
from compress.scale import scaled
from compress.yaml_document import Document, Path, Problem
from runtime.errors import UsageError

LABEL = "label"


@dataclass(frozen=True)
class Variant:
    """One run: a recipe with the swept values put in, and one seed.

    `folder` is its place below the run folder ("" when there is only one), `settings` the swept values by path, `label`
    the name that a row of the sweep gives itself, `scale` the fraction that is run of the recipe's epochs and rows,
    `opset` the one that was asked for beside the recipe, for the same student on an older engine.
    """

    folder: str
    settings: Mapping[str, Any]
    seed: int
    recipe: Recipe
    label: str = ""
    scale: float = 1.0
    opset: int | None = None

    @property
    def run_name(self) -> str:
        """Return its folder and label, "" where there is one run only."""
        return f"{self.folder}  {self.label}".strip() if self.folder else ""

    @property
    def name(self) -> str:
        """Return what results are filed and shown under: the recipe's name, marked by what was asked for beside it."""
        marks = [f"{self.scale:g}"] if self.scale != 1 else []
        marks += [f"opset{self.opset}"] if self.opset else []
        return "@".join([self.recipe.name, *marks])


@dataclass(frozen=True)
class Selection:
    """Which of a recipe's runs are meant, and at what length.

    seeds: these only. variants: these only, by label or by number from 1. scale: fraction of epochs and rows. opset: of
    the exported files, in the place of the recipe's.
    """

    seeds: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    scale: float = 1.0
    opset: int | None = None

    def of(self, recipe: Recipe) -> Recipe:
        """Return a recipe with scale and opset put in. Raises UsageError where it exports nothing in that opset."""
        shorter = recipe if self.scale == 1 else scaled(recipe, self.scale)
        return shorter if self.opset is None else _exported_in(shorter, self.opset)


WHOLE = Selection()


@dataclass(frozen=True)
class _Combination:
    """Swept values by path, from `where` in the file, and the recipe's plain data with them put in."""

    settings: Mapping[str, Any]
    value: Mapping[str, Any]
    where: Path
    label: str = ""


def load_variants(path: FilePath, selection: Selection = WHOLE) -> tuple[Variant, ...]:
    """Read a recipe file and return its runs, checked as far as is possible without data.

    Raises RecipeError naming every problem of the file at once, UsageError for a selection of what it does not have.
    """
    recipe, document = load_recipe(path)
    made: list[tuple[_Combination, Recipe]] = []
    problems: list[Problem] = []
    for combination in _combinations(document, problems):
        swept, found = recipe_from_value(combination.value, document)
        checked = check_recipe(swept, document) if swept is not None else ()
        problems += [_in_sweep(problem, combination, document) for problem in (*found, *checked)]
        if swept is not None:
            made.append((combination, swept))
    if problems:
        raise recipe_error(path, problems)
    seeds = _chosen_seeds(recipe, selection)
    chosen = _chosen_combinations(recipe, [combination.label for combination, _ in made], selection)
    return tuple(
        Variant(
            _folder(i, len(made), seed, len(recipe.all_seeds)),
            combination.settings,
            seed,
            selection.of(swept),
            combination.label,
            selection.scale,
            selection.opset,
        )
        for i, (combination, swept) in enumerate(made)
        for seed in recipe.all_seeds
        if i in chosen and seed in seeds
    )


def _exported_in(recipe: Recipe, opset: int) -> Recipe:
    if recipe.export is None:
        raise UsageError(f"recipe {recipe.name} exports nothing", "Add `export: {stage: ...}` to it.")
    if problem := opset_problem(recipe.export.formats, opset):
        raise UsageError(f"--opset: {problem[0]}", problem[1])
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"opset": opset})})


def _chosen_seeds(recipe: Recipe, selection: Selection) -> tuple[int, ...]:
    for seed in selection.seeds:
        if seed not in recipe.all_seeds:
            known = ", ".join(map(str, recipe.all_seeds))
            raise UsageError(f"recipe {recipe.name} has no seed {seed}", f"Its seeds are {known}.")
    return selection.seeds or recipe.all_seeds


def _chosen_combinations(recipe: Recipe, labels: Sequence[str], selection: Selection) -> set[int]:
    """Return the places of the chosen variants."""
    names = [{str(i + 1), label} for i, label in enumerate(labels)]
    for name in selection.variants:
        if not any(name in those for those in names):
            known = "; ".join(f"{i + 1} {label}".strip() for i, label in enumerate(labels))
            raise UsageError(f"recipe {recipe.name} has no variant '{name}'", f"Its variants are {known}.")
    return {i for i, those in enumerate(names) if not selection.variants or those & set(selection.variants)}


def _combinations(document: Document, problems: list[Problem]) -> Iterator[_Combination]:
    """Return every combination of a grid, or every row. What cannot be swept is left out and noted in `problems`."""
    sweep = document.value.get("sweep") or {}
    if isinstance(sweep, Mapping):
        usable = {path: values for path, values in sweep.items() if _usable(path, ("sweep", path), document, problems)}
        for values in itertools.product(*usable.values()):
            settings = dict(zip(usable, values, strict=True))
            yield _Combination(settings, _with(settings, document.value), ("sweep",))
        return
    for i, row in enumerate(sweep):
        at = ("sweep", i)
        label = row.get(LABEL, "")
        if not isinstance(label, str):
            problems.append(Problem((*at, LABEL), document.line_of((*at, LABEL)), "expected text"))
            label = ""
        named = [path for path in row if path != LABEL]
        settings = {path: row[path] for path in named if _usable(path, (*at, path), document, problems)}
        yield _Combination(settings, _with(settings, document.value), at, label)


def _with(settings: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(value))
    for path, setting in settings.items():
        *parents, last = path.split(".")
        target = changed
        for parent in parents:
            target = target[parent]
        target[last] = setting
    return changed


def _usable(path: str, at: Path, document: Document, problems: list[Problem]) -> bool:
    """Return whether `path`, which stands at `at` in the file, can be swept; note in `problems` why not."""
    *parents, last = path.split(".")
    target: Any = document.value
    for parent in parents:
        target = target.get(parent) if isinstance(target, dict) else None
    if not isinstance(target, dict) or not last:
        message = f"'{path}' is not a place in this recipe"
        problems.append(
            Problem(at, document.line_of(at), message, "Name an existing key, such as stages.student.model.")
        )
        return False
    if parents == [] and last in ("name", "seed", "seeds", "sweep"):
        problems.append(Problem(at, document.line_of(at), f"'{path}' cannot be swept"))
        return False
    return True


def _in_sweep(problem: Problem, combination: _Combination, document: Document) -> Problem:
    """Return the problem at the line of the sweep when a swept value caused it."""
    dotted = ".".join(map(str, problem.path))
    for path in combination.settings:
        if dotted == path or dotted.startswith(path + "."):
            line = document.line_of((*combination.where, path))
            return Problem(problem.path, line, problem.message, problem.remedy)
    return problem


def _folder(combination: int, combinations: int, seed: int, seeds: int) -> str:
    parts = [f"variant-{combination + 1}"] if combinations > 1 else []
    parts += [f"seed-{seed}"] if seeds > 1 else []
    return "/".join(parts)
