"""Latency of one model of a bundle on this machine, in this process; `runtime.processes` puts several together.

Inputs are the bundle's real samples in rotation: the time of some kernels depends on the data, and a single
input would sit in the nearest cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.board import BoardState, read_board, throttling
from runtime.bundle import Bundle
from runtime.cuda import uuids_in_use
from runtime.device import (
    Environment,
    Load,
    involuntary_switches,
    peak_resident_bytes,
    read_environment,
    read_load,
    usable_cores,
)
from runtime.energy import Energy, energy_between, read_counters
from runtime.engine_file import EngineBuild
from runtime.errors import EngineError, UsageError
from runtime.latency import LatencySummary, encode_samples, summarize
from runtime.measure import FULL, BenchPlan, WarmUp, garbage_collector_paused, measure, timed, warm_up
from runtime.rows import Rows, shortened
from runtime.runners import open_runner
from runtime.runners.base import Runner, one_line
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.server import ServerPlan, ServerResult, largest_rate

SCHEMA_VERSION = 1
UNSTABLE = "UNSTABLE"  # begins a note on numbers that another run may not give again
SINGLE, OFFLINE, SERVER = "single", "offline", "server"
_MOST_BATCHES = 256


@dataclass(frozen=True)
class ColdStart:
    """`session_load_ms` builds the session from bytes in memory; `first_call_ms` is its first inference."""

    session_load_ms: float
    first_call_ms: float

    def to_json(self) -> dict[str, Any]:
        return {"session_load_ms": self.session_load_ms, "first_call_ms": self.first_call_ms}


@dataclass(frozen=True)
class EngineRecord:
    """`nodes` counts the operations on each provider, where the engine was asked for one and says so.

    gpus: UUIDs of the GPUs that the process has a CUDA context on; their clocks and energy are those of the engine.
    """

    name: str
    version: str
    providers: tuple[str, ...]
    threads: int
    choice: EngineChoice = DEFAULT
    nodes: Mapping[str, int] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "providers": list(self.providers),
            "threads": self.threads,
            "chosen": self.choice.to_json(),
            **({"nodes": dict(self.nodes)} if self.nodes else {}),
            **({"gpus": list(self.gpus)} if self.gpus else {}),
        }


@dataclass(frozen=True)
class ProcessRecord:
    """One process of a measurement. involuntary_switches: how often the kernel took the processor away meanwhile;
    peak_resident_bytes: of memory, with interpreter, engine and samples. Absent where the system does not say them.
    """

    calls: int
    p50_ms: float
    cold_start: ColdStart
    warm_up: WarmUp
    involuntary_switches: int | None
    peak_resident_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        known = {
            "involuntary_switches": self.involuntary_switches,
            "peak_resident_bytes": self.peak_resident_bytes,
        }
        return {
            "calls": self.calls,
            "p50_ms": self.p50_ms,
            "cold_start": self.cold_start.to_json(),
            "warm_up": self.warm_up.to_json(),
            **{name: value for name, value in known.items() if value is not None},
        }


@dataclass(frozen=True, eq=False)
class BenchResult:
    """`samples_ns` uint64 (calls,) in the order of the calls; `seconds` is the wall time they took.

    `identity` says of which model it is, for the document. The board is asked before the warm-up and after the last
    call: that takes longer than the warm caches last. scenario: `single` and `offline` differ in what their batch and
    their throughput mean; of `server` the samples are the queries at the largest rate that was held. engine_build: of
    an engine that is built where it runs; building is no part of the cold start.
    """

    bundle: str
    identity: Mapping[str, Any]
    format: str
    precision: str
    size_bytes: int
    engine: EngineRecord
    batch: int
    quick: bool
    seconds: float
    cold_start: ColdStart
    warm_up: WarmUp
    latency: LatencySummary
    environment: Environment
    load_before: Load
    load_after: Load
    board_before: BoardState
    board_after: BoardState
    energy: tuple[Energy, ...]
    process: ProcessRecord
    notes: tuple[str, ...]
    samples_ns: np.ndarray
    scenario: str = SINGLE
    server: ServerResult | None = None
    engine_build: EngineBuild | None = None

    @property
    def throughput_rows_per_s(self) -> float:
        """Rows per second: of engine time, one call after the other; offline of wall time; of a server, held."""
        if self.server is not None:
            return self.batch * self.server.best.rate_per_s
        if self.scenario == OFFLINE:
            return self.batch * self.latency.calls / self.seconds
        return self.batch / self.latency.mean_ns * 1e9 if self.latency.mean_ns else 0.0

    def to_json(self) -> dict[str, Any]:
        board = {"before": self.board_before.to_json(), "after": self.board_after.to_json()}
        return {
            "kind": "bench",
            "schema_version": SCHEMA_VERSION,
            **self.identity,
            "format": self.format,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "engine": self.engine.to_json(),
            "batch": self.batch,
            "scenario": self.scenario,
            **({"server": self.server.to_json()} if self.server else {}),
            "quick": self.quick,
            "seconds": self.seconds,
            **({"engine_build": self.engine_build.to_json()} if self.engine_build else {}),
            "cold_start": self.cold_start.to_json(),
            "warm_up": self.warm_up.to_json(),
            "latency": self.latency.to_json(),
            "throughput_rows_per_s": self.throughput_rows_per_s,
            "environment": self.environment.to_json(),
            "load": {"before": self.load_before.to_json(), "after": self.load_after.to_json()},
            **({"board": board} if any(board.values()) else {}),
            **({"energy": [each.to_json() for each in self.energy]} if self.energy else {}),
            "processes": [self.process.to_json()],
            "notes": list(self.notes),
            "samples": encode_samples(self.samples_ns),
        }


def benchmark(
    bundle: Bundle,
    *,
    format: str = "onnx",
    threads: int = 1,
    batch: int = 1,
    choice: EngineChoice = DEFAULT,
    on_gpu: Mapping[str, bool] | None = None,
    plan: BenchPlan = FULL,
    rows: Rows | None = None,
    progress: Callable[[str], None] | None = None,
    scenario: str = SINGLE,
    server: ServerPlan | None = None,
) -> BenchResult:
    """Load the model of `format`, warm it up and measure it with `batch` rows a call; on_gpu as in `open_runner`.

    rows: the inputs; the bundle's samples if left out. server: what the rate of the scenario `server` has to hold.
    Raises what `open_runner` raises, and EngineError where a call fails.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}, expected at least 1")
    say = progress or (lambda line: None)
    samples = bundle.samples() if rows is None else rows
    board_before = read_board()
    with open_runner(bundle, format, threads, choice, on_gpu=on_gpu, batch=batch, say=say) as runner:
        calls = [runner.prepare(shortened(each, bundle)) for each in rotation(samples, batch)]
        with _engine_errors(runner), garbage_collector_paused():
            first_call_ms = timed(calls[0]) / 1e6
            say(f"warming up: at least {plan.warm_up_calls} calls and {plan.warm_up_seconds:g} s")
            warm = warm_up(calls, plan)
            if server is None:
                expected = max(plan.seconds, plan.calls * warm.seconds / warm.calls)
                say(f"measuring: at least {plan.calls} calls and {plan.seconds:g} s, about {expected:.0f} s")
            gpus = uuids_in_use()
            before, switches, counters = read_load(), involuntary_switches(), read_counters(gpus=gpus)
            served = largest_rate(calls, server, say=say) if server else None
            samples_ns, seconds = (served.best.latencies_ns, served.best.seconds) if served else measure(calls, plan)
            counters_after, after, switches_after = read_counters(gpus=gpus), read_load(), involuntary_switches()
        board_after = read_board()
        cold_start = ColdStart(runner.load_ms, first_call_ms)
        engine = EngineRecord(
            runner.engine, runner.version, runner.providers, threads, runner.choice, runner.nodes, gpus
        )
    latency, environment = summarize(samples_ns), read_environment()
    # A queue makes the latencies of a server wander, so their drift says nothing of the machine.
    steady = dataclasses.replace(latency, drift=None) if served else latency
    process = ProcessRecord(
        calls=latency.calls,
        p50_ms=float(np.median(samples_ns)) / 1e6,
        cold_start=cold_start,
        warm_up=warm,
        involuntary_switches=None if switches is None or switches_after is None else switches_after - switches,
        peak_resident_bytes=peak_resident_bytes(),
    )
    return BenchResult(
        bundle=bundle.name,
        identity=bundle.identity,
        format=runner.format,
        precision=runner.file.precision,
        size_bytes=runner.file.size_bytes,
        engine=engine,
        batch=batch,
        quick=plan.quick,
        seconds=seconds,
        cold_start=cold_start,
        warm_up=warm,
        latency=latency,
        environment=environment,
        load_before=before,
        load_after=after,
        board_before=board_before,
        board_after=board_after,
        # The search for a rate runs calls that are not among the samples.
        energy=() if served else energy_between(counters, counters_after, len(samples_ns)),
        process=process,
        notes=(
            *runner.notes,
            *bundle.notes(made_up=rows is None),
            *_notes(bundle, batch, threads, warm, steady, environment, before, after),
            *_board_notes(board_before, board_after, gpus),
        ),
        samples_ns=samples_ns,
        scenario=scenario,
        server=served,
        engine_build=runner.engine_build,
    )


