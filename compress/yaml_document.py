"""A strict reader for one YAML file: YAML 1.2 scalars, no repeated keys, no aliases, bounded, with line numbers.

PyYAML's own safe loader reads `1e-3` as text and `no` as False (YAML 1.1), and keeps the last of repeated
keys; all three would silently change an experiment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_NODES = 20_000
MAX_DIGITS = 30

_BEYOND_UNICODE = re.compile(r"\\U(?!000|0010)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe: its path, its line (from 1), and what to say about it."""

    path: Path
    line: int
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Document:
    """A parsed file: plain data (lists as tuples), the line of every path, and what was wrong already."""

    value: Any
    lines: dict[Path, int]
    problems: tuple[Problem, ...]

    def line_of(self, path: Path) -> int:
        """Return the line of `path` or of its nearest ancestor that stands in the file."""
        for length in range(len(path), -1, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return line
        return 1


class _Scalars(yaml.SafeLoader):
    """PyYAML's safe scanner and composer with the scalar rules of the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own form


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN", list("-+.")),
):
    _Scalars.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def read_document(text: str) -> Document:
    """Parse `text`; whatever is wrong is in `problems`, and the value holds what could be read all the same."""
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        return _failed(1, f"the file has {size:,} bytes, more than the {MAX_BYTES:,} a recipe may have")
    try:
        if problem := _over_a_bound(text):
            return Document(None, {}, (problem,))
        root = yaml.compose(text, Loader=_Scalars)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        return _failed(*_syntax_error(error, text))
    if root is None:
        return _failed(1, "the file is empty")
    lines: dict[Path, int] = {}
    problems: list[Problem] = []
    value = _value(root, (), lines, problems)
    return Document(value, lines, tuple(problems))


def _syntax_error(error: Exception, text: str) -> tuple[int, str]:
    """Return (line, message) for what PyYAML raised."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        return mark.line + 1 if mark else 1, f"not valid YAML: {what}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"not valid YAML: character U+{ord(text[error.position]):04X} may not stand in it"
    # PyYAML hands an escape beyond Unicode to chr() as it is, and that error knows no line.
    escape = _BEYOND_UNICODE.search(text)
    line = text.count("\n", 0, escape.start()) + 1 if escape else 1
    return line, "not valid YAML: an escape in quoted text names no character"


def _failed(line: int, message: str) -> Document:
    return Document(None, {}, (Problem((), line, message),))


def _over_a_bound(text: str) -> Problem | None:
    # On events, because composing recurses: a deep file would end in RecursionError instead of a message.
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Scalars)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return Problem((), line, f"nested deeper than {MAX_DEPTH} levels")
        if count > MAX_NODES:
            return Problem((), line, f"more than {MAX_NODES:,} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return Problem((), line, "anchors and aliases (& and *) are not used in recipes", "Write the value out.")
        if getattr(event, "tag", None):
            remedy = "Write text, numbers, lists and mappings only."
            return Problem((), line, "tags (!) are not used in recipes", remedy)
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            remedy = "Write the character itself."
            return Problem((), line, "an escape in quoted text names half a character", remedy)
    return None


def _value(node: yaml.Node, path: Path, lines: dict[Path, int], problems: list[Problem]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return dict(_entries(node, path, lines, problems))
    if isinstance(node, yaml.SequenceNode):
        return tuple(_value(child, (*path, i), lines, problems) for i, child in enumerate(node.value))
    assert isinstance(node, yaml.ScalarNode)  # there is no fourth kind
    return _scalar(node, path, problems)


def _entries(
    node: yaml.MappingNode, path: Path, lines: dict[Path, int], problems: list[Problem]
) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(path, line, "a key must be a plain word"))
            continue
        key = key_node.value
        if key in seen:
            message = f"key '{key}' stands twice, first on line {seen[key]}"
            problems.append(Problem((*path, key), line, message, "Keep one of the two."))
            continue
        seen[key] = line
        lines[(*path, key)] = line
        yield key, _value(value_node, (*path, key), lines, problems)


def _scalar(node: yaml.ScalarNode, path: Path, problems: list[Problem]) -> Any:
    text = node.value
    match node.tag.rsplit(":", 1)[-1]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= MAX_DIGITS:
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text[2:] if base != 10 else text, base)
        case "int":
            problems.append(Problem(path, node.start_mark.line + 1, f"a number of {len(text)} digits"))
            return None
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            return text
