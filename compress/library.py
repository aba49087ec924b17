"""The recipes that come with the package, found by name."""

from __future__ import annotations

import re
from pathlib import Path

import compress
from runtime.errors import RecipeError


def shipped_folder() -> Path:
    """Return the folder of shipped recipes: inside the installed package, or at the top of a checkout."""
    package = Path(compress.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the shipped recipe files by name, such as `subclass-distillation/mnist-2x5`."""
    folder = shipped_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the recipe file for a path or a shipped name.

    Raises RecipeError naming the nearest shipped recipe.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = shipped_recipes()
    if name in recipes:
        return recipes[name]
    by_stem = [key for key in recipes if key.rsplit("/", 1)[-1] == name]
    if len(by_stem) == 1:
        return recipes[by_stem[0]]
    from difflib import get_close_matches

    near = get_close_matches(name.removesuffix(".yaml"), list(recipes), n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise RecipeError(
        f"no recipe '{name}': neither a file nor the name of a shipped recipe",
        f"{hint}`edgefold list recipes` shows the shipped ones.",
    )


def recipe_name(path: Path) -> str:
    """Return the name of a recipe, under which its results lie; without torch, which reading all of it needs.

    Raises RecipeError with all that is wrong with a recipe whose name cannot be read.
    """
    from compress.kinds import NAME
    from compress.yaml_document import read_document

    try:
        name = read_document(path.read_bytes().decode("utf-8")).value["name"]
        if isinstance(name, str) and re.match(NAME, name):
            return name
    except (OSError, UnicodeDecodeError, KeyError, TypeError):
        pass  # which of them it is, and where, the schema says
    from compress.recipe import load_recipe

    return load_recipe(path)[0].name
