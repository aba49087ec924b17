"""Which student to ship: what was measured of all of them, which ones no other beats, and one sentence."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.units import millijoules, milliseconds, size
from runtime.errors import UsageError

LOCAL = "local"
EQUALLY_FAST = 0.05  # as far as a stable measurement may drift


@dataclass(frozen=True, eq=False)
class Candidate:
    """An exported file on a device. accuracy, low, high: a share with its 95 % interval; parity: whether it passed.

    format: of the file, and the engine where it is not the format's own. energy_mj: millijoules of one call, by the
    counter that counted them. latency_note: what makes its latency less than it seems, such as UNSTABLE. limits: what
    the device allowed, with the least accuracy of this student by them. data: the fingerprint of its rows, empty where
    a report is too old to say it.
    """

    recipe: str
    stage: str
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
    energy_mj: Mapping[str, float] = field(default_factory=dict)
    latency_note: str = ""
    limits_missed: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    accuracy_floor: float | None = None
    data: str = ""

    @property
    def student(self) -> tuple[str, str, str]:
        """Return what is equal for the files of one student."""
        return self.recipe, self.stage, self.variant

    @property
    def sound(self) -> bool:
        return self.parity and not self.limits_missed


def candidates_of(folder: Path) -> list[Candidate]:
    """Return what the run in `folder` measured. Raises UsageError where it left no report."""
    path = folder / "report.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["rows"]
        return candidates_from(document["recipe"], rows, document.get("data", ""))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Name the folder of a finished run.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a report of edgefold ({error!r})", "Run the recipe again.") from None


def candidates_from(recipe: str, rows: Sequence[Mapping[str, Any]], data: str = "") -> list[Candidate]:
    """Return the measured exports among the rows of a report, as plain data."""
    return [_candidate(recipe, data, row) for row in rows if row["what"] == "export" and row["p50_ms"]]


def shared_limits(candidates: Sequence[Candidate]) -> Mapping[str, float]:
    """Return the limits of a device; none where it had others in another run, by which each file was judged."""
    first = candidates[0].limits
    return first if all(each.limits == first for each in candidates) else {}


def limits_in_words(limits: Mapping[str, float]) -> str:
    """Return "p90 ≤ 5 ms, size ≤ 300 kB"."""
    return ", ".join(f"{_LIMITS[name][0]} ≤ {allowed:g} {_LIMITS[name][1]}" for name, allowed in limits.items())


_LIMITS = {
    **{f"{each}_ms": (each, "ms") for each in ("p50", "p90", "p99")},
    "size_kb": ("size", "kB"),
    "accuracy_drop_points": ("loss of accuracy", "points"),
}


def student_names(candidates: Sequence[Candidate]) -> dict[tuple[str, str, str], str]:
    """Return what to call each student: only what tells it from the others, and never nothing."""
    students = list(dict.fromkeys(each.student for each in candidates))
    recipes, stages = ({student[i] for student in students} for i in (0, 1))
    names = {}
    for recipe, stage, variant in students:
        parts = [recipe if len(recipes) > 1 else "", stage if len(stages) > 1 else "", variant]
        names[recipe, stage, variant] = " · ".join(filter(None, parts)) or stage
    return names


def labels(candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """Return the names of files: "wide · int8"."""
    names = student_names(candidates)
    return {each: f"{names[each.student]} · {each.format}" for each in candidates}


def energy_counter(candidates: Sequence[Candidate]) -> str | None:
    """Return the counter by which the energy of all of them is compared: the first that counted for each of them."""
    if not candidates:
        return None
    shared = (name for name in candidates[0].energy_mj if all(name in each.energy_mj for each in candidates))
    return next(shared, None)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that none on the same device beats: as accurate, fast, small and frugal, and better in one of them.

    Energy counts where one counter of the device counted for all of them. What failed parity or a limit beats none, and
    is none of them.
    """
    best = []
    for here in by_target(candidates).values():
        sound = [each for each in here if each.sound]
        costs = {each: _costs(each, energy_counter(sound)) for each in sound}
        best += [each for each in sound if not any(_beats(costs[other], costs[each]) for other in sound)]
    return best


