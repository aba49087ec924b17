"""Latency of one model of a bundle on this machine, in this process; `runtime.processes` puts several together.

Inputs are the bundle's real samples in rotation: the time of some kernels depends on the data, and a single
input would sit in the nearest cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.bench_notes import board_notes, call_notes
from runtime.board import BoardState, read_board
from runtime.bundle import Bundle
from runtime.cuda import uuids_in_use
from runtime.device import (
    Environment,
    Load,
    involuntary_switches,
    peak_resident_bytes,
    read_environment,
    read_load,
)
from runtime.energy import Energy, energy_between, read_counters
from runtime.engine_file import EngineBuild
from runtime.errors import EngineError, UsageError
from runtime.latency import LatencySummary, encode_samples, summarize
from runtime.measure import FULL, BenchPlan, WarmUp, garbage_collector_paused, measure, timed, warm_up
from runtime.rows import Rows, shortened
from runtime.runners import open_runner
from runtime.runners.base import EngineCall, Runner, one_line
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.server import ServerPlan, ServerResult, largest_rate

SCHEMA_VERSION = 1
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
            run = _run(calls, plan, server, say)
        board_after = read_board()
        engine = EngineRecord(
            runner.engine, runner.version, runner.providers, threads, runner.choice, runner.nodes, run.gpus
        )
    latency, environment = summarize(run.samples_ns), read_environment()
    # A queue makes the latencies of a server wander, so their drift says nothing of the machine.
    steady = dataclasses.replace(latency, drift=None) if run.served else latency
    process = ProcessRecord(
        calls=latency.calls,
        p50_ms=float(np.median(run.samples_ns)) / 1e6,
        cold_start=ColdStart(runner.load_ms, run.first_call_ms),
        warm_up=run.warm_up,
        involuntary_switches=run.involuntary_switches,
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
        seconds=run.seconds,
        cold_start=process.cold_start,
        warm_up=run.warm_up,
        latency=latency,
        environment=environment,
        load_before=run.before,
        load_after=run.after,
        board_before=board_before,
        board_after=board_after,
        energy=run.energy,
        process=process,
        notes=(
            *runner.notes,
            *bundle.notes(made_up=rows is None),
            *call_notes(bundle, batch, threads, run.warm_up, steady, environment, run.before, run.after),
            *board_notes(board_before, board_after, run.gpus),
        ),
        samples_ns=run.samples_ns,
        scenario=scenario,
        server=run.served,
        engine_build=runner.engine_build,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """The calls of one process, with what the machine said right before and right after the timed ones.

    gpus: those that the engine runs on. served: the rate that was held, of whose queries the samples are.
    """

    first_call_ms: float
    warm_up: WarmUp
    samples_ns: np.ndarray
    seconds: float
    gpus: tuple[str, ...]
    before: Load
    after: Load
    energy: tuple[Energy, ...]
    involuntary_switches: int | None
    served: ServerResult | None


def _run(calls: Sequence[EngineCall], plan: BenchPlan, server: ServerPlan | None, say: Callable[[str], None]) -> _Run:
    """Warm `calls` up and time them, one after the other or as a server."""
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
    return _Run(
        first_call_ms,
        warm,
        samples_ns,
        seconds,
        gpus,
        before,
        after,
        # The search for a rate runs calls that are not among the samples.
        energy=() if served else energy_between(counters, counters_after, len(samples_ns)),
        involuntary_switches=None if switches is None or switches_after is None else switches_after - switches,
        served=served,
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
