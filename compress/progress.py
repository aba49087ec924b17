"""What a running stage tells about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a stage stands; sent at most every few steps and at the end of every epoch."""

    stage: str
    epoch: int
    epochs: int
    fraction: float
    losses: Mapping[str, float]
    validation_accuracy: float | None
    rows_per_s: float
    seconds_left: float
    epoch_ended: bool = False


# Receives progress, and messages in words ("warning: ..." for those that should stand out).
Notify = Callable[[Progress | str], None]
