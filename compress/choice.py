"""Which student to ship: what was measured of all of them, which ones no other beats, and one sentence."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.units import milliseconds, size
from runtime.errors import UsageError

LOCAL = "local"


@dataclass(frozen=True)
class Candidate:
    """An exported file on a device. accuracy, low, high: a share with its 95 % interval; parity: whether it passed.

    limits: what the device allows, with the least accuracy of this student by them.
    """

    recipe: str
    name: str
    variant: str
    format: str
    target: str
    accuracy: float
    low: float
    high: float
    p50_ms: float
    p90_ms: float | None
    size_bytes: int
    parity: bool
    limits_missed: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    accuracy_floor: float | None = None

    @property
    def label(self) -> str:
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.recipe}: {self.name}{variant}"

    @property
    def sound(self) -> bool:
        return self.parity and not self.limits_missed


def candidates_of(folder: Path) -> list[Candidate]:
    """Return what the run in `folder` measured. Raises UsageError where it left no report."""
    path = folder / "report.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["rows"]
        return candidates_from(document["recipe"], rows)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Name the folder of a finished run.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a report of edgefold ({error!r})", "Run the recipe again.") from None


def candidates_from(recipe: str, rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Return the measured exports among the rows of a report, as plain data."""
    return [_candidate(recipe, row) for row in rows if row["what"] == "export" and row["p50_ms"]]


def limits_in_words(limits: Mapping[str, float]) -> str:
    """Return "p90 ≤ 5 ms, size ≤ 300 kB"."""
    return ", ".join(f"{_LIMITS[name][0]} ≤ {allowed:g} {_LIMITS[name][1]}" for name, allowed in limits.items())


_LIMITS = {
    **{f"{each}_ms": (each, "ms") for each in ("p50", "p90", "p99")},
    "size_kb": ("size", "kB"),
    "accuracy_drop_points": ("loss of accuracy", "points"),
}


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that none on the same device beats: as accurate, as fast and as small, and better in one of them.

    What failed parity or a limit beats none, and is none of them.
    """
    sound = [each for each in candidates if each.sound]
    return [each for each in sound if not any(_beats(other, each) for other in sound)]


def chosen(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest of those that the most accurate one is not surely better than; None where none is sound.

    That is, whose accuracy lies within the most accurate one's 95 % interval: a smaller difference is luck of the rows.
    """
    sound = [each for each in candidates if each.sound]
    best = max(sound, key=lambda each: each.accuracy, default=None)
    if best is None:
        return None
    return min((each for each in sound if each.accuracy >= best.low), key=lambda each: (each.p50_ms, each.size_bytes))


def sentences(candidates: Sequence[Candidate]) -> list[str]:
    """Say for each device which student to ship, and why."""
    said = []
    for target in dict.fromkeys(each.target for each in candidates):
        here = [each for each in candidates if each.target == target]
        limits = limits_in_words(here[0].limits)
        pick = chosen(here)
        if pick is None:
            said.append(f"On {target}: none passed parity and the limits{f' ({limits})' if limits else ''}.")
            continue
        best = max((each for each in here if each.sound), key=lambda each: each.accuracy)
        why = "the most accurate one"
        if pick is not best:
            why = f"the fastest within the interval of the most accurate one, {best.label} ({_percent(best.accuracy)})"
        elif len(here) == 1:
            why = "the only one"
        numbers = f"{_percent(pick.accuracy)}, {milliseconds(pick.p50_ms)} a call, {size(pick.size_bytes)}"
        within = f", within its limits ({limits})" if limits else ""
        said.append(f"On {target}: ship {pick.label}, {numbers}{within}; {why}.")
    return said


def to_json(candidates: Sequence[Candidate]) -> dict[str, Any]:
    best = front(candidates)
    rows = [{**asdict(each), "on_front": each in best} for each in candidates]
    return {"format_version": 1, "candidates": rows, "sentences": sentences(candidates)}


def to_csv(candidates: Sequence[Candidate]) -> str:
    buffer = io.StringIO()
    rows = to_json(candidates)["candidates"]
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        words = {"limits_missed": "; ".join(row["limits_missed"]), "limits": limits_in_words(row["limits"])}
        writer.writerow({**row, **words})
    return buffer.getvalue()


def _candidate(recipe: str, row: Mapping[str, Any]) -> Candidate:
    return Candidate(
        recipe=recipe,
        name=row["name"],
        variant=row["variant"],
        format=row["format"],
        target=row.get("target") or LOCAL,
        accuracy=row["mean"],
        low=row["low"],
        high=row["high"],
        p50_ms=row["p50_ms"],
        p90_ms=row["p90_ms"],
        size_bytes=row["size_bytes"],
        parity=row["parity"] == "passed",
        limits_missed=tuple(row.get("limits_missed") or ()),
        limits=row.get("limits") or {},
        accuracy_floor=row.get("accuracy_floor"),
    )


def _beats(one: Candidate, other: Candidate) -> bool:
    if one.target != other.target:
        return False
    as_good = one.accuracy >= other.accuracy and one.p50_ms <= other.p50_ms and one.size_bytes <= other.size_bytes
    same = (one.accuracy, one.p50_ms, one.size_bytes) == (other.accuracy, other.p50_ms, other.size_bytes)
    return as_good and not same


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
