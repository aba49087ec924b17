"""What an epoch's losses come to: summed over rows, looked at in groups of steps, refused where not finite."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class NotFiniteError(Exception):
    """The first step (counted from the epoch's start) whose losses hold NaN or Inf, and its losses by name."""

    def __init__(self, step: int, losses: dict[str, float]) -> None:
        super().__init__(f"step {step}: {losses}")
        self.step = step
        self.losses = losses


@dataclass
class LossSums:
    """Losses of an epoch so far, by name, each the sum over rows of its batch means. `rows` are those of all steps.

    Steps wait in `pending` until `settle`: asking a GPU after every step whether a loss is finite would make it wait.
    """

    names: tuple[str, ...]
    sums: list[float] = field(default_factory=list)
    rows: int = 0
    steps: int = 0
    pending: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = self.sums or [0.0] * len(self.names)

    def add(self, rows: int, losses: tuple[Tensor, ...]) -> None:
        """Take in one step: the rows of its batch, and scalars on the device in the order of `names`."""
        self.pending.append((rows, losses))

    def settle(self) -> None:
        """Add what waits to the sums. Raises NotFiniteError where a loss is NaN or Inf; the sums stay as they were."""
        if not self.pending:
            return
        values = torch.stack([value for _, losses in self.pending for value in losses]).double().cpu()
        table = values.unflatten(0, (len(self.pending), -1))  # (steps, losses)
        finite = table.isfinite().all(dim=1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise NotFiniteError(self.steps + first, dict(zip(self.names, table[first].tolist(), strict=True)))
        for (rows, _), losses in zip(self.pending, table.tolist(), strict=True):
            self.sums = [total + rows * value for total, value in zip(self.sums, losses, strict=True)]
            self.rows += rows
        self.steps += len(self.pending)
        self.pending = []

    @property
    def means(self) -> dict[str, float]:
        """Return the mean over rows of each loss, by name; 0 before the first step."""
        return {name: total / max(self.rows, 1) for name, total in zip(self.names, self.sums, strict=True)}