def rotation(samples: Rows, batch: int) -> list[np.ndarray]:
    """Return batches (batch, *shape), at most 256, that go through all samples once; the last one wraps."""
    count = min(-(-len(samples) // batch), _MOST_BATCHES)
    rows = np.arange(count * batch).reshape(count, batch) % len(samples)
    return [samples.inputs[each] for each in rows]


@contextlib.contextmanager
def _engine_errors(runner: Runner) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineError(f"{runner.path}: {runner.engine} {runner.version} failed: {one_line(error)}") from error


def _notes(
    bundle: Bundle,
    batch: int,
    threads: int,
    warm: WarmUp,
    latency: LatencySummary,
    environment: Environment,
    before: Load,
    after: Load,
) -> tuple[str, ...]:
    """Say in words what makes these numbers less than they seem."""
    notes = []
    if any(bundle.input.free):
        notes.append(f"each call is as long as its longest text, at most {bundle.input.shape[0]} ids")
    if latency.drift is not None and latency.drift.unstable:
        notes.append(
            f"{UNSTABLE}: the median changed by {100 * latency.drift.change:+.1f} % "
            "from the first to the last tenth of the calls"
        )
    if not warm.steady:
        notes.append(f"the warm-up never became steady within {warm.seconds:.1f} s")
    cores = usable_cores(environment)
    if cores is not None and threads > cores:
        notes.append(f"{threads} threads share {cores:g} cores")
    busy = before.load_average[0] if before.load_average else 0.0
    if environment.logical_cores and busy > environment.logical_cores:
        notes.append(f"{UNSTABLE}: the machine was busy: load average {busy:.1f} on {environment.logical_cores} cores")
    if bundle.batch_sizes and batch not in bundle.batch_sizes:
        verified = ", ".join(map(str, bundle.batch_sizes))
        notes.append(f"batch {batch} was not verified at export (verified: {verified})")
    for name, what in (
        ("cgroup_throttled_periods", "the container's CPU limit stopped this process in {} periods"),
        ("thermal_throttle_events", "the CPU was throttled by heat {} times"),
    ):
        earlier, later = getattr(before, name), getattr(after, name)
        if earlier is not None and later is not None and later > earlier:
            notes.append(f"{UNSTABLE}: {what.format(later - earlier)} during the measurement")
    if cooling := max(before.cpu_cooling_state or 0, after.cpu_cooling_state or 0):
        notes.append(f"{UNSTABLE}: the kernel held the CPU back against heat (cooling state {cooling})")
    if "torch" in sys.modules:
        notes.append("torch is loaded in this process; its threads can disturb the engine")
    return tuple(notes)


def _board_notes(before: BoardState, after: BoardState, gpus: Collection[str]) -> tuple[str, ...]:
    held_back = throttling(before, after, gpus)
    return (f"{UNSTABLE}: the board was held back: {', '.join(held_back)}",) if held_back else ()
