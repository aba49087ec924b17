"""Statistics of latency samples: pure functions, no clock.

Samples are integers in nanoseconds. Nothing is ever trimmed: the slowest calls are part of what a user sees.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from runtime.errors import DataError

# Percentiles as exact fractions: 0.999 * 1000 as floats is luck.
PERCENTILES = (Fraction(50, 100), Fraction(90, 100), Fraction(99, 100), Fraction(999, 1000))
CONFIDENCE = Fraction(99, 100)  # of the early-stopping bound (MLPerf Inference)
UNSTABLE_ABOVE = 0.05  # change of the median between the first and the last tenth of the calls


@dataclass(frozen=True)
class PercentileEstimate:
    """`measured_ns` is the nearest rank; the true percentile is at most `bound_ns`, with 99 % confidence."""

    percent: float
    measured_ns: int
    bound_ns: int

    def to_json(self) -> dict[str, Any]:
        return {
            "percent": self.percent,
            "measured_ms": self.measured_ns / 1e6,
            "early_stopping_ms": self.bound_ns / 1e6,
        }


@dataclass(frozen=True)
class Drift:
    """Medians of the first and the last tenth of the calls, in the order they were made."""

    first_tenth_ns: int
    last_tenth_ns: int

    @property
    def change(self) -> float:
        """Relative change from the first to the last tenth; 0.05 is 5 % slower."""
        if self.first_tenth_ns == 0:
            return 0.0
        return (self.last_tenth_ns - self.first_tenth_ns) / self.first_tenth_ns

    @property
    def unstable(self) -> bool:
        return abs(self.change) > UNSTABLE_ABOVE

    def to_json(self) -> dict[str, Any]:
        return {
            "first_tenth_ms": self.first_tenth_ns / 1e6,
            "last_tenth_ms": self.last_tenth_ns / 1e6,
            "change_percent": 100 * self.change,
            "unstable": self.unstable,
        }


@dataclass(frozen=True)
class LatencySummary:
    """What the samples say. Percentiles, the median's interval and drift are absent without enough calls."""

    calls: int
    min_ns: int
    max_ns: int
    mean_ns: float
    percentiles: tuple[PercentileEstimate, ...]
    median_interval_ns: tuple[int, int] | None
    drift: Drift | None

    def percentile(self, percent: float) -> PercentileEstimate | None:
        return next((each for each in self.percentiles if each.percent == percent), None)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "calls": self.calls,
            "min_ms": self.min_ns / 1e6,
            "mean_ms": self.mean_ns / 1e6,
            "max_ms": self.max_ns / 1e6,
            "percentiles": {f"p{each.percent:g}": each.to_json() for each in self.percentiles},
        }
        if self.median_interval_ns is not None:
            document["median_interval_95_ms"] = [each / 1e6 for each in self.median_interval_ns]
        if self.drift is not None:
            document["drift"] = self.drift.to_json()
        return document


def summarize(samples_ns: np.ndarray) -> LatencySummary:
    """Summarize integer samples (calls,) in the order they were taken. Raises DataError without any."""
    if len(samples_ns) == 0:
        raise DataError("no latency samples")
    ordered = np.sort(samples_ns)
    estimates = (percentile_estimate(ordered, percentile) for percentile in PERCENTILES)
    return LatencySummary(
        calls=len(ordered),
        min_ns=int(ordered[0]),
        max_ns=int(ordered[-1]),
        mean_ns=float(np.mean(ordered)),
        percentiles=tuple(each for each in estimates if each is not None),
        median_interval_ns=median_interval(ordered),
        drift=drift(samples_ns),
    )


def percentile_estimate(ordered_ns: np.ndarray, percentile: Fraction) -> PercentileEstimate | None:
    """Return the percentile of ascending samples with its early-stopping bound; None when there are too few.

    MLPerf's early stopping: with q calls, t is the largest integer with BinomialCDF(t; q, 1 - percentile) <=
    0.01. The t - 1 slowest calls are dropped and the slowest of the rest is reported, so t must be at least
    1.
    """
    q = len(ordered_ns)
    t = largest_tail(q, 1 - percentile, 1 - CONFIDENCE)
    if t < 1:
        return None
    rank = math.ceil(percentile * q)  # nearest rank, from 1
    return PercentileEstimate(float(100 * percentile), int(ordered_ns[rank - 1]), int(ordered_ns[q - t]))


