"""`like: OTHER` in a stage: what it does not say itself, it takes from an earlier stage.

Works on plain data before the schema sees it, so a recipe without `like` and one that spells everything out are the
same recipe, with the same keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.recipe_report import did_you_mean
from compress.yaml_document import Document, Problem

# A published number belongs to the stage that it was measured on.
NOT_INHERITED = frozenset({"expect"})


def with_inherited(value: Any, document: Document) -> tuple[Any, tuple[Problem, ...]]:
    """Return the recipe's plain data with every `like` carried out, and what is wrong with those that cannot be.

    `train` is taken key by key, as a stage's own `train` overrides the recipe's; everything else is taken whole. A
    stage whose `like` is wrong is left without it. What is no mapping is left for the schema to refuse.
    """
    stages = value.get("stages") if isinstance(value, Mapping) else None
    if not isinstance(stages, Mapping):
        return value, ()
    resolved: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, stage in stages.items():
        if not isinstance(stage, Mapping) or "like" not in stage:
            resolved[name] = stage
            continue
        own = {key: setting for key, setting in stage.items() if key != "like"}
        found = [Problem(path, document.line_of(path), *said) for path, *said in _wrong(name, stage["like"], stages)]
        problems += found
        resolved[name] = own if found else _merged(resolved[stage["like"]], own)
    return {**value, "stages": resolved}, tuple(problems)


def _wrong(name: str, like: Any, stages: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    at, order = ("stages", name, "like"), list(stages)
    if not isinstance(like, str):
        yield at, "expected the name of an earlier stage", ""
    elif like == name:
        yield at, "a stage cannot be like itself", f"Name a stage that stands above '{name}'."
    elif like not in stages:
        yield at, f"unknown stage '{like}'", did_you_mean(like, order[: order.index(name)])
    elif order.index(like) > order.index(name):
        yield at, f"'{like}' is a later stage", f"Move '{like}' above '{name}'."
    elif not isinstance(stages[like], Mapping):
        yield at, f"'{like}' is no mapping", "Name a stage with settings."


def _merged(other: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**{key: setting for key, setting in other.items() if key not in NOT_INHERITED}, **own}
    theirs, ours = other.get("train"), own.get("train")
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        merged["train"] = {**theirs, **ours}
    return merged
