"""Predictions and accuracy of a torch model on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.models import Classifier, Output
from compress.rows import Rows
from export.fold import fold_logits
from runtime.accuracy import wilson_interval

# Rows at a time, and values: fewer rows of large images, so that activations fit.
BATCH = 1000
BATCH_VALUES = 1 << 25


@torch.no_grad()
def outputs_of(model: Classifier, preprocess: nn.Module, rows: Rows) -> Output:
    """Return logits (N, C*S) and embedding (N, D), float32 on the device, of every row in order, without features.

    The model's mode is kept.
    """
    training = model.training
    model.eval()
    order = torch.arange(len(rows), device=rows.device)
    size = max(1, min(BATCH, BATCH_VALUES // rows.values))
    batches = [model(preprocess(inputs))._replace(features=()) for inputs, _ in rows.batches(order.split(size))]
    model.train(training)
    logits = torch.cat([batch.logits.float() for batch in batches])
    return Output(logits, torch.cat([batch.embedding.float() for batch in batches]), ())


def predict(model: Classifier, preprocess: nn.Module, rows: Rows) -> Tensor:
    """Return the logits (N, C*S), float32 on the device, of every row in order."""
    return outputs_of(model, preprocess, rows).logits


@dataclass(frozen=True)
class Score:
    """Accuracy with its 95 % Wilson interval, and the mean cross-entropy of the class logits."""

    correct: int
    total: int
    low: float
    high: float
    loss: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    def to_json(self) -> dict[str, float]:
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "low": self.low,
            "high": self.high,
            "loss": self.loss,
        }


def score(logits: Tensor, labels: Tensor, subclasses: int) -> Score:
    """Score subclass logits (N, C*S) against labels (N,)."""
    folded = fold_logits(logits, subclasses)
    correct = int((folded.argmax(1) == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    loss = float(nn.functional.cross_entropy(folded.double(), labels))
    return Score(correct, len(labels), low, high, loss)


def agreement(logits: Tensor, subclasses: int, other: Tensor, other_subclasses: int) -> float:
    """Return the share of rows on which two models predict the same class."""
    same = fold_logits(logits, subclasses).argmax(1) == fold_logits(other, other_subclasses).argmax(1)
    return float(same.double().mean())