def median_interval(ordered_ns: np.ndarray, confidence: Fraction = Fraction(95, 100)) -> tuple[int, int] | None:
    """Return an interval of the median from order statistics alone; None below 6 samples at 95 %."""
    k = largest_tail(len(ordered_ns), Fraction(1, 2), (1 - confidence) / 2)
    if k < 0:
        return None
    return int(ordered_ns[k]), int(ordered_ns[len(ordered_ns) - 1 - k])


def drift(samples_ns: np.ndarray) -> Drift | None:
    """Compare the first with the last tenth of the samples; None below 20: a tenth would be a single call."""
    tenth = len(samples_ns) // 10
    if tenth < 2:
        return None
    return Drift(int(np.median(samples_ns[:tenth])), int(np.median(samples_ns[-tenth:])))


def largest_tail(q: int, success: Fraction, tail: Fraction) -> int:
    """Return the largest t with BinomialCDF(t; q, success) <= tail, or -1 if there is none.

    The sum starts at a normal approximation of t and walks down its tail by the ratio of neighbouring terms,
    then moves t by single steps: about a thousand terms for two million calls. The first term's relative
    error, from lgamma, is below 1e-7 there, while one step of t changes the sum by 5 parts in 1,000.
    """
    if q <= 0:
        return -1
    p = float(success)
    odds = p / (1 - p)
    limit = float(tail)
    t = min(q, max(0, round(q * p - 2.0 * math.sqrt(q * p * (1 - p)))))
    term = math.exp(
        math.lgamma(q + 1) - math.lgamma(t + 1) - math.lgamma(q - t + 1) + t * math.log(p) + (q - t) * math.log1p(-p)
    )
    total, below, k = 0.0, term, t
    while k >= 0 and below > 1e-18 * total:
        total += below
        below *= k / ((q - k + 1) * odds)
        k -= 1
    while t >= 0 and total > limit:
        total -= term
        term *= t / ((q - t + 1) * odds)
        t -= 1
    while t < q:
        term = term * (q - t) * odds / (t + 1) if t >= 0 else math.exp(q * math.log1p(-p))
        if total + term > limit:
            break
        total += term
        t += 1
    return t


def encode_samples(samples_ns: np.ndarray) -> dict[str, Any]:
    """Return the samples as JSON: compressed, 4 bytes each unless one needs 8, exact either way."""
    array = np.asarray(samples_ns, dtype=np.uint64)
    width = "<u4" if len(array) == 0 or int(array.max()) < 1 << 32 else "<u8"
    data = zlib.compress(array.astype(width).tobytes(), 9)
    return {
        "encoding": f"zlib+base64,{width} ns",
        "count": len(array),
        "data": base64.b64encode(data).decode(),
    }


def decode_samples(document: Mapping[str, Any]) -> np.ndarray:
    """Return the samples (count,), uint64 in nanoseconds, that `encode_samples` wrote. Raises DataError."""
    widths = {f"zlib+base64,{width} ns": np.dtype(width) for width in ("<u4", "<u8")}
    encoding, count = document.get("encoding"), document.get("count")
    if encoding not in widths or type(count) is not int or count < 0:
        raise DataError(f"latency samples: encoding {encoding!r}, count {count!r}; expected one of {', '.join(widths)}")
    dtype = widths[str(encoding)]
    try:
        packed = base64.b64decode(document.get("data", ""), validate=True)
        unpack = zlib.decompressobj()
        data = unpack.decompress(packed, count * dtype.itemsize + 1)  # never more than was promised
    except (ValueError, TypeError, zlib.error) as error:
        raise DataError(f"latency samples: data is damaged ({error})") from None
    if len(data) != count * dtype.itemsize or not unpack.eof:
        raise DataError(f"latency samples: data does not hold {count} samples")
    return np.frombuffer(data, dtype=dtype).astype(np.uint64)
