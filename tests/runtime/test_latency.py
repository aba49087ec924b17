import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import DataError
from runtime.latency import (
    PERCENTILES,
    decode_samples,
    drift,
    encode_samples,
    largest_tail,
    median_interval,
    percentile_estimate,
    summarize,
)


def exact_largest_tail(q: int, success: Fraction, tail: Fraction) -> int:
    """The definition, in exact integers: p = a/b, so every term times b**q is whole."""
    a, b = success.numerator, success.denominator
    total, t = 0, -1
    for k in range(q + 1):
        total += math.comb(q, k) * a**k * (b - a) ** (q - k)
        if total * tail.denominator > tail.numerator * b**q:
            return t
        t = k
    return t


@settings(max_examples=60, deadline=None)
@given(
    q=st.integers(1, 1500),
    success=st.sampled_from([Fraction(1, 2), Fraction(1, 10), Fraction(1, 20), Fraction(1, 100), Fraction(1, 1000)]),
    tail=st.sampled_from([Fraction(1, 100), Fraction(25, 1000)]),
)
def test_tail_equals_exact_arithmetic(q, success, tail):
    assert largest_tail(q, success, tail) == exact_largest_tail(q, success, tail)


@pytest.mark.parametrize(("percent", "least"), [("90", 64), ("95", 130), ("99", 662), ("99.9", 6636)])
def test_minimum_calls_are_those_of_mlperf(percent, least):
    percentile = Fraction(percent) / 100
    assert percentile_estimate(np.arange(least - 1), percentile) is None
    # At the minimum t is 1: nothing is dropped, the bound is the slowest call.
    assert percentile_estimate(np.arange(least), percentile).bound_ns == least - 1


@pytest.mark.parametrize("q", [10_000, 100_000, 2_000_000])
@pytest.mark.parametrize("percentile", PERCENTILES)
def test_tail_of_many_calls_brackets_the_limit(q, percentile):
    binom = pytest.importorskip("scipy.stats").binom
    t = largest_tail(q, 1 - percentile, Fraction(1, 100))
    assert binom.cdf(t, q, float(1 - percentile)) <= 0.01 < binom.cdf(t + 1, q, float(1 - percentile))


def test_no_calls_have_no_tail():
    assert largest_tail(0, Fraction(1, 2), Fraction(1, 100)) == -1


def test_bound_drops_one_less_than_t():
    # q = 1000, p99: CDF(2; 1000, 0.01) = 0.0027 <= 0.01 < CDF(3) = 0.01007, so t = 2 and one call is dropped.
    samples = np.arange(1000)
    estimate = percentile_estimate(samples, Fraction(99, 100))
    assert (estimate.measured_ns, estimate.bound_ns, estimate.percent) == (989, 998, 99.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**10), min_size=700, max_size=900), st.randoms())
def test_summary_agrees_with_numpy_in_any_order(values, random):
    random.shuffle(values)
    samples = np.array(values, dtype=np.uint64)
    summary = summarize(samples)
    assert [each.percent for each in summary.percentiles] == [50, 90, 99]
    for each in summary.percentiles:
        assert each.measured_ns == np.percentile(samples, each.percent, method="inverted_cdf")
        assert each.measured_ns <= each.bound_ns <= summary.max_ns
    assert (summary.min_ns, summary.max_ns) == (min(values), max(values))
    assert summary.mean_ns == pytest.approx(sum(values) / len(values))
    low, high = summary.median_interval_ns
    assert low <= summary.percentile(50).measured_ns <= high


@pytest.mark.parametrize(
    ("calls", "present"),
    [(10, []), (11, ["p50"]), (63, ["p50"]), (64, ["p50", "p90"]), (661, ["p50", "p90"]),
     (662, ["p50", "p90", "p99"]), (6635, ["p50", "p90", "p99"]), (6636, ["p50", "p90", "p99", "p99.9"])],
)  # fmt: skip
def test_percentile_is_absent_below_its_minimum(calls, present):
    document = summarize(np.ones(calls, dtype=np.uint64)).to_json()
    assert list(document["percentiles"]) == present


def test_outliers_are_never_trimmed():
    summary = summarize(np.array([1000] * 999 + [10**9], dtype=np.uint64))
    assert summary.max_ns == 10**9
    assert summary.mean_ns == pytest.approx(1_000_999.0)


def test_median_interval_by_hand():
    # n = 10: P(Binomial(10, 1/2) <= 1) = 11/1024 <= 0.025 < 56/1024, so the 2nd smallest to the 2nd largest.
    assert median_interval(np.arange(1, 11)) == (2, 9)
    # n = 6: (1/2)^6 = 0.0156 <= 0.025, the whole range; n = 5: 0.031, nothing.
    assert median_interval(np.arange(1, 7)) == (1, 6)
    assert median_interval(np.arange(1, 6)) is None


def test_median_interval_covers_the_median_as_often_as_it_says():
    # Of 101 calls the interval holds the median in 96.6 % of runs by exact arithmetic (95 % or the next count above).
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(np.sort(generator.exponential(1e6, size=101).astype(np.uint64)))
        hits += low <= 1e6 * math.log(2) <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_percentiles_of_many_samples_are_numpys():
    # One more than 10,000, of which 99.9 % are no whole number: numpy's floats would round it up.
    samples = np.random.default_rng(0).lognormal(10, 1, 10_001).astype(np.uint64)
    summary = summarize(samples)
    assert [each.percent for each in summary.percentiles] == [50, 90, 99, 99.9]
    for each in summary.percentiles:
        assert each.measured_ns == np.percentile(samples, each.percent, method="inverted_cdf")


def test_drift_compares_first_and_last_tenth():
    steady = drift(np.full(100, 1000, dtype=np.uint64))
    assert (steady.change, steady.unstable) == (0.0, False)
    slower = drift(np.array([1000] * 50 + [1051] * 50, dtype=np.uint64))
    assert slower.change == pytest.approx(0.051)
    assert slower.unstable
    faster = drift(np.array([1000] * 50 + [949] * 50, dtype=np.uint64))
    assert faster.unstable
    assert not drift(np.array([1000] * 50 + [1050] * 50, dtype=np.uint64)).unstable
    assert drift(np.ones(19, dtype=np.uint64)) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_samples_survive_encoding_exactly(values):
    samples = np.array(values, dtype=np.uint64)
    np.testing.assert_array_equal(decode_samples(encode_samples(samples)), samples)


def test_samples_take_four_bytes_until_one_needs_eight():
    assert encode_samples(np.array([2**32 - 1], dtype=np.uint64))["encoding"] == "zlib+base64,<u4 ns"
    assert encode_samples(np.array([2**32], dtype=np.uint64))["encoding"] == "zlib+base64,<u8 ns"


@pytest.mark.parametrize(
    "change",
    [{"encoding": "pickle"}, {"count": 2}, {"count": 4}, {"count": -1}, {"count": True}, {"data": "%%"},
     {"data": "AAAA"}, {"data": None}],
)  # fmt: skip
def test_damaged_samples_are_refused(change):
    document = encode_samples(np.array([1, 2, 3], dtype=np.uint64))
    with pytest.raises(DataError, match="latency samples"):
        decode_samples({**document, **change})


def test_no_samples_have_no_summary():
    with pytest.raises(DataError, match="no latency samples"):
        summarize(np.array([], dtype=np.uint64))
