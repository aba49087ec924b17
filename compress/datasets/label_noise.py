"""Wrong labels on purpose, for the papers' experiments with noisy labels."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from compress.datasets.base import Int64Array
from compress.datasets.holdout import holdout_size
from compress.kinds import Spec

# Keeps these draws apart from those that other parts make from the same seed.
STREAM = 0x5B1F_0D02


class LabelNoise(Spec):
    """Symmetric noise: a share of the training rows gets one of the other classes, each as likely as the next.

    symmetric: that share, of all rows. seed: decides which rows and classes; it is not the run's seed, so that all
    seeds of a recipe see the same wrong labels.
    """

    symmetric: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def apply(self, labels: Int64Array, classes: int) -> Int64Array:
        """Return labels (N,) with round(symmetric · N) of them wrong; what is given is left as it is."""
        draw = np.random.RandomState([STREAM, self.seed])  # its stream is frozen, unlike that of Generator
        wrong = draw.permutation(len(labels))[: holdout_size(len(labels), self.symmetric)]
        noisy = labels.copy()
        noisy[wrong] = (labels[wrong] + draw.randint(1, classes, len(wrong))) % classes
        return noisy
