"""Latency results in the files that `bench` writes: of one format, of several, and of devices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.comparison import MedianRatio, median_ratio, processes_of
from runtime.errors import DataError, UsageError


@dataclass(frozen=True)
class Compared:
    """Two results: what they are called, the ratio of their medians, and whether they are of one machine."""

    first: str
    second: str
    ratio: MedianRatio
    one_machine: bool

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, **self.ratio.to_json()}


def compare_files(paths: Sequence[Path]) -> list[Compared]:
    """Compare the results of one file with its first one, or those of several files with their equals in the first.

    Equals are of the same device and format; files of one result each are compared whatever they are of.
    Raises UsageError where there is nothing to compare with, DataError for a file that holds no results.
    """
    files = {path: results_in(path) for path in paths}
    if len(paths) == 1:
        first, *others = files[paths[0]].items()
        if not others:
            raise UsageError(
                "one latency result is nothing to compare", "Name two files that `edgefold bench --output` wrote."
            )
        return [_compared(first, other) for other in others]
    pairs = []
    for path in paths[1:]:
        pairs += list(_equals(paths[0], files[paths[0]], path, files[path]))
    return [_compared(first, second) for first, second in pairs]


def results_in(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results of a file by their names: `int8`, `pi4 int8`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    found = list(_within(document))
    if not found:
        kind = document.get("kind") if isinstance(document, dict) else None
        came = f"a result of {kind}" if kind else "no result of bench"
        raise DataError(f"{path}: {came}, expected one of bench", "Give a file that `edgefold bench --output` wrote.")
    return {_name(each): each for each in found}


def _within(document: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        return
    if document.get("kind") == "bench":
        yield document
    elif document.get("kind") == "benches":
        yield from document["results"]
    elif "kind" not in document:  # by device and format
        for value in document.values():
            yield from _within(value)


def _name(result: Mapping[str, Any]) -> str:
    target = result.get("target", {}).get("name", "")
    return f"{target} {result.get('format', '')}".strip()


Named = tuple[str, dict[str, Any]]


def _equals(
    first: Path, here: Mapping[str, dict[str, Any]], second: Path, there: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[Named, Named]]:
    if len(here) == len(there) == 1:
        yield (str(first), next(iter(here.values()))), (str(second), next(iter(there.values())))
        return
    both = [name for name in here if name in there]
    if not both:
        raise UsageError(
            f"{first} has {', '.join(here)}, and {second} has {', '.join(there)}: none is in both",
            "Measure the same formats on the same devices.",
        )
    for name in both:
        yield (f"{name} of {first}", here[name]), (f"{name} of {second}", there[name])


def _compared(first: Named, second: Named) -> Compared:
    (name, result), (other_name, other) = first, second
    ratio = median_ratio(processes_of(result, name), processes_of(other, other_name))
    return Compared(name, other_name, ratio, _machine(result) == _machine(other))


def _machine(result: Mapping[str, Any]) -> tuple[Any, ...]:
    environment = result.get("environment", {})
    return tuple(environment.get(key) for key in ("machine", "device_model", "cpu_model", "logical_cores"))
