from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from compress.analysis.outputs import StageOutputs


@pytest.fixture
def outputs() -> Callable[..., StageOutputs]:
    """Return `outputs(logits, embedding, subclasses=1)`; the embedding is the logits where none is given."""

    def make(
        logits: ArrayLike, embedding: ArrayLike | None = None, *, subclasses: int = 1, stage: str = "student"
    ) -> StageOutputs:
        z = np.asarray(logits, dtype=np.float64)
        h = z if embedding is None else np.asarray(embedding, dtype=np.float64)
        return StageOutputs(stage, z, h, subclasses)

    return make
