"""Whether a model is right as often as it says it is: reliability, calibration errors, Brier score.

Guo et al. 2017 ("On calibration of modern neural networks"), section 2. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """Rows by confidence in M bins ((m-1)/M, m/M] of equal width. Empty bins have confidence and accuracy 0.

    counts (M,); confidence (M,): mean of the largest class probability; accuracy (M,): share of right predictions.
    """

    counts: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def gaps(self) -> Floats:
        return np.abs(self.accuracy - self.confidence)

    @property
    def expected_error(self) -> float:
        """Return the expected calibration error: the mean gap of the bins, weighted by their rows (equation 3)."""
        return float(self.counts @ self.gaps / self.counts.sum())

    @property
    def maximum_error(self) -> float:
        """Return the maximum calibration error: the largest gap of a bin that has rows (equation 5)."""
        return float(self.gaps[self.counts > 0].max())

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts.tolist(),
            "confidence": self.confidence.tolist(),
            "accuracy": self.accuracy.tolist(),
        }


def reliability(probabilities: Floats, labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Sort rows by the confidence of their prediction; class probabilities (N, C), labels (N,)."""
    _require_probabilities(probabilities, labels)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    # Inner edges only, so that a probability of exactly 1 is in the last bin, as (.., 1] says.
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    counts = np.bincount(index, minlength=bins)
    rows = np.maximum(counts, 1)
    return Reliability(
        counts.astype(np.int64),
        np.bincount(index, confidence, minlength=bins) / rows,
        np.bincount(index, right, minlength=bins) / rows,
    )


def brier_score(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Return the mean over rows of sum_c (p_c - [c = label])^2, between 0 and 2 (Brier 1950).

    With two classes it is twice the score of the positive class alone.
    """
    _require_probabilities(probabilities, labels)
    errors = probabilities.copy()
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(1).mean())


def _require_probabilities(probabilities: Floats, labels: NDArray[np.int64]) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or not len(labels):
        raise ValueError(
            f"probabilities are {probabilities.shape}, labels {labels.shape}; expected (N, C), (N,), N at least 1"
        )
    # Written so that NaN is refused too.
    if not (np.abs(probabilities.sum(1) - 1) < 1e-6).all() or not (probabilities >= 0).all():
        raise ValueError("probabilities are not finite, negative or do not sum to 1 in each row")
