"""What a PCA of each class needs of the embeddings, summed in one pass: count, sum and second moments.

Memory is O(C·D²) whatever the number of rows, and sums of parts of the data, made in other processes, add with `+`.

Rows wait in a buffer for each class until one matrix product can take many of them, so that a pass costs about one
`H.T @ H` and not one for each class. They are summed about a point near the class mean: embeddings whose mean is large
beside their spread would lose the spread in float32 otherwise. Products are of the rows' own precision (half
precision: float32), over a few thousand rows at most, and add up in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import blas
from torch import Tensor

# A piece of rows that stays in a core's cache while it is gathered, shifted and summed.
PIECE_NUMBERS = 2**18
# Rows of one product, and rows waiting in all buffers together.
PRODUCT_ROWS = 4096
WAITING_ROWS = 2**15
# Decorates what meets NaN and Inf: they are for `finite` to find, in all rows at once.
quietly = np.errstate(invalid="ignore", over="ignore")


class EmbeddingSums:
    """Sums of embeddings (N, D) for each of `classes`. `dtype` is the precision of the products."""

    def __init__(self, classes: int, width: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; expected float32 or float64")
        self.width = width
        self.dtype = dtype
        # 4·D rows at most, so that buffers stay O(C·D²) too.
        room = max(64, min(4 * width, PRODUCT_ROWS, WAITING_ROWS // max(classes, 1)))
        self.parts = [_ClassSums(width, room, dtype, torch.device(device)) for _ in range(classes)]

    @classmethod
    def of(cls, embeddings: Tensor, labels: Tensor, classes: int) -> EmbeddingSums:
        """Return the sums of embeddings (N, D) with labels (N,), in their precision and on their device."""
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        sums = cls(classes, embeddings.shape[1], dtype=dtype, device=str(embeddings.device))
        sums.add(embeddings, labels)
        return sums

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Take in embeddings (N, D) of the classes `labels` (N,)."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"embeddings are {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
                f"expected (N, {self.width}) and (N,)"
            )
        if not len(labels):
            return
        lowest, highest = labels.min().item(), labels.max().item()
        if lowest < 0 or highest >= len(self.parts):
            raise ValueError(f"labels are {lowest} to {highest}; expected 0 to {len(self.parts) - 1}")
        order = labels.argsort(stable=True).to(embeddings.device)
        counts = labels.bincount(minlength=len(self.parts)).tolist()
        for part, index in zip(self.parts, order.split(counts), strict=True):
            part.add(embeddings.detach(), index)

    def __add__(self, other: EmbeddingSums) -> EmbeddingSums:
        if (len(self.parts), self.width) != (len(other.parts), other.width):
            raise ValueError(
                f"sums of {len(self.parts)} classes of width {self.width} and of {len(other.parts)} classes of width "
                f"{other.width} do not add; expected the same classes and width"
            )
        coarser = torch.float32 if torch.float32 in (self.dtype, other.dtype) else torch.float64
        device = str(self.parts[0].shift.device) if self.parts else "cpu"
        both = EmbeddingSums(len(self.parts), self.width, dtype=coarser, device=device)
        for part, mine, yours in zip(both.parts, self.parts, other.parts, strict=True):
            part.merge(mine)
            part.merge(yours)
        return both

    def __getstate__(self) -> dict[str, object]:
        for part in self.parts:
            part.settle()  # Buffers are several times larger than the sums that other processes are sent.
        return self.__dict__

    @property
    def counts(self) -> list[int]:
        """Rows of each class."""
        return [part.count for part in self.parts]

    def mean(self, label: int) -> Tensor:
        """Return the mean (D,) of a class, float64. Zero where it has no rows."""
        part = self.parts[label]
        return part.shift.double() + part.sum / max(part.count, 1)

    def covariance(self, label: int) -> Tensor:
        """Return the population covariance (D, D) of a class, float64. Zero where it has no rows."""
        part = self.parts[label]
        part.settle()
        offset = part.sum / max(part.count, 1)  # of the mean from the shift
        lower = part.moments.tril()
        both = lower + lower.T
        both.diagonal().div_(2)
        return both.div_(max(part.count, 1)).addr_(offset, offset, alpha=-1)

    def finite(self, label: int) -> bool:
        """Return whether the sums of a class, and so all of its embeddings, are free of NaN and Inf."""
        part = self.parts[label]
        part.settle()
        return bool(part.sum.isfinite().all() and part.moments.diagonal().isfinite().all())


class _ClassSums:
    """One class: count n, sum (D,) and second moments (D, D) of h - shift; only the lower triangle is kept."""

    def __init__(self, width: int, room: int, dtype: torch.dtype, device: torch.device) -> None:
        self.count = 0
        self.shift = torch.zeros(width, dtype=dtype, device=device)
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.moments = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.room = room
        self.piece = max(1, PIECE_NUMBERS // max(width, 1))
        self.waiting = 0
        self.buffer: Tensor | None = None  # (room, D), the rows since the last product, shifted
        self.product: Tensor | None = None  # (D, D), scratch

    def add(self, embeddings: Tensor, index: Tensor) -> None:
        """Take in the rows `index` of embeddings (N, D)."""
        taken = 0
        while taken < len(index):
            if self.buffer is None:
                self.buffer = self.shift.new_empty(self.room, len(self.shift))
            size = min(len(index) - taken, self.room - self.waiting, self.piece)
            rows = self.buffer[self.waiting : self.waiting + size]
            _gather(embeddings, index[taken : taken + size], rows)
            if self.count == 0:
                self.shift = rows.mean(0)
            self.sum += _shift_and_sum(rows, self.shift)
            self.count += size
            self.waiting += size
            taken += size
            if self.waiting == self.room:
                self._multiply()

    def merge(self, other: _ClassSums) -> None:
        """Add another part's sums, moved to this one's shift."""
        if other.count == 0:
            return
        self.settle()
        other.settle()
        device = self.sum.device
        total, moments, shift = other.sum.to(device), other.moments.to(device), other.shift.to(device)
        if self.count == 0:
            self.shift = shift.to(self.shift.dtype)
        move = shift.double() - self.shift.double()  # (D,)
        cross = torch.outer(total, move)
        self.moments += moments + cross + cross.T + other.count * torch.outer(move, move)
        self.sum += total + other.count * move
        self.count += other.count

    def settle(self) -> None:
        """Take in the rows that wait, and give their buffer back."""
        if self.waiting:
            self._multiply()
        self.buffer = self.product = None

    def _multiply(self) -> None:
        assert self.buffer is not None  # Rows wait in it.
        if self.product is None:
            self.product = torch.zeros_like(self.moments, dtype=self.buffer.dtype)
        rows, self.waiting = self.buffer[: self.waiting], 0
        _lower_gram(rows, self.product)
        _accumulate(self.product, self.moments)


# On the CPU these go by NumPy, in one thread: a piece is in its cache, and PyTorch's threads and those of the product
# would wait for each other at every turn.


def _gather(embeddings: Tensor, index: Tensor, rows: Tensor) -> None:
    if embeddings.dtype != rows.dtype or embeddings.device != rows.device:
        rows.copy_(embeddings[index])
    elif rows.device.type == "cpu":
        # "clip" writes to `out` without a copy between; the index comes from a sort and is never out of range.
        np.take(embeddings.numpy(), index.numpy(), axis=0, out=rows.numpy(), mode="clip")
    else:
        torch.index_select(embeddings, 0, index, out=rows)


@quietly
def _shift_and_sum(rows: Tensor, shift: Tensor) -> Tensor:
    """Take `shift` (D,) from rows (n, D) in place and return their sum (D,)."""
    if rows.device.type != "cpu":
        return rows.sub_(shift).sum(0)
    array = rows.numpy()
    np.subtract(array, shift.numpy(), out=array)
    return torch.from_numpy(array.sum(0))


@quietly
def _accumulate(product: Tensor, moments: Tensor) -> None:
    """Add the product (D, D), float32 perhaps, to the moments (D, D), float64."""
    if moments.device.type != "cpu":
        moments += product
    else:
        np.add(moments.numpy(), product.numpy(), out=moments.numpy())


def _lower_gram(rows: Tensor, product: Tensor) -> None:
    """Write the lower triangle of rows.T @ rows into `product` (D, D); the rest of it is not read."""
    if rows.device.type != "cpu":
        torch.mm(rows.T, rows, out=product)
        return
    # Half the work of a general product, and PyTorch has no call for it. In Fortran's order, rows are columns.
    rank_update = blas.ssyrk if rows.dtype == torch.float32 else blas.dsyrk
    rank_update(1.0, rows.numpy().T, c=product.numpy().T, overwrite_c=True, lower=False)
