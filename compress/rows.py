"""Training rows on the device, and the order in which they are visited."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from compress.datasets import Split
from compress.datasets.stream import CutOfRow, ImageStream

# Share of a GPU's free memory that the rows may take; the rest is for the model and its activations.
DEVICE_SHARE = 0.4


class Rows:
    """A split as tensors: inputs as in `Split`, labels and, where there is a view, hidden int64 (N,).

    Inputs live on the device where they fit, so that a batch is one gather; otherwise they stay in host memory and
    each batch is copied over. A stream's stay in their files: `inputs` is empty, and batches are decoded ahead.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.device = device
        self.stream = split.inputs if isinstance(split.inputs, ImageStream) else None
        self.inputs = _tensor_of(split)
        self.values = math.prod(split.inputs.shape[1:])  # of one row
        self.labels = torch.from_numpy(np.ascontiguousarray(split.labels)).to(device)
        self.hidden = None if split.hidden is None else torch.from_numpy(np.ascontiguousarray(split.hidden)).to(device)
        self.row_ids = split.row_ids
        self.change: Callable[[Tensor], Tensor] | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            fits = self.inputs.nbytes <= DEVICE_SHARE * free
            self.inputs = self.inputs.to(device) if fits else self.inputs.pin_memory()

    def changed(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """Return the same rows whose inputs pass through `change` when they are gathered."""
        other = copy.copy(self)
        other.change = change
        return other

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return (inputs, labels) of the rows `index` (N,), on the device."""
        return next(self.batches([index]))

    def batches(self, order: Sequence[Tensor], cut: CutOfRow | None = None) -> Generator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) of each batch of rows (N,), in order, on the device.

        cut: the part of each image that a stream decodes, in place of its own. Close what is left before its end.
        """
        if self.stream is None:
            gathered = (self.inputs[index.to(self.inputs.device)] for index in order)
        else:
            decoded = self.stream.ahead((index.cpu().numpy() for index in order), cut)
            gathered = (self._pinned(torch.from_numpy(pixels)) for pixels in decoded)
        for index, inputs in zip(order, gathered, strict=True):
            inputs = inputs.to(self.device, non_blocking=True)
            yield inputs if self.change is None else self.change(inputs), self.labels[index]

    def _pinned(self, inputs: Tensor) -> Tensor:
        return inputs.pin_memory() if self.device.type == "cuda" else inputs


def _tensor_of(split: Split) -> Tensor:
    if isinstance(split.inputs, ImageStream):
        return torch.empty((0, *split.inputs.image_shape), dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(split.inputs))


def steps_per_epoch(rows: int, batch_size: int, drop_last: bool) -> int:
    return rows // batch_size if drop_last else -(-rows // batch_size)


def epoch_order(rows: int, *, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Return the permutation of `rows` for one epoch. It hangs on seed and epoch alone, so a resumed run has it too."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator).to(device)
