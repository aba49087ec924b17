"""What a recipe can name, from the tables themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.cost import cost_of
from compress.datasets import SOURCES
from compress.kinds import Spec
from compress.library import shipped_recipes
from compress.models import MODELS
from compress.objectives import OBJECTIVES
from compress.recipe import load_recipe
from compress.units import count
from compress.variants import load_variants


def catalogue() -> dict[str, list[dict[str, str]]]:
    """Return name, summary and options of every objective, model, data set and shipped recipe."""
    tables: dict[str, dict[str, Any]] = {"objectives": OBJECTIVES, "models": MODELS, "datasets": SOURCES}
    found = {section: [_entry(kind, spec) for kind, spec in table.items()] for section, table in tables.items()}
    recipes = [{"name": name, "summary": load_recipe(path)[0].description} for name, path in shipped_recipes().items()]
    return {**found, "recipes": recipes}


def recipes_with_cost() -> list[dict[str, str]]:
    """Return name, summary, and what each shipped recipe costs and needs. Takes a second or so: models are profiled."""
    return [_recipe_entry(name, path) for name, path in shipped_recipes().items()]


def _recipe_entry(name: str, path: Path) -> dict[str, str]:
    variants = load_variants(path)
    cost = cost_of(variants)
    size = "cost known when the data is there"
    if cost.steps is not None and cost.macs is not None:
        size = f"{count(cost.steps)} steps, {count(cost.macs)} MACs"
    runs = f"{cost.runs} run{'s'[: cost.runs != 1]}"
    return {"name": name, "summary": variants[0].recipe.description, "options": f"{cost.data}; {runs}, {size}"}


def _entry(kind: str, spec: type[Spec]) -> dict[str, str]:
    summary = (spec.__doc__ or "").strip().splitlines()[0]
    return {
        "name": kind,
        "summary": summary,
        "options": ", ".join(_option(name, spec) for name in spec.model_fields),
    }


def _option(name: str, spec: type[Spec]) -> str:
    field = spec.model_fields[name]
    if field.is_required():
        return f"{name} (required)"
    default = field.get_default(call_default_factory=True)
    return f"{name}: {list(default) if isinstance(default, tuple) else default}"
