"""How benchmarks compare things on a machine that is not theirs alone: all of them in turn, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

WARM_UP = 3  # rounds
# With threads: after the pause those of other sessions have ceased to spin, after the calls this one's are awake.
PAUSE_S, AWAKE_S = 0.03, 0.02


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, *, threads: int) -> dict[str, list[float]]:
    """Return each candidate's times in µs: every round runs all of them, in an order that turns around.

    With one thread the time is the thread's processor time, which other processes do not add to; with more it is wall
    time. Each is called once untimed before, which brings back what the others have driven out of the caches.
    """
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(-WARM_UP, rounds):
        for name in sorted(calls, reverse=bool(round_number % 2)):
            calls[name]()
            if threads > 1:
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                while time.perf_counter() - began < AWAKE_S:
                    calls[name]()
            started = clock()
            calls[name]()
            if round_number >= 0:
                times[name].append((clock() - started) / 1000)
    return times


def summary(times: Mapping[str, list[float]], *, threads: int, of: Sequence[str] = ("fp32", "int8")) -> dict[str, Any]:
    """Return medians, spreads and the ratios of medians of the candidates `of` over each."""
    medians = {name: float(np.median(each)) for name, each in times.items()}
    return {
        "threads": threads,
        "clock": "thread processor time" if threads == 1 else "wall",
        "microseconds": medians,
        "p10": {name: float(np.percentile(each, 10)) for name, each in times.items()},
        "p90": {name: float(np.percentile(each, 90)) for name, each in times.items()},
        **{f"{one}_over": {name: medians[one] / each for name, each in medians.items()} for one in of},
    }
