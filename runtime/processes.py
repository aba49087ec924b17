"""Latency over several fresh processes, and of several candidates in turn.

Two processes of one model differ by where memory happens to lie, and a machine by what else it does: so a result is of
several processes, and where candidates are compared each round runs all of them, in an order drawn anew.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.energy import Energy
from runtime.latency import decode_samples, encode_samples, summarize
from runtime.measure import BenchPlan
from runtime.own_process import run_in_own_process

# Of medians of processes, from the least to the largest: a note says so above it.
SPREAD_ABOVE = 0.05

_ORDER_SEED = 0
_FIGURES = re.compile(r"[-+]?\d[\d.,]*")  # notes that differ in these alone are one


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A bundle, and the options of `bench` that say what of it is measured, such as --format and --threads."""

    bundle: Path
    options: tuple[str, ...] = ()


def measured_in_turn(
    candidates: Sequence[Candidate], plan: BenchPlan, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Measure every candidate in `plan.processes` processes; return a document of `bench` for each, in their order.

    Raises what the first process that fails ends with.
    """
    parts: list[list[dict[str, Any]]] = [[] for _ in candidates]
    order = random.Random(_ORDER_SEED)
    for number in range(plan.processes):
        of = f" {number + 1} of {plan.processes}" if plan.processes > 1 else ""
        say(f"measuring: process{of}, {plan.of_each.calls} calls and {plan.of_each.seconds:g} s at least")
        for i in order.sample(range(len(candidates)), len(candidates)):
            parts[i].append(_of_one_process(candidates[i], plan))
    return [merged(each) for each in parts]


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one document of the documents of several processes, with all of their samples.

    Cold start and warm-up calls are medians over the processes, drift is that of the process with most of it, load is
    before the first and after the last; a note of any process is a note of the whole.
    """
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return dict(first)
    samples = np.concatenate([decode_samples(each["samples"]) for each in parts])
    summary = summarize(samples)
    latency = {**summary.to_json()}
    drifts = [each["latency"]["drift"] for each in parts if "drift" in each["latency"]]
    latency.pop("drift", None)
    if drifts:
        latency["drift"] = max(drifts, key=lambda each: abs(each["change_percent"]))
    return {
        **{name: value for name, value in first.items() if name not in ("board", "energy")},
        "seconds": sum(each["seconds"] for each in parts),
        "cold_start": {
            key: statistics.median(each["cold_start"][key] for each in parts) for key in first["cold_start"]
        },
        "warm_up": {
            "calls": sum(each["warm_up"]["calls"] for each in parts),
            "seconds": sum(each["warm_up"]["seconds"] for each in parts),
            "steady": all(each["warm_up"]["steady"] for each in parts),
        },
        "latency": latency,
        "throughput_rows_per_s": _throughput(parts, summary.mean_ns),
        "load": {"before": first["load"]["before"], "after": last["load"]["after"]},
        **_board(first, last),
        **_energy(parts),
        "processes": [process for each in parts for process in each["processes"]],
        "notes": _notes(parts),
        "samples": encode_samples(samples),
    }


def _throughput(parts: Sequence[Mapping[str, Any]], mean_ns: float) -> float:
    """Return rows per second: of engine time, and of wall time where the scenario is offline."""
    if parts[0].get("scenario") == "offline":
        calls = sum(each["latency"]["calls"] for each in parts)
        return float(parts[0]["batch"] * calls / sum(each["seconds"] for each in parts))
    return float(parts[0]["batch"] / mean_ns * 1e9) if mean_ns else 0.0


def _board(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    if "board" not in first or "board" not in last:
        return {}
    return {"board": {"before": first["board"]["before"], "after": last["board"]["after"]}}


def _energy(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what every counter counted that all processes have, with the calls of all of them."""
    by_counter = [{each["counter"]: each for each in part.get("energy", ())} for part in parts]
    found = []
    for name in by_counter[0]:
        if all(name in each for each in by_counter):
            joules = sum(each[name]["joules"] for each in by_counter)
            found.append(Energy(name, joules, sum(each[name]["calls"] for each in by_counter)).to_json())
    return {"energy": found} if found else {}


def _of_one_process(candidate: Candidate, plan: BenchPlan) -> dict[str, Any]:
    share = plan.of_each
    options = ["--processes", 1, "--seconds", share.seconds, "--calls", share.calls]
    options += ["--quick"] if plan.quick else []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        run_in_own_process("bench", candidate.bundle, *candidate.options, *options, "--output", output)
        document: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return document


def _notes(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the notes of all processes, each once, and how far their medians lie apart where that is much."""
    notes: dict[str, str] = {}
    for note in (note for each in parts for note in each["notes"]):
        notes.setdefault(_FIGURES.sub("#", note), note)
    found = list(notes.values())
    medians = [process["p50_ms"] for each in parts for process in each["processes"]]
    spread = (max(medians) - min(medians)) / statistics.median(medians)
    if spread > SPREAD_ABOVE:
        found.append(f"the medians of the processes lie {100 * spread:.0f} % apart")
    return found
