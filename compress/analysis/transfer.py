"""Linear-probe transfer: what a frozen student's embeddings tell of other data, by multinomial logistic regression.

As in the transfer tables of Tian et al. 2020 ("Contrastive representation distillation") and Loo et al. 2024 (LELP).
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.analysis.clusters import SEED, sampled_rows
from compress.data_argument import data_argument
from compress.datasets import Dataset, DataSpec, Declaration, Split, describe, load
from compress.datasets.holdout import stratified_holdout
from compress.evaluate import outputs_of
from compress.kinds import as_recipe_value
from compress.plan import Plan
from compress.rows import Rows
from compress.stages import Settings, Stages
from runtime.accuracy import wilson_interval
from runtime.errors import DataError, UsageError
from runtime.files import json_text

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# Inverse strengths of the L2 penalty that are tried, strongest first: each fit starts from the one before.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
HELD_OUT = 0.2
MOST_ITERATIONS = 1000


def transfer_spec(text: str) -> DataSpec:
    """Return the data that `--transfer` names: a kind, or YAML `kind: {options}`."""
    return data_argument(text, "--transfer")


@dataclass(frozen=True)
class Probe:
    """A linear classifier's accuracy on the other data's test rows, with its 95 % Wilson interval.

    strength: the inverse of the L2 penalty that was best on `held_out_rows` of the train rows, of which it then saw
    all. converged: whether the last fit ended before its limit of iterations.
    """

    accuracy: float
    low: float
    high: float
    train_rows: int
    held_out_rows: int
    test_rows: int
    strength: float
    converged: bool


def probe(train: tuple[Floats, Labels], test: tuple[Floats, Labels], *, name: str = "the data") -> Probe:
    """Fit on embeddings (N, D) with labels (N,), standardised by the rows of the fit, and score on the test rows.

    Raises DataError where the train rows are too few to hold some out, or are all of one class.
    """
    embedding, labels = train
    kept, held = stratified_holdout(labels, HELD_OUT, SEED)
    if not len(held) or len(np.unique(labels[kept])) < 2:
        raise DataError(
            f"a linear probe on {name} has {len(labels)} train rows of {len(np.unique(labels))} class(es)",
            "Give it at least two classes and ten rows: raise --transfer-rows, or name other data.",
        )
    held_rows = embedding[held], labels[held]
    fits = _fits((embedding[kept], labels[kept]), STRENGTHS, held_rows)
    best = max(fits, key=lambda fit: fit.correct)  # the strongest penalty of equals: it comes first
    final = _fits(train, (best.strength,), test)[0]
    total = len(test[1])
    low, high = wilson_interval(final.correct, total)
    return Probe(
        final.correct / total, low, high, len(labels), len(held), total, best.strength, final.converged
    )  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    strength: float
    correct: int
    converged: bool


def _fits(rows: tuple[Floats, Labels], strengths: tuple[float, ...], judged_on: tuple[Floats, Labels]) -> list[_Fit]:
    """Fit once for each strength; say how many of other rows each gets right."""
    # Here: scikit-learn takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows[0])
    model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    fits = []
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
            model.set_params(C=strength).fit(scaler.transform(rows[0]), rows[1])
        correct = int((model.predict(scaler.transform(judged_on[0])) == judged_on[1]).sum())
        fits.append(_Fit(strength, correct, bool(model.n_iter_.max() < MOST_ITERATIONS)))
    return fits


class Transfer:
    """The other data of `--transfer`, opened once for all stages and seeds of a recipe."""

    def __init__(self, spec: DataSpec, data_root: Path | None, cache: Path, train_rows: int | None) -> None:
        self.spec = spec
        self.data_root = data_root
        self.cache = cache
        self.train_rows = train_rows

    @property
    def name(self) -> str:
        return self.spec.source.kind

    @property
    def key(self) -> str:
        """Return what tells this probe from others: its data, and how many rows of it."""
        settings = {"source": as_recipe_value(self.spec.source), "train_rows": self.train_rows}  # type: ignore[arg-type]
        return " ".join(json_text(settings).split())

    @cached_property
    def declaration(self) -> Declaration:
        return describe(self.spec, self.data_root)

    @cached_property
    def dataset(self) -> Dataset:
        return load(self.spec, seed=SEED, data_root=self.data_root, cache=self.cache)

    def require_fit(self, plan: Plan) -> None:
        """Raise UsageError where the other data's inputs are not what a recipe's models take."""
        theirs, ours = self.declaration.signature, plan.declaration.signature
        if theirs != ours:
            raise UsageError(
                f"--transfer: inputs of {self.name} are {theirs}, but the models of {plan.recipe.name} take {ours}",
                "Name data of the form that the recipe trains on; `folder` and `parquet` resize with `size: [H, W]`.",
            )

    def __call__(self, run: Stages, stage: str) -> dict[str, Any]:
        """Probe a trained stage's embeddings; its own preprocessing is kept, as on the device."""
        train, test = self.dataset.train, self.dataset.test
        if self.train_rows is not None:
            train = train.take(sampled_rows(len(train), self.train_rows))
        found = probe(_embedded(run, stage, train), _embedded(run, stage, test), name=self.name)
        return {"data": self.name, "classes": self.dataset.classes, **asdict(found)}


def open_transfer(text: str, settings: Settings, train_rows: int | None) -> Transfer:
    """Return the data that `--transfer` names, where a run's own data would be looked for.

    Raises UsageError where the text names none.
    """
    return Transfer(transfer_spec(text), settings.data_root, settings.cache, train_rows)


def _embedded(run: Stages, stage: str, split: Split) -> tuple[Floats, Labels]:
    output = outputs_of(run.model(stage), run.preprocess, Rows(split, run.device))
    return output.embedding.cpu().double().numpy(), split.labels
