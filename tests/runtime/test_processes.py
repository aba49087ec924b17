from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime import processes
from runtime.bench import benchmark
from runtime.errors import UsageError
from runtime.latency import decode_samples, summarize
from runtime.measure import FULL, QUICK, BenchPlan
from runtime.processes import Candidate, measured_in_turn, merged

TINY = BenchPlan(quick=True, seconds=0.02, calls=300, warm_up_seconds=0.01, warm_up_most_seconds=0.02)


def parts(bundle, count: int) -> list[dict]:
    return [json.loads(json.dumps(benchmark(bundle, plan=TINY).to_json())) for _ in range(count)]


def test_processes_share_the_minima() -> None:
    assert (FULL.processes, QUICK.processes) == (5, 1)
    assert (FULL.of_each.seconds, FULL.of_each.calls, FULL.of_each.processes) == (2.0, 133, 1)
    assert 5 * FULL.of_each.calls >= FULL.calls
    assert FULL.of_each.warm_up_seconds == FULL.warm_up_seconds
    assert QUICK.of_each == QUICK


def test_a_merged_result_is_of_all_samples(bundle) -> None:
    each = parts(bundle, 3)
    whole = merged(each)
    samples = [decode_samples(part["samples"]) for part in each]
    together = np.concatenate(samples)
    np.testing.assert_array_equal(decode_samples(whole["samples"]), together)
    expected = summarize(together).to_json()
    for key in ("calls", "min_ms", "mean_ms", "max_ms", "percentiles", "median_interval_95_ms"):
        assert whole["latency"][key] == expected[key]
    assert [process["calls"] for process in whole["processes"]] == [len(part) for part in samples]
    assert whole["throughput_rows_per_s"] == pytest.approx(1e9 / together.mean())
    loads = sorted(part["cold_start"]["session_load_ms"] for part in each)
    assert whole["cold_start"]["session_load_ms"] == loads[1]
    assert whole["warm_up"]["calls"] == sum(part["warm_up"]["calls"] for part in each)
    assert whole["load"] == {"before": each[0]["load"]["before"], "after": each[2]["load"]["after"]}


def test_drift_is_that_of_the_process_with_most_and_not_between_processes(bundle) -> None:
    each = parts(bundle, 2)
    for part, change in zip(each, (1.0, -7.5), strict=True):
        part["latency"]["drift"] = {"change_percent": change, "unstable": abs(change) > 5}
    assert merged(each)["latency"]["drift"]["change_percent"] == -7.5
    del each[0]["latency"]["drift"], each[1]["latency"]["drift"]
    assert "drift" not in merged(each)["latency"]


def test_notes_that_differ_in_figures_alone_are_one(bundle) -> None:
    each = parts(bundle, 2)
    each[0]["notes"] = ["UNSTABLE: the machine was busy: load average 3.1 on 2 cores"]
    each[1]["notes"] = ["UNSTABLE: the machine was busy: load average 12.0 on 2 cores", "something else"]
    for part in each:
        part["processes"][0]["p50_ms"] = 1.0
    assert merged(each)["notes"] == ["UNSTABLE: the machine was busy: load average 3.1 on 2 cores", "something else"]
    each[1]["processes"][0]["p50_ms"] = 1.2
    assert merged(each)["notes"][-1] == "the medians of the processes lie 18 % apart"


def test_one_process_is_as_it_was(bundle) -> None:
    (only,) = parts(bundle, 1)
    assert merged([only]) == only


def test_every_round_runs_every_candidate_in_an_order_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def one(candidate: Candidate, plan: BenchPlan) -> str:
        ran.append(candidate.options[0])
        return candidate.options[0]

    monkeypatch.setattr(processes, "_of_one_process", one)
    monkeypatch.setattr(processes, "merged", lambda parts: list(parts))
    candidates = [Candidate(Path("b"), (name,)) for name in "abc"]
    results = measured_in_turn(candidates, BenchPlan(quick=False, seconds=1, processes=6))
    assert results == [[name] * 6 for name in "abc"]
    rounds = [tuple(ran[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1


def test_processes_are_fresh_ones(bundle) -> None:
    plan = BenchPlan(quick=False, seconds=0.02, calls=700, processes=2)
    lines: list[str] = []
    (result,) = measured_in_turn([Candidate(bundle.path, ("--format", "onnx"))], plan, say=lines.append)
    assert lines == [f"measuring: process {i} of 2, 350 calls and 0.01 s at least" for i in (1, 2)]
    assert len(result["processes"]) == 2
    assert all(each["calls"] >= 350 for each in result["processes"])
    assert all(each["peak_resident_bytes"] > 1e7 for each in result["processes"])
    assert all(each["involuntary_switches"] >= 0 for each in result["processes"])


def test_what_a_process_ends_with_is_raised(bundle) -> None:
    with pytest.raises(UsageError, match="no format 'none' in this bundle"):
        measured_in_turn([Candidate(bundle.path, ("--format", "none"))], TINY)


def test_energy_is_added_up_by_counter_and_lost_with_it(bundle) -> None:
    each = parts(bundle, 2)
    for part, joules, mode in zip(each, (1.5, 2.5), ("before", "after"), strict=True):
        part["energy"] = [{"counter": "RAPL", "joules": joules, "calls": 400, "mj_per_call": 1.0}]
        part["board"] = {key: {"power_mode": f"{mode} {key}"} for key in ("before", "after")}
    whole = merged(each)
    assert whole["energy"] == [{"counter": "RAPL", "joules": 4.0, "calls": 800, "mj_per_call": 5.0}]
    assert whole["board"] == {"before": {"power_mode": "before before"}, "after": {"power_mode": "after after"}}
    del each[1]["energy"]
    assert "energy" not in merged(each)
