"""Linear probes against scikit-learn by hand, and what `--transfer` may name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from compress.analysis import transfer
from compress.analysis.clusters import SEED
from compress.analysis.transfer import probe, transfer_spec
from compress.datasets import describe
from compress.datasets.holdout import stratified_holdout
from runtime.accuracy import wilson_interval
from runtime.errors import DataError, UsageError


@pytest.fixture(scope="module")
def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    bunch = load_digits(n_class=4)
    x, y = bunch.data[:, ::2], bunch.target.astype(np.int64)
    return (x[:400], y[:400]), (x[400:], y[400:])


def test_a_probe_is_scikit_learns_best_regression_on_held_out_rows(digits: Any) -> None:
    train, test = digits
    found = probe(train, test)
    kept, held = stratified_holdout(train[1], 0.2, SEED)
    scores = {}
    for strength in transfer.STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        scores[strength] = model.fit(train[0][kept], train[1][kept]).score(train[0][held], train[1][held])
    best = max(scores.values())
    assert scores[found.strength] == best
    assert all(score < best for strength, score in scores.items() if strength < found.strength)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, max_iter=1000))
    expected = model.fit(*train).score(*test)
    assert found.accuracy == pytest.approx(expected, abs=1e-9)
    assert (found.low, found.high) == wilson_interval(round(expected * len(test[1])), len(test[1]))
    assert (found.train_rows, found.held_out_rows, found.test_rows) == (400, 80, len(test[1]))
    assert found.converged


def test_a_probe_does_not_hang_on_scale_shift_or_constant_columns(digits: Any) -> None:
    (x, y), (u, v) = digits
    moved = [np.hstack([1000 * rows + 5, np.full((len(rows), 1), 7.0)]) for rows in (x, u)]
    assert probe((moved[0], y), (moved[1], v)).accuracy == pytest.approx(probe((x, y), (u, v)).accuracy, abs=0.01)


def test_a_fit_that_reached_its_limit_says_so(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MOST_ITERATIONS", 2)
    assert not probe(*digits).converged


@pytest.mark.parametrize(
    "labels", [np.zeros(20, np.int64), np.array([0, 1]), np.array([0])], ids=["one class", "two rows", "one row"]
)
def test_too_few_rows_or_classes_are_refused(labels: np.ndarray) -> None:
    rows = np.arange(len(labels), dtype=float)[:, None]
    with pytest.raises(DataError, match="a linear probe on other has") as caught:
        probe((rows, labels), (rows, labels), name="other")
    assert "--transfer-rows" in caught.value.remedy


def test_transfer_names_a_kind_or_writes_its_options() -> None:
    assert transfer_spec("cifar100").source.kind == "cifar100"
    spec = transfer_spec("folder: {path: photos, size: [8, 8], mode: grey}")
    assert spec.source.kind == "folder"
    assert transfer_spec("{digits: {}}").source.kind == "digits"
    rows = describe(transfer_spec("digits")).rows
    assert rows == {"train": 1438, "validation": 0, "test": 359}  # nothing is held out of them


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("cifra100", "unknown data set 'cifra100'", "Did you mean 'cifar100'?"),
        ("folder", "is missing", "Add it."),
        ("digits: {size: 3}", "unknown key", ""),
        ("[digits]", "expected one data set", "such as cifar100"),
        ("3", "expected one data set", "such as cifar100"),
        ("folder: {", "not valid YAML", "such as cifar100"),
        ("", "the file is empty", "such as cifar100"),
    ],
)
def test_what_transfer_cannot_name(text: str, message: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        transfer_spec(text)
    assert caught.value.message.startswith("--transfer: ")
    assert message in caught.value.message
    assert remedy in caught.value.remedy
