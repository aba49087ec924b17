"""Two latency results beside each other: the ratio of their medians, and how sure it is.

Calls that follow each other are alike, and processes differ by where memory happened to lie, so neither calls nor
processes alone are resampled: processes are drawn with replacement, and within each of them stretches of calls
(Künsch 1989, the moving-block bootstrap, with blocks that do not overlap). Percentiles of so few processes are too
narrow, so they are expanded as Hesterberg 2015 ("What teachers should know about the bootstrap", section 5.3) does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import DataError
from runtime.latency import decode_samples

_RESAMPLES = 4000
_MOST_BLOCKS, _LEAST_BLOCKS = 50, 10  # stretches of calls a process
_CALLS_A_BLOCK = 50  # at least, as far as there are enough: calls that follow each other are alike
_MOST_CALLS = 20_000  # a result; every so many-th of more is looked at
_LEAST_CALLS = 100
_BATCH = 50  # resamples at a time, for the sake of memory
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's, of 1 to 9 degrees of freedom


@dataclass(frozen=True)
class MedianRatio:
    """`ratio` of the second result's median to the first's, with its 95 % bootstrap interval `low` to `high`.

    one_process: at least one of the results is of a single process, so what differs between processes is not in it.
    """

    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    one_process: bool

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high

    def in_words(self, first: str, second: str) -> str:
        interval = f"ratio {self.ratio:.3f}, 95 % interval {self.low:.3f} to {self.high:.3f}"
        if not self.differs:
            return f"no difference between {second} and {first} ({interval})"
        if 0.5 <= self.ratio <= 2:
            how = f"{100 * abs(1 - self.ratio):.1f} % {'faster' if self.ratio < 1 else 'slower'} than"
        else:
            how = f"{1 / self.ratio:.2f} times as fast as" if self.ratio < 1 else f"{self.ratio:.2f} times as slow as"
        return f"{second} is {how} {first} ({interval})"

    def to_json(self) -> dict[str, Any]:
        return {
            "first_p50_ms": self.first_ms,
            "second_p50_ms": self.second_ms,
            "ratio": self.ratio,
            "interval_95": [self.low, self.high],
            "differs": self.differs,
            "one_process": self.one_process,
        }


def median_ratio(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, seed: int = 0, resamples: int = _RESAMPLES
) -> MedianRatio:
    """Compare samples in nanoseconds, one array (calls,) a process, in the order of the calls.

    Raises DataError where a result has fewer than 100 calls.
    """
    for samples in (first, second):
        count = sum(map(len, samples))
        if count < _LEAST_CALLS:
            raise DataError(f"{count} calls are too few to compare by; expected at least {_LEAST_CALLS}")
    generator = np.random.default_rng(seed)
    medians = [float(np.median(np.concatenate(samples))) for samples in (first, second)]
    drawn = [_resampled_medians(samples, resamples, generator) for samples in (first, second)]
    units = min(len(first), len(second))
    tail = 100 * _expanded_tail(units if units > 1 else min(_stretches(len(each[0])) for each in (first, second)))
    low, high = np.percentile(drawn[1] / drawn[0], (tail, 100 - tail))
    return MedianRatio(
        first_ms=medians[0] / 1e6,
        second_ms=medians[1] / 1e6,
        ratio=medians[1] / medians[0],
        low=float(low),
        high=float(high),
        one_process=min(len(first), len(second)) == 1,
    )


def processes_of(result: Mapping[str, Any], origin: str) -> list[np.ndarray]:
    """Return the samples of a bench result, an array a process. Raises DataError where it is none."""
    try:
        if result["kind"] != "bench":
            raise DataError(f"{origin}: a result of {result['kind']}, expected one of bench")
        if result.get("scenario") == "server":
            raise DataError(f"{origin}: a result of a server, whose latencies are of a queue", "Compare the rates.")
        samples = decode_samples(result["samples"])
        counts = [each["calls"] for each in result["processes"]] if "processes" in result else [len(samples)]
        if sum(counts) != len(samples):
            raise DataError(f"{origin}: {len(samples)} samples, and its processes made {sum(counts)} calls")
    except (KeyError, TypeError) as error:
        raise DataError(f"{origin}: not a result of bench ({error!r})", "Give a file that `bench` wrote.") from None
    return np.split(samples.astype(np.float64), np.cumsum(counts)[:-1])


def _stretches(calls: int) -> int:
    return min(max(calls // _CALLS_A_BLOCK, _LEAST_BLOCKS), _MOST_BLOCKS)


def _expanded_tail(units: int) -> float:
    """Return the share to cut off at either end, in the place of 0.025, where `units` were resampled."""
    freedom = units - 1
    t = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96 + 2.4 / freedom
    return 0.5 * math.erfc(math.sqrt(units / freedom) * t / math.sqrt(2))


def _resampled_medians(processes: Sequence[np.ndarray], resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Return `resamples` medians: of processes drawn with replacement, and in each of blocks drawn so.

    A drawn sample is never put together: each call has a weight, the times that its block was drawn, and the median is
    where the weights of the calls in order of latency reach half of their sum.
    """
    values, blocks, block_process = _blocks(processes)
    order = np.argsort(values, kind="stable")
    values, blocks = values[order], blocks[order]
    count, drawn = len(processes), []
    members = [np.flatnonzero(block_process == i) for i in range(count)]
    for start in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - start)
        weights = np.zeros((size, len(block_process)))
        for row in range(size):
            for process in generator.integers(0, count, count):
                own = members[process]
                weights[row] += np.bincount(generator.choice(own, len(own)), minlength=len(block_process))
        cumulated = np.cumsum(weights[:, blocks], axis=1)
        reached = (cumulated >= cumulated[:, -1:] / 2).argmax(axis=1)
        drawn.append(values[reached])
    return np.concatenate(drawn)


def _blocks(processes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values looked at, the block of each, and the process of each block."""
    step = max(1, -(-sum(map(len, processes)) // _MOST_CALLS))
    values, blocks = [], []
    block_process: list[int] = []
    for process, samples in enumerate(processes):
        looked_at = samples[::step]
        stretches = _stretches(len(looked_at))
        values.append(looked_at)
        blocks.append(len(block_process) + np.arange(len(looked_at)) * stretches // max(len(looked_at), 1))
        block_process += [process] * stretches
    return np.concatenate(values), np.concatenate(blocks), np.array(block_process)
