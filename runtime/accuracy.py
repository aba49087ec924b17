"""Accuracy of one model of a bundle on labelled rows, kept row by row so that two results can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import DataError, EngineError, UsageError
from runtime.rows import Rows, check_rows, named, shortened
from runtime.runners.base import Runner
from runtime.runners.choice import EngineChoice

SCHEMA_VERSION = 1
_Z_95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution


@dataclass(frozen=True)
class ClassCount:
    """Of the `total` rows with this label, `correct` were predicted so."""

    name: str
    correct: int
    total: int


@dataclass(frozen=True)
class Agreement:
    """How many predictions equal the reference's; `differing_row_ids` are the others, ascending."""

    equal: int
    total: int
    differing_row_ids: tuple[int, ...]

    @property
    def rate(self) -> float:
        return self.equal / self.total

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "total": self.total,
            "rate": self.rate,
            "differing_row_ids": list(self.differing_row_ids),
        }


@dataclass(frozen=True, eq=False)
class AccuracyResult:
    """`predictions` maps row id to predicted class; `confusion` int64 (C, C) has labels in rows.

    `identity` says of which model it is, for the document.
    """

    bundle: str
    identity: Mapping[str, Any]
    format: str
    engine: str
    engine_version: str
    choice: EngineChoice
    threads: int
    batch: int
    class_names: tuple[str, ...]
    correct: int
    total: int
    interval: tuple[float, float]
    predictions: Mapping[int, int]
    confusion: np.ndarray
    agreement: Agreement | None = None

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def per_class(self) -> tuple[ClassCount, ...]:
        totals = self.confusion.sum(axis=1)
        return tuple(
            ClassCount(name, int(self.confusion[c, c]), int(totals[c])) for c, name in enumerate(self.class_names)
        )

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "kind": "accuracy",
            "schema_version": SCHEMA_VERSION,
            **self.identity,
            "format": self.format,
            "engine": {
                "name": self.engine,
                "version": self.engine_version,
                "threads": self.threads,
                "chosen": self.choice.to_json(),
            },
            "batch": self.batch,
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
            "per_class": [{"name": each.name, "correct": each.correct, "total": each.total} for each in self.per_class],
            "confusion": self.confusion.tolist(),
            "predictions": {str(row_id): predicted for row_id, predicted in self.predictions.items()},
        }
        if self.agreement is not None:
            document["agreement"] = self.agreement.to_json()
        return document


def evaluate(
    runner: Runner,
    rows: Rows,
    *,
    batch: int = 256,
    reference: Mapping[int, int] | None = None,
    origin: str = "rows",
    progress: Callable[[str], None] | None = None,
) -> AccuracyResult:
    """Run all `rows` through `runner`, `batch` at a time (the last batch may be smaller) or as many as it takes.

    `reference` maps row id to the class that another model predicted. `origin` is what error messages call
    the rows. Raises DataError for rows that do not fit the bundle or the reference, EngineError for logits
    that are not finite.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}, expected at least 1")
    bundle = runner.bundle
    batch = runner.rows_at_once(batch)
    check_rows(rows, bundle, origin)
    _check_reference(rows, reference, origin)
    predicted = _predict(runner, rows, batch, progress or (lambda line: None))
    confusion = np.zeros((bundle.classes, bundle.classes), dtype=np.int64)
    np.add.at(confusion, (rows.labels, predicted), 1)
    correct = int(np.trace(confusion))
    predictions = dict(zip(rows.row_ids.tolist(), predicted.tolist(), strict=True))
    return AccuracyResult(
        bundle=bundle.name,
        identity=bundle.identity,
        format=runner.format,
        engine=runner.engine,
        engine_version=runner.version,
        choice=runner.choice,
        threads=runner.threads,
        batch=batch,
        class_names=bundle.class_names,
        correct=correct,
        total=len(rows),
        interval=wilson_interval(correct, len(rows)),
        predictions=predictions,
        confusion=confusion,
        agreement=None if reference is None else agreement(predictions, reference),
    )


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of the proportion. Raises DataError where it is none."""
    if not 0 <= correct <= total or total == 0:
        raise DataError(f"{correct} of {total} is not a proportion")
    p, z2 = correct / total, _Z_95**2
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    # The ends are exact at 0 and 1 in theory; rounding must not push them out or leave them short.
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == total else min(1.0, middle + half)
    return low, high


def agreement(predictions: Mapping[int, int], reference: Mapping[int, int]) -> Agreement:
    """Compare `predictions` with `reference` row by row; every row of `predictions` must be in it."""
    differing = sorted(row_id for row_id, predicted in predictions.items() if reference[row_id] != predicted)
    return Agreement(len(predictions) - len(differing), len(predictions), tuple(differing))


def reference_from_logits(rows: Rows) -> dict[int, int] | None:
    """Return the predictions that the rows' own expected logits make; None for rows without logits."""
    if rows.logits is None:
        return None
    return dict(zip(rows.row_ids.tolist(), rows.logits.argmax(axis=1).tolist(), strict=True))


def read_reference(path: str | Path) -> dict[int, int]:
    """Read the predictions of an earlier `accuracy.json`. Raises DataError."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    remedy = "Give a file that `accuracy --output` wrote."
    predictions = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(predictions, dict):
        raise DataError(f"{path}: it has no predictions", remedy=remedy)
    try:
        return {int(row_id): int(predicted) for row_id, predicted in predictions.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: predictions are not classes by row id ({error})", remedy=remedy) from None


def _check_reference(rows: Rows, reference: Mapping[int, int] | None, origin: str) -> None:
    if reference is None:
        return
    missing = [row_id for row_id in rows.row_ids.tolist() if row_id not in reference]
    if missing:
        raise DataError(f"{origin}: the reference has no prediction for row ids {named(missing)}")


def _predict(runner: Runner, rows: Rows, batch: int, say: Callable[[str], None]) -> np.ndarray:
    """Return the predicted class (N,) of every row; of equal logits the first class wins."""
    predicted = np.empty(len(rows), dtype=np.int64)
    tenth = max(batch, len(rows) // 10)
    said = 0
    for start in range(0, len(rows), batch):
        stop = min(start + batch, len(rows))
        inputs = shortened(rows.inputs[start:stop], runner.bundle)
        if not runner.takes_batch(len(inputs)):  # the last rows, filled up with themselves
            inputs = inputs[np.arange(batch) % len(inputs)]
        logits = runner.infer(inputs)[: stop - start]
        wrong = ~np.isfinite(logits).all(axis=1)
        if wrong.any():
            raise EngineError(
                f"{runner.path}: logits are not finite at row ids {named(rows.row_ids[start:stop][wrong])}"
            )
        predicted[start:stop] = logits.argmax(axis=1)
        if stop - said >= tenth and stop < len(rows):
            said = stop
            say(f"{stop} of {len(rows)} rows")
    return predicted
