"""The largest rate of queries that one engine holds within a bound of latency: MLPerf's server scenario.

Queries arrive as a Poisson process, wait in one queue in their order, and are run one after the other. The latency of a
query is from when it was to arrive to when its call ended, so a queue that grows cannot hide itself. With q queries
and percentile p, a rate is held when no more than t of them are over the bound, t the largest with
BinomialCDF(t; q, 1 - p) <= 0.01: then the share over it is below 1 - p with 99 % confidence (early stopping).
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from runtime.errors import UsageError
from runtime.latency import CONFIDENCE, largest_tail
from runtime.runners.base import EngineCall

LEAST_QUERIES = 662  # at a rate: the least of p99
MOST_QUERIES = 2_000_000
_BOUNDS = 100  # a rate is tried for so many times the bound: a queue that grows by 1 % is then over it
_STEP = 0.01  # of the engine's capacity: how fine the rate is searched
_ABOVE = 1.25  # times the capacity: no queue is held there
_CAPACITY_CALLS, _CAPACITY_NS = 10, 500_000_000  # at least both, for the capacity
_SPIN_NS = 1_000_000  # before an arrival: sleeping ends too late by parts of a millisecond


class Clock(Protocol):
    """Nanoseconds, and waiting for a time; a test replaces it."""

    def now(self) -> int: ...

    def wait_until(self, ns: int) -> None: ...


class MonotonicClock:
    """The clock of this machine. The last millisecond before a time is spun away, which keeps the core awake."""

    now = staticmethod(time.perf_counter_ns)

    def wait_until(self, ns: int) -> None:
        while (left := ns - time.perf_counter_ns()) > 0:
            if left > _SPIN_NS:
                time.sleep((left - _SPIN_NS) / 1e9)


@dataclass(frozen=True)
class ServerPlan:
    """bound_ns: latency that at least `percentile` of the queries have to be within. seconds: of the last, longest try;
    those of the search take a tenth. seed: of the arrivals; every try draws its own."""

    bound_ns: int
    percentile: Fraction = Fraction(99, 100)
    seconds: float = 10.0
    seed: int = 0

    def queries(self, rate_per_s: float, seconds: float) -> int:
        """Return how many queries a try of a rate has."""
        wanted = int(rate_per_s * max(seconds, _BOUNDS * self.bound_ns / 1e9))
        return min(max(wanted, least_queries(self.percentile)), MOST_QUERIES)

    def allowed(self, queries: int) -> int:
        """Return how many of the queries may be over the bound."""
        return largest_tail(queries, 1 - self.percentile, 1 - CONFIDENCE)


@dataclass(frozen=True, eq=False)
class Trial:
    """One rate: `over` of `queries` were over the bound, where `allowed` may be. It ends where it cannot be held any
    more, so there may be fewer `latencies_ns` than queries."""

    rate_per_s: float
    queries: int
    allowed: int
    over: int
    latencies_ns: np.ndarray

    @property
    def seconds(self) -> float:
        """For how long the queries arrive, on average."""
        return len(self.latencies_ns) / self.rate_per_s

    @property
    def held(self) -> bool:
        return self.over <= self.allowed

    def to_json(self) -> dict[str, Any]:
        run = {"queries": self.queries, "run": len(self.latencies_ns), "over": self.over, "allowed": self.allowed}
        return {"rate_per_s": self.rate_per_s, **run, "held": self.held}


@dataclass(frozen=True, eq=False)
class ServerResult:
    """`best` is the largest rate that was held, in a try of its own after the search. capacity_per_s: calls per second
    without a queue."""

    plan: ServerPlan
    capacity_per_s: float
    best: Trial
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "bound_ms": self.plan.bound_ns / 1e6,
            "percentile": float(100 * self.plan.percentile),
            "seed": self.plan.seed,
            "rate_per_s": self.best.rate_per_s,
            "capacity_per_s": self.capacity_per_s,
            "queries": self.best.queries,
            "over": self.best.over,
            "allowed": self.best.allowed,
            "trials": [each.to_json() for each in self.trials],
        }


def least_queries(percentile: Fraction) -> int:
    """Return the least queries of a try: 662, or more where the percentile needs them for one that may be over."""
    queries = LEAST_QUERIES
    while largest_tail(queries, 1 - percentile, 1 - CONFIDENCE) < 1:
        queries += max(queries // 100, 1)
    return queries


def arrivals_ns(rate_per_s: float, queries: int, seed: Sequence[int]) -> np.ndarray:
    """Return when queries arrive after the start (queries,), int64 nanoseconds: exponential times between them."""
    gaps = np.random.default_rng(seed).exponential(1e9 / rate_per_s, queries)
    return np.cumsum(gaps).astype(np.int64)


def serve(
    calls: Sequence[EngineCall], arrivals: np.ndarray, *, bound_ns: int, most_over: int, clock: Clock
) -> np.ndarray:
    """Run queries in the order of their arrival; return their latencies (uint64 nanoseconds).

    Ends as soon as more than `most_over` of them are over the bound.
    """
    latencies = array("Q")
    over = 0
    begin = clock.now()
    for arrival, call in zip(arrivals.tolist(), itertools.cycle(calls), strict=False):
        due = begin + arrival
        if clock.now() < due:
            clock.wait_until(due)
        output = call()
        latency = clock.now() - due
        del output
        latencies.append(latency)
        if latency > bound_ns:
            over += 1
            if over > most_over:
                break
    return np.array(latencies, dtype=np.uint64)


def largest_rate(
    calls: Sequence[EngineCall],
    plan: ServerPlan,
    *,
    clock: Clock | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ServerResult:
    """Find the largest rate that is held, by bisection to 1 % of the engine's capacity; `calls` run in rotation.

    The rate that is found is tried once more, for longer, and lowered by 1 % until that is held, too.
    Raises UsageError where no rate is held.
    """
    clock = clock or MonotonicClock()
    trials: list[Trial] = []

    def tried(rate: float, seconds: float) -> Trial:
        queries = plan.queries(rate, seconds)
        allowed = plan.allowed(queries)
        arrivals = arrivals_ns(rate, queries, (plan.seed, len(trials)))
        latencies = serve(calls, arrivals, bound_ns=plan.bound_ns, most_over=allowed, clock=clock)
        trial = Trial(rate, queries, allowed, int((latencies > plan.bound_ns).sum()), latencies)
        trials.append(trial)
        say(f"{rate:,.1f} queries/s: {'held' if trial.held else 'not held'}, {trial.over} of {len(latencies)} over")
        return trial

    capacity = _capacity(calls, clock)
    step = capacity * _STEP
    low, high = 0.0, _ABOVE * capacity
    while high - low > step:
        middle = (low + high) / 2
        low, high = (middle, high) if tried(middle, plan.seconds / 10).held else (low, middle)
    while low >= step / 2:
        trial = tried(low, plan.seconds)
        if trial.held:
            return ServerResult(plan, capacity, trial, tuple(trials))
        low -= step
    raise UsageError(
        f"a bound of {plan.bound_ns / 1e6:g} ms is held at no rate; a call alone takes {1e3 / capacity:.4g} ms",
        "Raise --bound-ms, or lower --percentile.",
    )


def _capacity(calls: Sequence[EngineCall], clock: Clock) -> float:
    """Return calls per second, one after the other."""
    begin = clock.now()
    for count, call in enumerate(itertools.cycle(calls), start=1):
        call()
        taken = clock.now() - begin
        if count >= _CAPACITY_CALLS and taken >= _CAPACITY_NS:
            return count / (taken / 1e9)
    raise ValueError("the capacity needs at least one call")
