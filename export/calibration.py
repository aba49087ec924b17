"""Ranges of activations on real rows: how far the 8-bit numbers of a tensor have to reach.

All methods read one histogram of magnitudes for a tensor. Zeros are left out of it: every scale has them exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from runtime.cpu import keep_products_exact
from runtime.errors import ExportError

METHODS = ("minmax", "percentile", "entropy")
LEVELS = 127  # of a signed 8-bit number, on either side of zero

_BINS = 2048
_PERCENTILE = 0.9999
_BATCH = 32  # rows at a time: the histograms need all activations of them
_STEP = 8  # bins between the thresholds that entropy looks at
_ERRORS_ONLY = 3


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """How often which magnitude came up in a tensor: `counts` (bins,) over 0 to `largest`, zeros left out."""

    largest: float
    counts: np.ndarray

    def reach(self, method: str, levels: int = LEVELS) -> float:
        """Return the magnitude that the largest 8-bit number stands for, by one of `METHODS`; 0 of a dead tensor.

        levels: how many numbers there are on either side of zero, 255 of unsigned ones.
        """
        if self.largest == 0 or not self.counts.any() or method == "minmax":
            return self.largest
        bins = _percentile_bins(self.counts) if method == "percentile" else _entropy_bins(self.counts, levels)
        return self.largest * bins / len(self.counts)


def outputs_of(model: onnx.ModelProto | bytes, names: Sequence[str], rows: np.ndarray) -> list[np.ndarray]:
    """Run `rows` (N, *shape) on the CPU; return the tensors `names` of all of them."""
    batches = list(_batches(model, names, rows))
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def magnitudes_of(model: onnx.ModelProto, names: Sequence[str], rows: np.ndarray) -> dict[str, Magnitudes]:
    """Return the magnitudes of the float32 tensors `names` on `rows`. Raises ExportError where one is not finite."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {each.name for each in watched.graph.output}
    for name in names:
        if name not in there:
            watched.graph.output.add(name=name).type.tensor_type.elem_type = TensorProto.FLOAT
    largest = dict.fromkeys(names, 0.0)
    for tensors in _batches(watched, names, rows):
        for name, tensor in zip(names, tensors, strict=True):
            largest[name] = max(largest[name], float(np.abs(tensor).max(initial=0)))
            if not np.isfinite(tensor).all():
                raise ExportError(f"calibration: {name} is not finite on real rows; the model itself is broken")
    counts = {name: np.zeros(_BINS, np.int64) for name in names}
    for tensors in _batches(watched, names, rows):
        for name, tensor in zip(names, tensors, strict=True):
            if largest[name] > 0:
                found = np.abs(tensor[tensor != 0])
                counts[name] += np.histogram(found, bins=_BINS, range=(0.0, largest[name]))[0]
    return {name: Magnitudes(largest[name], counts[name]) for name in names}


def _batches(model: onnx.ModelProto | bytes, names: Sequence[str], rows: np.ndarray) -> Iterator[list[np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    keep_products_exact(options)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for first in range(0, len(rows), _BATCH):
        yield session.run(list(names), {given.name: rows[first : first + _BATCH]})


def _percentile_bins(counts: np.ndarray) -> int:
    """Return the fewest bins that hold the share `_PERCENTILE` of the values."""
    share = counts.cumsum() / counts.sum()
    return int(np.searchsorted(share, _PERCENTILE)) + 1


def _entropy_bins(counts: np.ndarray, levels: int) -> int:
    """Return the bins whose values lose least information (KL divergence) when `levels` numbers stand for them.

    The calibration that TensorRT made known (Migacz 2017): what lies beyond is counted in the last bin.
    """
    candidates = [*range(levels + 1, len(counts), _STEP), len(counts)]
    return min(candidates, key=lambda bins: _divergence(counts, bins, levels))


def _divergence(counts: np.ndarray, bins: int, levels: int) -> float:
    kept = counts[:bins].astype(np.float64)
    reference = kept.copy()
    reference[-1] += counts[bins:].sum()
    level = np.arange(bins) * levels // bins  # of each bin
    used = kept > 0
    sums = np.bincount(level, kept, levels)
    holders = np.bincount(level, used, levels)
    spread = np.where(used, sums[level] / np.maximum(holders[level], 1), 0.0)
    if not spread.any():
        return np.inf
    p, q = reference / reference.sum(), spread / spread.sum()
    # A bin that is empty but for what was cut off has no level: it counts as one that is hardly ever used.
    return float((p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-12))).sum())
