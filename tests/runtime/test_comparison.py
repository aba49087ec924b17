from __future__ import annotations

import numpy as np
import pytest

from runtime.comparison import _expanded_tail, median_ratio, processes_of
from runtime.errors import DataError
from runtime.latency import encode_samples

Processes = list[np.ndarray]


def processes(generator: np.random.Generator, count: int, *, spread: float, factor: float = 1.0) -> Processes:
    """Latencies around 100 µs of processes that differ by `spread`, each call like the one before it."""
    made = []
    for _ in range(count):
        noise = generator.normal(size=300)
        for i in range(1, len(noise)):
            noise[i] += 0.7 * noise[i - 1]
        made.append(factor * 1e5 * np.exp(generator.normal(scale=spread) + 0.02 * noise))
    return made


def test_the_ratio_is_that_of_the_pooled_medians() -> None:
    generator = np.random.default_rng(0)
    first, second = processes(generator, 5, spread=0.0), processes(generator, 5, spread=0.0, factor=1.5)
    found = median_ratio(first, second, resamples=500)
    assert found.ratio == np.median(np.concatenate(second)) / np.median(np.concatenate(first))
    assert found.first_ms == np.median(np.concatenate(first)) / 1e6
    assert found.low < found.ratio < found.high
    assert found.low > 1.4
    assert found.high < 1.6
    assert found.differs
    assert found.in_words("a", "b").startswith("b is 49.8 % slower than a (ratio 1.498, 95 % interval 1.4")
    assert median_ratio(second, first, resamples=500).in_words("b", "a").startswith("a is 33.2 % faster than b (ratio")
    doubled = [2 * each for each in second]
    assert median_ratio(first, doubled, resamples=500).in_words("a", "b").startswith("b is 3.00 times as slow as a (")
    assert median_ratio(doubled, first, resamples=500).in_words("b", "a").startswith("a is 3.00 times as fast as b (")


def test_a_result_beside_itself_is_no_difference() -> None:
    samples = processes(np.random.default_rng(0), 5, spread=0.03)
    found = median_ratio(samples, samples, resamples=500)
    assert found.ratio == 1.0
    assert not found.differs
    assert found.in_words("a", "b").startswith("no difference between b and a (ratio 1.000, 95 % interval 0.9")


def test_equal_seeds_give_equal_intervals() -> None:
    generator = np.random.default_rng(0)
    first, second = processes(generator, 3, spread=0.01), processes(generator, 3, spread=0.01)
    assert median_ratio(first, second, resamples=200) == median_ratio(first, second, resamples=200)
    assert median_ratio(first, second, resamples=200) != median_ratio(first, second, resamples=200, seed=1)


def test_the_interval_holds_the_truth_where_processes_differ() -> None:
    """Were calls resampled as if each was on its own, nearly every pair would be called different."""
    generator = np.random.default_rng(2)
    held = 0
    for seed in range(40):
        first, second = processes(generator, 5, spread=0.03), processes(generator, 5, spread=0.03)
        held += not median_ratio(first, second, resamples=300, seed=seed).differs
    assert held >= 36


def test_percentiles_of_few_processes_are_expanded() -> None:
    # Hesterberg 2015: Phi(-sqrt(n / (n - 1)) * t(0.975, n - 1)); of 5 processes Phi(-1.11803 * 2.776).
    assert _expanded_tail(5) == pytest.approx(0.000955, abs=2e-6)
    assert _expanded_tail(1000) == pytest.approx(0.025, abs=4e-4)


def test_one_process_is_said_to_be_one() -> None:
    generator = np.random.default_rng(0)
    one, five = processes(generator, 1, spread=0.0), processes(generator, 5, spread=0.0)
    assert median_ratio(one, five, resamples=100).one_process
    assert not median_ratio(five, five, resamples=100).one_process


def test_too_few_calls_are_refused() -> None:
    with pytest.raises(DataError, match="99 calls are too few to compare by; expected at least 100"):
        median_ratio([np.ones(99)], [np.ones(1000)])


def test_samples_are_read_by_process() -> None:
    samples = np.arange(1, 8, dtype=np.uint64)
    result = {"kind": "bench", "samples": encode_samples(samples)}
    assert [each.tolist() for each in processes_of(result, "a.json")] == [[1, 2, 3, 4, 5, 6, 7]]
    result["processes"] = [{"calls": 3}, {"calls": 4}]
    assert [each.tolist() for each in processes_of(result, "a.json")] == [[1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match=r"a\.json: 7 samples, and its processes made 8 calls"):
        processes_of({**result, "processes": [{"calls": 8}]}, "a.json")
    with pytest.raises(DataError, match=r"a\.json: a result of accuracy, expected one of bench"):
        processes_of({"kind": "accuracy"}, "a.json")
    with pytest.raises(DataError, match=r"a\.json: not a result of bench \(KeyError\('samples'\)\)"):
        processes_of({"kind": "bench"}, "a.json")
