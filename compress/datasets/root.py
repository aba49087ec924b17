"""Where data lies, and what to say when it does not."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.errors import DataError

ENVIRONMENT = "EDGEFOLD_DATA"


def find_root(argument: str | Path | None, in_recipe: str | None) -> Path | None:
    """Return the data root: the argument (--data-root), else the recipe's, else EDGEFOLD_DATA, else None."""
    named = argument or in_recipe or os.environ.get(ENVIRONMENT)
    return Path(named).expanduser() if named else None


def locate(path: str, root: Path | None) -> Path:
    """Return the folder `path` of a recipe, which is relative to the root or, without one, to the shell."""
    return (root or Path()) / Path(path).expanduser()


def missing(noun: str, folder: Path | str, problem: str, layout: str, *, named_by_root: bool) -> DataError:
    """Return the error for data that is not there.

    layout: the files to put there, one a line, with full paths. named_by_root: the folder is looked up under
    the data root, so the ways to name the root belong to the remedy.
    """
    remedy = f"Put these files there:\n{layout}"
    if named_by_root:
        remedy += (
            f"\nName the folder that holds '{Path(folder).name}' in one of three ways: --data-root DIR,\n"
            f"`data: {{root: DIR}}` in the recipe, or the environment variable {ENVIRONMENT}=DIR."
        )
    return DataError(f"{noun}: {problem} ({folder})", remedy=remedy)
