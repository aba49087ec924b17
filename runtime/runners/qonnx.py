"""ONNX Runtime on a QONNX file, whose Quant nodes come with their definition as a function."""

from __future__ import annotations

from runtime.runners.onnxruntime import OnnxRuntimeRunner


class QonnxRunner(OnnxRuntimeRunner):
    """As for any ONNX file; a runner of its own, because no other engine is given nodes of another domain."""
