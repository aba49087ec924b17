"""The measuring loop: a clock, engine calls and nothing else.

The clock (`perf_counter_ns`) runs around the engine call: checking and converting the input, freeing the
output and choosing the next batch stay outside. A test passes its own clock.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.runners.base import EngineCall

MOST_SAMPLES = 2_000_000  # 16 MB; 10 s of calls of 5 µs
_STEADY_WITHIN = 0.03  # of the medians of three windows in a row

Clock = Callable[[], int]


@dataclass(frozen=True)
class BenchPlan:
    """How long to measure. Both minima hold; 662 calls are the least that p99 needs.

    processes: fresh ones that share the measuring: two of them differ by where memory happens to lie.
    """

    quick: bool
    seconds: float
    calls: int = 662
    warm_up_seconds: float = 1.0
    warm_up_calls: int = 10
    warm_up_most_seconds: float = 10.0
    processes: int = 1

    @property
    def of_each(self) -> BenchPlan:
        """Return the plan of one of its processes: they share the minima, and each warms up."""
        calls = -(-self.calls // self.processes)
        return replace(self, seconds=self.seconds / self.processes, calls=calls, processes=1)


FULL = BenchPlan(quick=False, seconds=10.0, processes=5)
QUICK = BenchPlan(quick=True, seconds=3.0, warm_up_most_seconds=3.0)


@dataclass(frozen=True)
class WarmUp:
    """`steady` is whether the rolling median settled before the time for it was up."""

    calls: int
    seconds: float
    steady: bool

    def to_json(self) -> dict[str, Any]:
        return {"calls": self.calls, "seconds": self.seconds, "steady": self.steady}


def warm_up(calls: Sequence[EngineCall], plan: BenchPlan, clock: Clock = time.perf_counter_ns) -> WarmUp:
    """Call until both minima are met and the medians of the last three windows agree, or the time is up."""
    window_ns = plan.warm_up_seconds * 1e9 / 5
    medians: list[float] = []
    window = array("Q")
    begin = window_begin = clock()
    for count, call in enumerate(itertools.cycle(calls), start=1):
        window.append(timed(call, clock))
        now = clock()
        if now - window_begin >= window_ns and len(window) >= 5:
            medians.append(float(np.median(np.frombuffer(window, dtype=np.uint64))))
            window, window_begin = array("Q"), clock()
        seconds = (now - begin) / 1e9
        if seconds >= plan.warm_up_seconds and count >= plan.warm_up_calls:
            steady = _steady(medians)
            # Three windows of a slow model may need more than the time for it: 30 calls are always granted.
            if steady or (seconds >= plan.warm_up_most_seconds and count >= 3 * plan.warm_up_calls):
                return WarmUp(count, seconds, steady)
    raise ValueError("warm_up needs at least one call")


def measure(
    calls: Sequence[EngineCall], plan: BenchPlan, clock: Clock = time.perf_counter_ns
) -> tuple[np.ndarray, float]:
    """Return the latencies (uint64 nanoseconds, in order) and the wall time in seconds."""
    samples = array("Q")
    least_ns = plan.seconds * 1e9
    begin = clock()
    for call in itertools.cycle(calls):
        start = clock()
        output = call()
        stop = clock()
        del output  # freed here, not inside the next call's time
        samples.append(stop - start)
        enough = len(samples) >= plan.calls and stop - begin >= least_ns
        if enough or len(samples) >= MOST_SAMPLES:
            break
    return np.array(samples, dtype=np.uint64), (clock() - begin) / 1e9


@contextlib.contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Keep Python's cyclic collector out of the samples: its pauses are the host program's, not the engine's.

    The loop makes no cycles, so nothing piles up meanwhile.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def timed(call: EngineCall, clock: Clock = time.perf_counter_ns) -> int:
    """Return the nanoseconds of one call."""
    start = clock()
    output = call()
    stop = clock()
    del output
    return stop - start


def _steady(medians: Sequence[float]) -> bool:
    last = medians[-3:]
    return len(last) == 3 and max(last) - min(last) <= _STEADY_WITHIN * min(last)
