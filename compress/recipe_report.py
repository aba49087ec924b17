"""From pydantic's errors to one screen: line, path, what came, what was expected, the nearest name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, RootModel, ValidationError

from compress.kinds import OneOf
from compress.yaml_document import Document, Path, Problem
from runtime.errors import RecipeError

# More names than this are listed only where none is near the unknown one.
LISTED_AT_MOST = 12


def recipe_error(path: FilePath, problems: Iterable[Problem]) -> RecipeError:
    """Return the error that shows every problem, in the order of the file."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.line)
    head = f"{path}: {len(ordered)} problem{'s' if len(ordered) != 1 else ''}"
    body = []
    for problem in ordered:
        where = dotted(problem.path)
        body.append(f"  line {problem.line}: {where + ': ' if where else ''}{problem.message}")
        if problem.remedy:
            body.append(f"           {problem.remedy}")
    return RecipeError("\n".join([head, *body]))


def dotted(path: Path) -> str:
    text = ""
    for element in path:
        text += f"[{element}]" if isinstance(element, int) else f".{element}" if text else str(element)
    return text


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return "Did you mean 'x'? Known: ..." for the help line of an unknown name.

    A long list is left out where a name is near.
    """
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near and len(known) > LISTED_AT_MOST:
        return f"Did you mean '{near[0]}'?"
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Known: {', '.join(known)}."


def problems_of(error: ValidationError, schema: type[BaseModel], document: Document) -> tuple[Problem, ...]:
    """Translate a validation error. Branches of one union become one problem ("a number, or 'inf'")."""
    found: dict[Path, list[tuple[str, str]]] = {}
    items = error.errors(include_url=False)
    for item in items:
        # pydantic counts only the good elements, so a list with one bad element is "too short" as well.
        if item["type"] == "too_short" and any(
            other["loc"][: len(item["loc"])] == item["loc"] != other["loc"] for other in items
        ):
            continue
        path = path_in_file(item["loc"], document)
        if item["type"] == "missing" or item["type"] == "extra_forbidden":
            path = (*path[: len(path)], item["loc"][-1]) if path[-1:] != item["loc"][-1:] else path
        found.setdefault(path, []).append(_message(dict(item), schema))
    return tuple(
        Problem(path, document.line_of(path), _either(dict.fromkeys(text for text, _ in said)), said[0][1])
        for path, said in found.items()
    )


def _either(messages: Iterable[str]) -> str:
    """Join what the branches of a union expected: "came 'hot', expected a number or 'inf'"."""
    first, *others = messages
    return " or ".join([first, *(other.rsplit("expected ", 1)[-1] for other in others)])


def path_in_file(loc: Sequence[str | int], document: Document) -> Path:
    """Return the elements of a pydantic location that stand in the file.

    Locations also hold union branches ("float") and the index 0 of a single term that was not written as a list.
    """
    path: Path = ()
    for element in loc:
        if (*path, element) in document.lines:
            path = (*path, element)
    return path


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}


def _message(item: dict[str, Any], schema: type[BaseModel]) -> tuple[str, str]:
    """Return (what is wrong, how to mend it) for one pydantic error."""
    kind, context = item["type"], item.get("ctx", {})
    came = shown(item["input"])
    if kind == "missing":
        return "is missing", "Add it."
    if kind == "extra_forbidden":
        return "unknown key", did_you_mean(str(item["loc"][-1]), keys_at(schema, item["loc"][:-1]))
    if kind == "unknown_kind":
        return item["msg"], did_you_mean(context["name"], context["known"])
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", context["expected"])
        near = get_close_matches(str(item["input"]), known, n=1, cutoff=0.5)
        return f"came {came}, expected {context['expected']}", f"Did you mean '{near[0]}'?" if near else ""
    if kind in _EXPECTED:
        return f"came {came}, expected {_EXPECTED[kind]}", ""
    if kind == "string_pattern_mismatch":
        return f"came {came}, expected letters, digits, '-' and '_', at most 64", ""
    bounds = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than"}
    bounds["less_than_equal"] = "at most"
    if kind in bounds:
        return f"came {came}, expected {bounds[kind]} {next(iter(context.values()))}", ""
    if kind == "too_short":
        return "is empty", "Give at least one."
    return item["msg"], ""


def shown(value: Any) -> str:
    """Return a value as the user wrote it, shortened."""
    if value is None:
        return "nothing"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    if isinstance(value, tuple):
        text = f"a list of {len(value)}"
    if isinstance(value, dict):
        text = f"a mapping with {', '.join(map(str, list(value)[:4])) or 'no keys'}"
    return text if len(text) <= 60 else text[:57] + "..."


def keys_at(schema: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the keys that may stand at a location, following the schema's annotations."""
    current: Any = _target((schema.model_fields["root"].annotation,)) if issubclass(schema, RootModel) else schema
    for element in loc:
        step = _step(current, element)
        current = current if step is None else step
    if isinstance(current, OneOf):
        return sorted(current.table)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


@dataclass(frozen=True)
class _AnyName:
    """A mapping whose keys are free (the stages): one step by any name leads to `inner`."""

    inner: Any


def _step(current: Any, element: str | int) -> Any:
    if isinstance(current, OneOf):
        return current.table.get(element, current.named) if isinstance(element, str) else None
    if isinstance(current, _AnyName):
        return current.inner
    if isinstance(current, type) and issubclass(current, BaseModel):
        field = current.model_fields.get(str(element))
        return None if field is None else _target((field.annotation, *field.metadata))
    return None


def _target(annotations: Sequence[Any]) -> Any:
    """Return the model or OneOf inside an annotation, looking through Annotated, unions, tuples and dicts."""
    for annotation in annotations:
        if isinstance(annotation, OneOf):
            return annotation
    for annotation in annotations:
        origin = typing.get_origin(annotation)
        if origin is dict:
            return _AnyName(_target((typing.get_args(annotation)[1],)))
        if origin in (typing.Union, types.UnionType, tuple, typing.Annotated):
            inner = _target(typing.get_args(annotation))
            if inner is not None:
                return inner
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
    return None
