"""LoadGen's figures beside ours, on its own samples."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import numpy as np
import pytest

from runtime import measure
from runtime.__main__ import main
from runtime.errors import EngineError, MissingExtraError
from runtime.latency import CONFIDENCE, decode_samples, largest_tail, percentile_estimate
from runtime.loadgen import _import_loadgen, measure_under_loadgen, under_loadgen
from runtime.measure import BenchPlan

try:
    LOADGEN = _import_loadgen()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

PLAN = BenchPlan(quick=True, seconds=0.1, warm_up_seconds=0.02, warm_up_most_seconds=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_early_stopping_is_loadgens_on_its_own_samples(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pauses = generator.integers(5_000, 60_000, 64)

    def call_of(pause: int):
        def call() -> list[np.ndarray]:
            end = time.perf_counter_ns() + int(pause)
            while time.perf_counter_ns() < end:
                pass
            return []

        return call

    result = measure_under_loadgen(LOADGEN, [call_of(each) for each in pauses], PLAN)
    ordered = np.sort(result.samples_ns)
    assert len(ordered) >= PLAN.calls
    assert set(result.estimates_ns) == {90.0, 99.0}
    for percent, theirs in result.estimates_ns.items():
        ours = percentile_estimate(ordered, Fraction(int(percent), 100))
        assert ours is not None
        assert ours.bound_ns == theirs
    assert result.discarded == largest_tail(len(ordered), Fraction(1, 10), 1 - CONFIDENCE) - 1
    assert result.valid


def test_a_bundle_runs_under_it(bundle) -> None:
    result = under_loadgen(bundle, format="onnx", threads=1, plan=PLAN)
    document = result.to_json()
    assert document["queries"] == len(result.samples_ns) >= 662
    assert document["valid"] is True
    assert document["early_stopping_ms"].keys() == {"p90", "p99"}
    # The same model, a callback into Python more: of the same size, and never below half of it.
    assert document["latency"]["percentiles"]["p50"]["measured_ms"] > document["warm_up_p50_ms"] / 2


def test_a_call_that_fails_is_an_error_and_not_the_end_of_the_process() -> None:
    state = {"calls": 0}

    def call() -> list[np.ndarray]:
        state["calls"] += 1
        if state["calls"] > 400:
            raise RuntimeError("engine gone")
        time.sleep(1e-4)
        return []

    with pytest.raises(EngineError, match=r"\d+ of LoadGen's calls failed; the first: engine gone"):
        measure_under_loadgen(LOADGEN, [call], PLAN)


def test_the_command_line_shows_both_sides(bundle, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measure, "QUICK", PLAN)
    output = tmp_path / "loadgen.json"
    assert main(["bench", str(bundle.path), "--quick", "--loadgen", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tiny: onnx on onnxruntime ")
    assert "LoadGen's own" in shown
    assert "valid by LoadGen's rules" in shown
    document = json.loads(output.read_text())
    assert (document["kind"], document["bundle"]["checksum"]) == ("loadgen", bundle.checksum)
    assert len(decode_samples(document["samples"])) == document["queries"]
    assert main(["bench", str(bundle.path), "--loadgen", "--batch", "2"]) == 2
    assert "one format, one row a query, in one process" in capsys.readouterr().err