def by_target(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Return what was measured on each device, in the order of the devices."""
    targets = dict.fromkeys(each.target for each in candidates)
    return {target: [each for each in candidates if each.target == target] for target in targets}


def chosen(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the smallest of the fastest that are as accurate as the most accurate one; None where none is sound.

    As accurate is what lies within its 95 % interval: a smaller difference is luck of the rows.
    Medians less than `EQUALLY_FAST` apart are luck of the machine.
    """
    sound = [each for each in candidates if each.sound]
    best = max(sound, key=lambda each: each.accuracy, default=None)
    if best is None:
        return None
    as_good = [each for each in sound if each.accuracy >= best.low]
    return min(_fastest(as_good), key=lambda each: (each.size_bytes, -each.accuracy, each.p50_ms))


def _fastest(candidates: Sequence[Candidate]) -> list[Candidate]:
    least = min(each.p50_ms for each in candidates)
    return [each for each in candidates if each.p50_ms <= (1 + EQUALLY_FAST) * least]


def sentences(candidates: Sequence[Candidate]) -> list[str]:
    """Say for each device which student to ship, and why."""
    said = []
    names = labels(candidates)
    for target, here in by_target(candidates).items():
        limits = limits_in_words(shared_limits(here))
        pick = chosen(here)
        if pick is None:
            said.append(f"On {target}: none passed parity and the limits{f' ({limits})' if limits else ''}.")
            continue
        best = max((each for each in here if each.sound), key=lambda each: each.accuracy)
        why = "the only one" if len(here) == 1 else "the most accurate one"
        if pick is not best:
            others = [each for each in here if each.sound and each.accuracy >= best.low]
            fastest = len(_fastest(others)) == 1 or pick.p50_ms == min(each.p50_ms for each in others)
            why = "the fastest" if fastest else f"the smallest of the fastest ({100 * EQUALLY_FAST:g} %)"
            why += f" within the interval of the most accurate one, {names[best]} ({_percent(best.accuracy)})"
        call = milliseconds(pick.p50_ms)
        if counter := energy_counter(here):
            call += f" and {millijoules(pick.energy_mj[counter])}"
        numbers = f"{_percent(pick.accuracy)}, {call} a call, {size(pick.size_bytes)}"
        within = f", within its limits ({limits})" if limits else ""
        doubt = " Its latency is UNSTABLE: measure again." if "UNSTABLE" in pick.latency_note else ""
        said.append(f"On {target}: ship {names[pick]}, {numbers}{within}; {why}.{doubt}")
    return said


def to_json(candidates: Sequence[Candidate]) -> dict[str, Any]:
    best, names = front(candidates), labels(candidates)
    rows = [{"name": names[each], **asdict(each), "on_front": each in best} for each in candidates]
    return {"format_version": 1, "candidates": rows, "sentences": sentences(candidates)}


def to_csv(candidates: Sequence[Candidate]) -> str:
    buffer = io.StringIO()
    rows = to_json(candidates)["candidates"]
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        energy = "; ".join(f"{counter}: {each:g}" for counter, each in row["energy_mj"].items())
        words = {"limits_missed": "; ".join(row["limits_missed"]), "limits": limits_in_words(row["limits"])}
        writer.writerow({**row, **words, "energy_mj": energy})
    return buffer.getvalue()


def _candidate(recipe: str, data: str, row: Mapping[str, Any]) -> Candidate:
    stage, _, form = row["name"].partition(" · ")
    return Candidate(
        recipe=recipe,
        stage=stage,
        variant=row["variant"],
        format=form,
        target=row.get("target") or LOCAL,
        accuracy=row["mean"],
        low=row["low"],
        high=row["high"],
        p50_ms=row["p50_ms"],
        p90_ms=row["p90_ms"],
        size_bytes=row["size_bytes"],
        parity=row["parity"] == "passed",
        energy_mj=row.get("energy_mj") or {},
        latency_note=(row.get("latency_note") or "").strip(),
        limits_missed=tuple(row.get("limits_missed") or ()),
        limits=row.get("limits") or {},
        accuracy_floor=row.get("accuracy_floor"),
        data=data,
    )


def _costs(each: Candidate, counter: str | None) -> tuple[float, ...]:
    """Return what a smaller number of is better."""
    energy = (each.energy_mj[counter],) if counter else ()
    return -each.accuracy, each.p50_ms, float(each.size_bytes), *energy


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
