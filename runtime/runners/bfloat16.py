"""ONNX Runtime with a bfloat16 model, which its CPU provider has no kernels for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from runtime.errors import DeviceError, EngineError
from runtime.onnx_file import OnnxHeader
from runtime.runners.onnxruntime import OnnxRuntimeRunner

_NO_KERNEL = "NotImplemented"  # the name of onnxruntime's private exception


class Bfloat16Runner(OnnxRuntimeRunner):
    """Runs a bfloat16 model where the engine can, and says what can where it cannot."""

    def _load(
        self, engine: ModuleType, model: bytes, options: Any, providers: list[Any] | None, header: OnnxHeader
    ) -> None:
        try:
            super()._load(engine, model, options, providers, header)
        except EngineError as error:
            if type(error.__cause__).__name__ != _NO_KERNEL:
                raise
            raise DeviceError(
                f"{self.path}: bfloat16 needs an engine of an NVIDIA GPU; onnxruntime {self.version} has no kernels "
                "of it for this CPU",
                remedy="On the device: edgefold export engine BUNDLE --format bf16, then --format tensorrt-...; "
                "here: --engine openvino, which has such kernels, or --format fp16 or onnx.",
            ) from error
