"""The same model under MLCommons LoadGen, as a cross-check of our own measuring loop.

LoadGen calls back into Python, which adds about 1.5 µs to a call. Its single-stream scenario issues the next query when
the one before is complete, as `runtime.measure` does; its samples are read from its trace, so that both sides'
statistics can be compared on the same numbers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import EngineError, MissingExtraError
from runtime.latency import LatencySummary, encode_samples, summarize
from runtime.measure import BenchPlan, garbage_collector_paused, warm_up
from runtime.rows import shortened
from runtime.runners.base import EngineCall
from runtime.runners.choice import DEFAULT, EngineChoice

_SAMPLES_A_BLOCK = 64  # of the "library" that LoadGen draws from
_ESTIMATE = re.compile(r"Early stopping (\d+(?:\.\d+)?)th percentile estimate: (\d+)")
_DISCARDED = re.compile(r"Would discard (\d+) highest")
_LATENCY = re.compile(r'"issue_start_ns":(\d+),"complete_ns":(\d+)')


@dataclass(frozen=True, eq=False)
class LoadgenResult:
    """samples_ns (queries,) in order, by LoadGen's clock; estimates_ns: its own early-stopping figures, by percent."""

    samples_ns: np.ndarray
    estimates_ns: dict[float, int]
    discarded: int | None
    valid: bool
    warm_up_median_ns: int
    identity: Mapping[str, Any] = field(default_factory=dict)
    format: str = ""
    engine: str = ""

    @property
    def latency(self) -> LatencySummary:
        return summarize(self.samples_ns)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "loadgen",
            "schema_version": 1,
            **self.identity,
            "format": self.format,
            "engine": self.engine,
            "valid": self.valid,
            "queries": len(self.samples_ns),
            "early_stopping_ms": {f"p{percent:g}": ns / 1e6 for percent, ns in self.estimates_ns.items()},
            "warm_up_p50_ms": self.warm_up_median_ns / 1e6,
            "latency": self.latency.to_json(),
            "samples": encode_samples(self.samples_ns),
        }


def under_loadgen(
    bundle: Bundle,
    *,
    format: str,
    threads: int,
    plan: BenchPlan,
    choice: EngineChoice = DEFAULT,
    say: Callable[[str], None] = lambda line: None,
) -> LoadgenResult:
    """Measure a format of `bundle`, one row a query. Raises MissingExtraError, and EngineError where a call fails."""
    from runtime.bench import rotation
    from runtime.runners import open_runner

    loadgen = _import_loadgen()
    with open_runner(bundle, format, threads, choice, batch=1, say=say) as runner:
        calls = [runner.prepare(shortened(each, bundle)) for each in rotation(bundle.samples(), 1)]
        result = measure_under_loadgen(loadgen, calls, plan)
        engine = f"{runner.engine} {runner.version}"
        return replace(result, identity=bundle.identity, format=runner.format, engine=engine)


def measure_under_loadgen(loadgen: ModuleType, calls: Sequence[EngineCall], plan: BenchPlan) -> LoadgenResult:
    """Warm `calls` up with our own loop, then let LoadGen issue them."""
    with garbage_collector_paused():
        warm_up(calls, plan)
        # LoadGen plans the number of queries by what it is told to expect; told too much, it ends early as INVALID.
        expected_ns = _median_ns(calls)
        with tempfile.TemporaryDirectory() as folder:
            _run(loadgen, calls, plan, expected_ns // 2 or 1, Path(folder))
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
            trace = (Path(folder) / "mlperf_log_trace.json").read_text()
    samples = [int(complete) - int(issued) for issued, complete in _LATENCY.findall(trace)]
    discarded = _DISCARDED.search(summary)
    return LoadgenResult(
        samples_ns=np.array(samples, dtype=np.uint64),
        estimates_ns={float(percent): int(ns) for percent, ns in _ESTIMATE.findall(summary)},
        discarded=int(discarded[1]) if discarded else None,
        valid="Result is : VALID" in summary,
        warm_up_median_ns=expected_ns,
    )


def _run(loadgen: ModuleType, calls: Sequence[EngineCall], plan: BenchPlan, expected_ns: int, folder: Path) -> None:
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.single_stream_expected_latency_ns = expected_ns
    settings.min_query_count = plan.calls
    settings.min_duration_ms = int(plan.seconds * 1000)
    log = loadgen.LogSettings()
    log.log_output.outdir = str(folder)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = True
    failures: list[Exception] = []

    def issue(queries: Sequence[Any]) -> None:
        # What is raised in here would end the process, and not before its exit.
        for query in queries:
            try:
                calls[query.index % len(calls)]()
            except Exception as error:
                failures.append(error)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])

    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(_SAMPLES_A_BLOCK, _SAMPLES_A_BLOCK, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, log, "")
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if failures:
        raise EngineError(f"{len(failures)} of LoadGen's calls failed; the first: {failures[0]}") from failures[0]


def _median_ns(calls: Sequence[EngineCall]) -> int:
    from runtime.measure import timed

    return int(np.median([timed(calls[i % len(calls)]) for i in range(101)]))


def _import_loadgen() -> ModuleType:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingExtraError(
            f"LoadGen is not installed ({error})", remedy="pip install mlcommons-loadgen (there is a wheel for x86-64)"
        ) from error
    loaded: ModuleType = mlperf_loadgen
    return loaded
