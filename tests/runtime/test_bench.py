import dataclasses
import json
import re

import numpy as np
import pytest

from runtime import bench, display
from runtime.bench import benchmark, rotation
from runtime.bench_notes import call_notes
from runtime.board import BoardState
from runtime.device import read_environment
from runtime.energy import Counter
from runtime.errors import EngineError, UsageError
from runtime.latency import decode_samples, summarize
from runtime.measure import BenchPlan

TINY = BenchPlan(quick=True, seconds=0.01, calls=700, warm_up_seconds=0.01, warm_up_most_seconds=0.05)


@pytest.fixture
def result(bundle):
    return benchmark(bundle, batch=8, threads=2, plan=TINY)


def test_document_says_everything_about_the_measurement(result, bundle):
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["bundle"] == {"name": "tiny", "recipe_key": "ab" * 32, "checksum": bundle.checksum}
    assert (document["format"], document["precision"], document["batch"]) == ("onnx", "fp32", 8)
    assert document["size_bytes"] == (bundle.path / "model.onnx").stat().st_size
    assert document["quick"] is True
    assert document["engine"]["threads"] == 2
    assert document["engine"]["providers"] == ["CPUExecutionProvider"]
    assert set(document["cold_start"]) == {"session_load_ms", "first_call_ms"}
    assert set(document["latency"]["percentiles"]) == {"p50", "p90", "p99"}
    assert document["environment"]["packages"]["onnxruntime"] == document["engine"]["version"]


def test_raw_samples_reproduce_the_summary(result):
    samples = decode_samples(result.to_json()["samples"])
    assert len(samples) >= 700
    assert summarize(samples) == result.latency


def test_throughput_is_rows_per_engine_second(result):
    seconds = float(result.samples_ns.sum()) / 1e9
    assert result.throughput_rows_per_s == pytest.approx(8 * len(result.samples_ns) / seconds)


@pytest.mark.parametrize("batch", [1, 5, 24, 30, 60])
def test_rotation_goes_through_every_sample(bundle, batch):
    samples = bundle.samples()
    batches = rotation(samples, batch)
    assert all(each.shape == (batch, 4, 3, 1) for each in batches)
    rows = np.concatenate(batches)
    assert len(rows) - len(samples) < batch
    np.testing.assert_array_equal(rows, samples.inputs[np.arange(len(rows)) % len(samples)])


def test_rotation_is_bounded(bundle):
    samples = bundle.samples()
    many = dataclasses.replace(samples, inputs=np.repeat(samples.inputs, 50, axis=0))
    assert len(rotation(many, 1)) == 256


def test_progress_tells_the_phases(bundle):
    lines = []
    benchmark(bundle, plan=TINY, progress=lines.append)
    assert lines[0].startswith("warming up: at least 10 calls")
    assert lines[1].startswith("measuring: at least 700 calls and 0.01 s, about")


def test_batch_must_be_positive(bundle):
    with pytest.raises(UsageError, match="batch is 0"):
        benchmark(bundle, batch=0, plan=TINY)


def test_failing_call_is_an_engine_error(bundle, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("device lost")

    monkeypatch.setattr(bench, "warm_up", fail)
    with pytest.raises(EngineError, match=r"model\.onnx: onnxruntime .* failed: device lost"):
        benchmark(bundle, plan=TINY)


def test_notes_say_what_makes_the_numbers_less(bundle, result):
    environment = dataclasses.replace(read_environment(), logical_cores=8, affinity=(0, 1, 2), cpu_limit=1.5)
    before = dataclasses.replace(
        result.load_before,
        cgroup_throttled_periods=3,
        thermal_throttle_events=0,
        load_average=(9.5, 1.0, 1.0),
    )
    after = dataclasses.replace(
        result.load_after, cgroup_throttled_periods=5, thermal_throttle_events=1, cpu_cooling_state=2
    )
    latency = summarize(np.array([100] * 50 + [120] * 50, dtype=np.uint64))
    warm = bench.WarmUp(calls=30, seconds=10.0, steady=False)
    notes = "\n".join(call_notes(bundle, 3, 2, warm, latency, environment, before, after))
    assert "UNSTABLE: the median changed by +20.0 %" in notes
    assert "never became steady within 10.0 s" in notes
    assert "2 threads share 1.5 cores" in notes
    assert "the machine was busy: load average 9.5 on 8 cores" in notes
    assert "batch 3 was not verified at export (verified: 1, 8)" in notes
    assert "stopped this process in 2 periods during the measurement" in notes
    assert "throttled by heat 1 times" in notes
    assert "UNSTABLE: the kernel held the CPU back against heat (cooling state 2)" in notes


def test_nothing_to_note_on_a_quiet_machine(bundle, result):
    environment = dataclasses.replace(read_environment(), logical_cores=8, affinity=None, cpu_limit=None)
    warm = bench.WarmUp(calls=30, seconds=1.0, steady=True)
    latency = summarize(np.full(100, 100, dtype=np.uint64))
    load = dataclasses.replace(
        result.load_before, cgroup_throttled_periods=3, load_average=(8.0, 9.0, 9.0), cpu_cooling_state=0
    )
    notes = call_notes(bundle, 8, 8, warm, latency, environment, load, load)
    assert not [each for each in notes if "torch" not in each]  # other tests may have loaded torch here


def test_a_board_that_is_held_back_makes_a_result_unstable_and_counters_give_energy(bundle, monkeypatch):
    states = iter([BoardState((), ("throttled",), "15W"), BoardState(("under-voltage",), ("throttled",), "15W")])
    counters = iter([{"RAPL package-0": Counter(1_000_000)}, {"RAPL package-0": Counter(8_000_000)}])
    monkeypatch.setattr(bench, "read_board", lambda: next(states))
    monkeypatch.setattr(bench, "read_counters", lambda **options: next(counters))
    document = benchmark(bundle, plan=TINY).to_json()
    calls = document["latency"]["calls"]
    assert document["energy"] == [
        {"counter": "RAPL package-0", "joules": 7.0, "calls": calls, "mj_per_call": 7000 / calls}
    ]
    assert document["board"]["before"] == {
        "throttled": (),
        "throttled_since_start": ("throttled",),
        "power_mode": "15W",
    }
    assert "UNSTABLE: the board was held back: under-voltage (vcgencmd)" in document["notes"]
    shown = display.bench_text(document)
    assert re.search(r"power mode +15W", shown)
    assert f"{7000 / calls:.4g} mJ a call by RAPL package-0" in shown
