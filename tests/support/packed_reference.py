"""The operators of `runtime/ops/README.md` in numpy, as plainly as they can be written, for onnx's reference evaluator.

They compute by integers, tap by tap and word by word, and share nothing with what writes or runs packed graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


def packed_signs(x: np.ndarray, group: int) -> np.ndarray:
    """Real (N, C) → uint32 (N, words); (N, H, W, C) → (N, H, words, W)."""
    channels = x.shape[-1]
    each = channels // group
    out = []
    for g in range(group):
        for first in range(0, each, 32):
            word = np.zeros(x.shape[:-1], np.uint32)
            for i in range(first, min(first + 32, each)):
                negative = ~(x[..., g * each + i] >= 0)
                word |= negative.astype(np.uint32) << np.uint32(i - first)
            out.append(word)
    return np.stack(out, axis=1 if x.ndim == 2 else 2)


def unpacked(bits: np.ndarray, channels: int, group: int) -> np.ndarray:
    """The ±1 that `bits` hold, channels last, as int64; refuses bits behind the last channel."""
    each = channels // group
    words = -(-each // 32)
    assert bits.dtype == np.uint32
    assert bits.shape[1 if bits.ndim == 2 else 2] == group * words
    last = bits if bits.ndim == 2 else bits.transpose(0, 1, 3, 2)  # (..., words)
    planes = [(last[..., w, None] >> np.arange(32, dtype=np.uint32)) & 1 for w in range(group * words)]
    by_group = [np.concatenate(planes[g * words : (g + 1) * words], axis=-1) for g in range(group)]
    assert not any(plane[..., each:].any() for plane in by_group)
    return 1 - 2 * np.concatenate([plane[..., :each] for plane in by_group], axis=-1).astype(np.int64)


def finished(
    sums: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    slope: np.ndarray | None,
    residual: np.ndarray | None,
    slope_after: np.ndarray | None,
    sign_scale: np.ndarray | None,
    sign_bias: np.ndarray | None,
    out_group: int,
) -> tuple[np.ndarray, np.ndarray]:
    y = sums.astype(np.float32)
    y = y * scale
    y = y + bias
    if slope is not None:
        y = np.where(y < 0, y * slope, y)
    if residual is not None:
        assert residual.shape == y.shape
        y = y + residual
    if slope_after is not None:
        y = np.where(y < 0, y * slope_after, y)
    signed = y
    if sign_scale is not None:
        signed = y * sign_scale
        signed = signed + sign_bias
    assert y.dtype == np.float32
    return y, packed_signs(signed, out_group)


class Binarize(OpRun):
    op_domain = "edgefold"

    def _run(self, x: Any, scale: Any = None, bias: Any = None, group: int | None = None) -> tuple[np.ndarray, ...]:
        assert x.dtype == np.float32
        if scale is not None:
            x = x * scale
            x = x + bias
        return (packed_signs(x, group or 1),)


class BinaryGemm(OpRun):
    op_domain = "edgefold"

    def _run(
        self,
        x: Any,
        w: Any,
        scale: Any,
        bias: Any,
        slope: Any = None,
        residual: Any = None,
        slope_after: Any = None,
        sign_scale: Any = None,
        sign_bias: Any = None,
        channels: int | None = None,
        out_group: int | None = None,
    ) -> tuple[np.ndarray, ...]:
        assert channels is not None
        sums = unpacked(x, channels, 1) @ unpacked(w, channels, 1).T
        ends = (scale, bias, slope, residual, slope_after, sign_scale, sign_bias)
        return finished(sums, *ends, out_group or 1)[: len(self.onnx_node.output)]


class BinaryConv(OpRun):
    op_domain = "edgefold"

    def _run(
        self,
        x: Any,
        w: Any,
        scale: Any,
        bias: Any,
        slope: Any = None,
        residual: Any = None,
        slope_after: Any = None,
        sign_scale: Any = None,
        sign_bias: Any = None,
        channels: int | None = None,
        strides: Any = None,
        dilations: Any = None,
        pads: Any = None,
        group: int | None = None,
        pad_value: int | None = None,
        out_group: int | None = None,
    ) -> tuple[np.ndarray, ...]:
        assert channels is not None
        group, (down, right), (below, beside) = group or 1, strides or (1, 1), dilations or (1, 1)
        top, left, bottom, right_pad = pads or (0, 0, 0, 0)
        image = unpacked(x, channels, group)  # (N, H, W, C)
        image = np.pad(image, ((0, 0), (top, bottom), (left, right_pad), (0, 0)), constant_values=pad_value or 0)
        outputs, height, width, _ = w.shape
        each = channels // group
        taps = unpacked(w.reshape(outputs, -1, w.shape[-1]).transpose(0, 2, 1)[:, None], each, 1)[:, 0]
        taps = taps.reshape(outputs, height, width, each)
        sums = convolved(image, taps, group, (down, right), (below, beside))
        ends = (scale, bias, slope, residual, slope_after, sign_scale, sign_bias)
        return finished(sums, *ends, out_group or 1)[: len(self.onnx_node.output)]


def convolved(
    image: np.ndarray, taps: np.ndarray, group: int, strides: tuple[int, int], dilations: tuple[int, int]
) -> np.ndarray:
    """Padded integers (N, H, W, C) with integers (outputs, height, width, C / group)."""
    outputs, height, width, each = taps.shape
    (down, right), (below, beside), made = strides, dilations, outputs // group
    rows = (image.shape[1] - (height - 1) * below - 1) // down + 1
    columns = (image.shape[2] - (width - 1) * beside - 1) // right + 1
    sums = np.zeros((len(image), rows, columns, outputs), np.int64)
    for i in range(height):
        for j in range(width):
            part = image[:, i * below :, j * beside :][:, ::down, ::right][:, :rows, :columns]
            for g in range(group):
                weights = taps[g * made : (g + 1) * made, i, j]
                sums[..., g * made : (g + 1) * made] += part[..., g * each : (g + 1) * each] @ weights.T
    return sums


class FixedConv(OpRun):
    op_domain = "edgefold"

    def _run(
        self,
        x: Any,
        w: Any,
        scale: Any,
        bias: Any,
        slope: Any = None,
        residual: Any = None,
        slope_after: Any = None,
        sign_scale: Any = None,
        sign_bias: Any = None,
        input_scale: float | None = None,
        levels: int | None = None,
        strides: Any = None,
        dilations: Any = None,
        pads: Any = None,
        group: int | None = None,
        out_group: int | None = None,
    ) -> tuple[np.ndarray, ...]:
        assert input_scale is not None
        assert levels is not None
        assert w.dtype == np.int8
        top, left, bottom, right = pads or (0, 0, 0, 0)
        steps = np.where(np.isnan(x), -levels, np.rint(np.clip(x * np.float32(input_scale), -levels, levels)))
        image = np.pad(steps.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)))
        sums = convolved(image, w.astype(np.int64), group or 1, strides or (1, 1), dilations or (1, 1))
        assert np.abs(sums).max(initial=0) < 1 << 24
        ends = (scale, bias, slope, residual, slope_after, sign_scale, sign_bias)
        return finished(sums, *ends, out_group or 1)[: len(self.onnx_node.output)]


class Pool(OpRun):
    op_domain = "edgefold"

    def _run(
        self, x: Any, mode: str | None = None, kernel_shape: Any = None, strides: Any = None, pads: Any = None
    ) -> tuple[np.ndarray, ...]:
        top, left, bottom, right = pads or (0, 0, 0, 0)
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=-np.inf)
        high, wide = kernel_shape if any(kernel_shape) else x.shape[1:3]
        (down, aside) = strides or (1, 1)
        rows, columns = (x.shape[1] - high) // down + 1, (x.shape[2] - wide) // aside + 1
        y = np.zeros((len(x), rows, columns, x.shape[3]), np.float32)
        for i in range(rows):
            for j in range(columns):
                window = x[:, i * down : i * down + high, j * aside : j * aside + wide].reshape(len(x), -1, x.shape[3])
                if mode == "max":
                    y[:, i, j] = window.max(1)
                    continue
                assert mode == "mean"
                for position in range(window.shape[1]):  # in reading order
                    y[:, i, j] = y[:, i, j] + window[:, position] if position else window[:, position]
                y[:, i, j] *= np.float32(1) / np.float32(high * wide)
        return (y,)


def run_packed(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """Return the first output of a packed model for `inputs`, evaluated operator by operator in numpy."""
    return run_reference(model, inputs)[0]


def run_reference(model: bytes, *inputs: np.ndarray) -> list[np.ndarray]:
    """Return every output of a model, with the operators above, in numpy."""
    parsed = onnx.load_model_from_string(model)
    for number, node in enumerate(parsed.graph.node):  # or the evaluator reads an absent output as an absent input
        node.output[:] = [name or f"absent {number} {place}" for place, name in enumerate(node.output)]
    evaluator = ReferenceEvaluator(parsed, new_ops=[Binarize, BinaryConv, BinaryGemm, FixedConv, Pool])
    names = [each.name for each in parsed.graph.input]
    return evaluator.run(None, dict(zip(names, inputs, strict=True)))  # type: ignore[return-value]
