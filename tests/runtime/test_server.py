import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from runtime.errors import UsageError
from runtime.server import MonotonicClock, ServerPlan, arrivals_ns, largest_rate, least_queries, serve

MS = 1_000_000


class SteppedClock:
    """Time that passes only where an engine computes or somebody waits."""

    def __init__(self):
        self.ns = 0

    def now(self):
        return self.ns

    def wait_until(self, ns):
        assert ns > self.ns
        self.ns = ns

    def engine(self, *service_ns):
        """Return calls that take these times, in rotation."""

        def taking(ns):
            def call():
                self.ns += ns
                return ()

            return call

        return [taking(ns) for ns in service_ns]


def waits_longer(load, service_times):
    """P(W > x) of an M/D/1 queue, x in service times (Erlang 1909)."""
    terms = (
        (-load * (service_times - k)) ** k / math.factorial(k) * math.exp(load * (service_times - k))
        for k in range(math.floor(service_times) + 1)
    )
    return 1 - (1 - load) * sum(terms)


def test_latency_runs_from_the_arrival_through_the_queue():
    clock = SteppedClock()
    latencies = serve(clock.engine(3), np.array([0, 1, 2, 10]), bound_ns=100, most_over=0, clock=clock)
    assert latencies.tolist() == [3, 5, 7, 3]
    assert clock.now() == 13


def test_calls_take_turns_and_a_late_start_of_the_clock_changes_nothing():
    clock = SteppedClock()
    clock.ns = 1000
    latencies = serve(clock.engine(1, 5), np.array([0, 10, 11, 30]), bound_ns=100, most_over=0, clock=clock)
    assert latencies.tolist() == [1, 5, 5, 5]


def test_a_try_ends_where_it_cannot_be_held_any_more():
    clock = SteppedClock()
    latencies = serve(clock.engine(10), np.arange(50), bound_ns=25, most_over=2, clock=clock)
    assert latencies.tolist() == [10, 19, 28, 37, 46]


def test_arrivals_are_a_poisson_process_and_come_again_with_their_seed():
    arrivals = arrivals_ns(1000.0, 100_000, (0, 3))
    gaps = np.diff(arrivals)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1e6, rel=0.02)
    assert gaps.std() == pytest.approx(1e6, rel=0.02)
    assert (gaps > 2e6).mean() == pytest.approx(math.exp(-2), rel=0.03)
    np.testing.assert_array_equal(arrivals, arrivals_ns(1000.0, 100_000, (0, 3)))
    assert not np.array_equal(arrivals, arrivals_ns(1000.0, 100_000, (0, 4)))


def test_least_queries_are_those_of_early_stopping():
    assert least_queries(Fraction(99, 100)) == 662
    assert least_queries(Fraction(90, 100)) == 662
    assert 6636 <= least_queries(Fraction(999, 1000)) <= 6710
    plan = ServerPlan(10 * MS)
    assert plan.queries(1.0, 1.0) == 662
    assert plan.queries(1000.0, 1.0) == 1000
    assert plan.queries(1000.0, 0.1) == 1000  # for a hundred times the bound
    assert (plan.allowed(458), plan.allowed(459), plan.allowed(662)) == (-1, 0, 1)


@pytest.mark.parametrize(("bound_ms", "percentile"), [(10, Fraction(99, 100)), (3, Fraction(90, 100))])
def test_the_rate_is_that_of_theory_for_a_fixed_service_time(bound_ms, percentile):
    clock = SteppedClock()
    result = largest_rate(clock.engine(MS), ServerPlan(bound_ms * MS, percentile, seconds=300.0), clock=clock)
    assert result.capacity_per_s == pytest.approx(1000.0)
    # The load at which the share over the bound is 1 - percentile, found by halving.
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        within = waits_longer(middle, bound_ms - 1) <= 1 - percentile
        low, high = (middle, high) if within else (low, middle)
    assert 0.96 * 1000 * low < result.best.rate_per_s < 1000 * low
    assert result.best.held
    assert result.best.queries == len(result.best.latencies_ns) >= 662
    assert result.trials[-1] is result.best
    assert (result.best.latencies_ns > bound_ms * MS).sum() == result.best.over <= result.best.allowed


def test_a_document_shows_every_try():
    clock = SteppedClock()
    document = largest_rate(clock.engine(MS), ServerPlan(5 * MS, seconds=2.0), clock=clock).to_json()
    assert (document["bound_ms"], document["percentile"], document["seed"]) == (5.0, 99.0, 0)
    assert [each["held"] for each in document["trials"]].count(False) > 0
    assert document["trials"][-1]["rate_per_s"] == document["rate_per_s"]
    for each in document["trials"]:
        assert each["held"] == (each["over"] <= each["allowed"])
        assert each["run"] == each["queries"] or not each["held"]


def test_a_bound_below_one_call_is_held_at_no_rate():
    clock = SteppedClock()
    with pytest.raises(UsageError, match=r"a bound of 0\.5 ms is held at no rate; a call alone takes 1 ms"):
        largest_rate(clock.engine(MS), ServerPlan(MS // 2, seconds=1.0), clock=clock)


def test_the_clock_of_this_machine_is_never_early():
    clock = MonotonicClock()
    for wait in itertools.chain([0, 10_000], [3 * MS]):
        until = clock.now() + wait
        clock.wait_until(until)
        assert clock.now() >= until
