import gc
import itertools

import numpy as np
import pytest

from runtime import measure
from runtime.measure import FULL, QUICK, BenchPlan, garbage_collector_paused, warm_up


class FakeClock:
    """A clock that only engine calls move; `durations_ns` are theirs in turn, the last one for ever."""

    def __init__(self, durations_ns):
        self.now = 0
        self.durations = itertools.chain(durations_ns, itertools.repeat(durations_ns[-1]))

    def __call__(self):
        return self.now

    def engine_call(self):
        self.now += next(self.durations)
        return []


def plan(**changes):
    return BenchPlan(**{"quick": False, "seconds": 0.001, "calls": 5, **changes})


def test_plans_hold_the_promised_minima():
    assert (FULL.seconds, FULL.calls, FULL.warm_up_calls, FULL.warm_up_seconds) == (10.0, 662, 10, 1.0)
    assert (QUICK.seconds, QUICK.calls, QUICK.quick, FULL.quick) == (3.0, 662, True, False)


def test_samples_are_the_calls_in_order():
    durations = [5, 1, 4, 1, 5, 9, 2, 6]
    clock = FakeClock(durations)
    samples, seconds = measure.measure([clock.engine_call], plan(seconds=0, calls=8), clock)
    assert samples.tolist() == durations
    assert samples.dtype == np.uint64
    assert seconds == pytest.approx(sum(durations) / 1e9)


@pytest.mark.parametrize(("seconds", "calls", "expected"), [(1e-6, 3, 10), (1e-6, 25, 25), (0, 1, 1)])
def test_both_minima_hold(seconds, calls, expected):
    clock = FakeClock([100])
    samples, _ = measure.measure([clock.engine_call], plan(seconds=seconds, calls=calls), clock)
    assert len(samples) == expected


def test_samples_are_bounded(monkeypatch):
    monkeypatch.setattr(measure, "MOST_SAMPLES", 50)
    clock = FakeClock([1])
    samples, _ = measure.measure([clock.engine_call], plan(seconds=10), clock)
    assert len(samples) == 50


def test_inputs_rotate():
    seen = []
    clock = FakeClock([10])

    def call(name):
        return lambda: (seen.append(name), clock.engine_call())

    measure.measure([call("a"), call("b"), call("c")], plan(seconds=0, calls=7), clock)
    assert "".join(seen) == "abcabca"


def test_only_the_engine_call_is_timed():
    clock = FakeClock([10])

    class Output:
        def __del__(self):
            clock.now += 1000  # freeing the output takes time, too, but it is not the engine's

    def call():
        clock.engine_call()
        return Output()

    samples, seconds = measure.measure([call], plan(seconds=0, calls=6), clock)
    assert samples.tolist() == [10] * 6
    assert seconds == pytest.approx(6 * 1010 / 1e9)


def test_warm_up_ends_at_its_minimum_when_steady():
    clock = FakeClock([10_000_000])
    result = warm_up([clock.engine_call], plan(), clock)
    assert result.steady
    assert (result.calls, result.seconds) == (100, 1.0)


def test_warm_up_waits_until_the_median_settles():
    falling = [int(60_000_000 * 0.97**i) for i in range(60)]  # 1.7 s
    clock = FakeClock(falling)
    result = warm_up([clock.engine_call], plan(), clock)
    assert result.steady
    assert result.seconds > sum(falling) / 1e9


def test_warm_up_is_bounded_and_admits_it():
    growing = [int(1_000_000 * 1.05**i) for i in range(200)]
    clock = FakeClock(growing)
    result = warm_up([clock.engine_call], plan(warm_up_most_seconds=2.0), clock)
    assert not result.steady
    assert 2.0 <= result.seconds < 3.0


def test_slow_model_gets_its_calls():
    clock = FakeClock([2_000_000_000])
    result = warm_up([clock.engine_call], plan(warm_up_most_seconds=3.0), clock)
    assert result.steady
    assert result.calls == 15  # three windows of at least five


def test_warm_up_needs_a_call():
    with pytest.raises(ValueError, match="at least one call"):
        warm_up([], plan())


def test_collector_is_paused_and_restored():
    assert gc.isenabled()
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise KeyError

    with pytest.raises(KeyError), garbage_collector_paused():
        fail()
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with garbage_collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
