import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.accuracy import agreement, evaluate, read_reference, reference_from_logits, wilson_interval
from runtime.errors import DataError, EngineError, UsageError
from runtime.runners import open_runner


@pytest.fixture
def runner(bundle):
    with open_runner(bundle) as opened:
        yield opened


@pytest.mark.parametrize("batch", [1, 5, 24, 256])
def test_result_is_the_same_for_every_batch(runner, samples, batch):
    result = evaluate(runner, runner.bundle.samples(), batch=batch)
    predicted = samples["logits"].argmax(axis=1)
    assert (result.correct, result.total) == (22, 24)  # the fixture mislabels two rows
    assert result.accuracy == 22 / 24
    assert result.predictions == dict(zip(samples["row_ids"].tolist(), predicted.tolist(), strict=True))


def test_confusion_has_labels_in_rows(runner, samples):
    result = evaluate(runner, runner.bundle.samples())
    expected = np.zeros((3, 3), dtype=int)
    for label, logits in zip(samples["labels"], samples["logits"], strict=True):
        expected[label, logits.argmax()] += 1
    np.testing.assert_array_equal(result.confusion, expected)
    assert [each.total for each in result.per_class] == expected.sum(axis=1).tolist()
    assert [each.correct for each in result.per_class] == expected.diagonal().tolist()
    assert [each.name for each in result.per_class] == ["ant", "bee", "cat"]


def test_agreement_with_the_exported_model(runner):
    rows = runner.bundle.samples()
    result = evaluate(runner, rows, reference=reference_from_logits(rows))
    assert result.agreement.rate == 1.0
    assert result.to_json()["agreement"] == {"equal": 24, "total": 24, "rate": 1.0, "differing_row_ids": []}


def test_agreement_counts_and_names_rows():
    result = agreement({7: 0, 3: 1, 5: 2}, {3: 0, 5: 2, 7: 1, 9: 0})
    assert (result.equal, result.total, result.differing_row_ids) == (1, 3, (3, 7))


def test_reference_must_hold_every_row(runner):
    with pytest.raises(DataError, match=r"reference has no prediction for row ids 101, 102, .* and 13 more"):
        evaluate(runner, runner.bundle.samples(), reference={100: 0})


def test_result_is_json_and_serves_as_a_reference(runner, tmp_path):
    result = evaluate(runner, runner.bundle.samples(), batch=7)
    document = result.to_json()
    (tmp_path / "accuracy.json").write_text(json.dumps(document, allow_nan=False))
    assert read_reference(tmp_path / "accuracy.json") == result.predictions
    assert document["interval_95"] == list(wilson_interval(22, 24))
    assert sum(map(sum, document["confusion"])) == 24
    assert document["batch"] == 7


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"predictions": {"a": 1}}', '{"predictions": {"1": null}}'])
def test_bad_reference_file(tmp_path, content):
    (tmp_path / "accuracy.json").write_text(content)
    with pytest.raises(DataError, match=r"accuracy\.json"):
        read_reference(tmp_path / "accuracy.json")


def test_missing_reference_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_reference(tmp_path / "nothing.json")


def test_logits_that_are_not_finite_are_refused_by_row(runner, monkeypatch):
    rows = runner.bundle.samples()
    infer = runner.infer

    def poisoned(batch):
        logits = infer(batch)
        logits[1] = np.nan
        return logits

    monkeypatch.setattr(runner, "infer", poisoned)
    with pytest.raises(EngineError, match="not finite at row ids 101"):
        evaluate(runner, rows, batch=10)


def test_rows_are_checked_against_the_bundle(runner):
    rows = runner.bundle.samples()
    with pytest.raises(DataError, match="mine: labels outside 0 to 2 at row ids 100, 101"):
        evaluate(runner, dataclasses.replace(rows, labels=rows.labels + 3), origin="mine")
    with pytest.raises(UsageError, match="batch is 0"):
        evaluate(runner, rows, batch=0)


def test_progress_counts_rows(runner):
    lines = []
    evaluate(runner, runner.bundle.samples(), batch=10, progress=lines.append)
    assert lines == ["10 of 24 rows", "20 of 24 rows"]


def test_wilson_interval_by_hand():
    # 8 of 10: centre (0.8 + z2/20) / (1 + z2/10) with z2 = 3.8415; Newcombe's (1998) method 3.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case):
    correct, total = case
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    mirrored = wilson_interval(total - correct, total)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    # Its defining property: at either end the share lies z standard errors away.
    for end in (low, high):
        if 0 < end < 1:
            distance = abs(correct / total - end) / math.sqrt(end * (1 - end) / total)
            assert distance == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_no_proportion_has_no_interval(correct, total):
    with pytest.raises(DataError, match="not a proportion"):
        wilson_interval(correct, total)
