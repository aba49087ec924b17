"""An ONNX model in float16 (`export.half_precision`)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.half_precision import HalfPrecision, half_from_onnx

LARGEST = float(np.finfo(np.float16).max)
FLOAT16 = HalfPrecision("fp16", "float16", TensorProto.FLOAT16, np.dtype(np.float16), LARGEST)


def fp16_from_onnx(model: bytes) -> bytes:
    """Return a float32 model (`export.to_onnx`) as one of float16 with the same inputs and outputs.

    Raises ExportError where a constant is larger than float16 holds, or where an operator does not take float16.
    """
    return half_from_onnx(model, FLOAT16)
