"""OpenVINO on the CPU: an engine for x86 and ARM that shares no code with ONNX Runtime.

It believes what it reads: a Conv without weights, which no exporter writes, ends the process (version 2026.4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from runtime.errors import BundleError, DeviceError, EngineError, MissingExtraError
from runtime.manifest import TensorSpec
from runtime.onnx_file import OnnxHeader, onnx_header_from_bytes, refuse_external_data
from runtime.runners.base import EngineCall, Runner, one_line

_DEVICE = "CPU"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
# What it calls the types of a manifest.
_DTYPES = {
    "uint8": "u8",
    "int8": "i8",
    "int32": "i32",
    "int64": "i64",
    "float16": "f16",
    "float32": "f32",
    "float64": "f64",
}


class OpenVinoRunner(Runner):
    """Runs an ONNX file with `threads` threads, one request at a time.

    Float tensors are computed in fp32 unless `choice.precision` says bf16. It is always said: left to itself, OpenVINO
    takes bf16 on a CPU that has instructions for it, and another machine would give other logits.
    """

    engine = "openvino"

    def _prepare_load(self) -> Callable[[], None]:
        engine = _import_engine()
        # 2026.4.1-22982-e213a147257-releases/2026/4: version, build, commit, branch
        self.version = str(engine.__version__).partition("-")[0]
        model = self.bundle.read_bytes(self.file.file)
        header = onnx_header_from_bytes(model, str(self.path))
        refuse_external_data(header, self.path)
        precision = self.choice.precision or "fp32"
        core = engine.Core()
        if precision == "bf16" and "BF16" not in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError(
                f"{core.get_property(_DEVICE, 'FULL_DEVICE_NAME')} has no instructions for bf16, which openvino "
                f"{self.version} was asked for",
                remedy="Leave precision out: fp32 runs everywhere.",
            )
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        return functools.partial(self._load, core, model, settings, header)

    def _load(self, core: Any, model: bytes, settings: dict[str, Any], header: OnnxHeader) -> None:
        try:
            self._model = core.compile_model(core.read_model(model=model), _DEVICE, settings)
            self._request = self._model.create_infer_request()
        except Exception as error:  # RuntimeError with several lines, of which the first name its own source files
            raise EngineError(
                f"{self.path}: openvino {self.version} cannot load this model "
                f"(opset {header.opset}, IR {header.ir_version}): {_reason(error)}",
                remedy="Run it with --engine onnxruntime, or install a newer openvino.",
            ) from error

    def _check_loaded(self) -> None:
        self.providers = tuple(self._model.get_property("EXECUTION_DEVICES"))
        hint = _HINTS[self.choice.precision or "fp32"]
        computes = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if computes != hint:
            raise EngineError(
                f"{self.path}: openvino {self.version} computes in {computes} here, expected {hint}",
                remedy="Choose the precision that this machine has with --precision, or another engine.",
            )
        # A port has the names of all tensors that are the same to it: of what a Cast makes, and of what it is made of.
        inputs = self._model.inputs
        if len(inputs) != 1 or self.bundle.input.name not in inputs[0].get_names():
            raise BundleError(
                f"{self.path}: the model's inputs are {', '.join(port.get_any_name() for port in inputs)}, "
                f"expected {self.bundle.input.name} as in {self.bundle.described_in}"
            )
        outputs = {name: (i, port) for i, port in enumerate(self._model.outputs) for name in port.get_names()}
        for spec in self.bundle.outputs:
            if spec.name not in outputs:
                raise BundleError(
                    f"{self.path}: output {spec.name!r} of {self.bundle.described_in} is not in the model; "
                    f"it has {', '.join(outputs)}"
                )
        self._compare(self.bundle.input, inputs[0])
        for spec in self.bundle.outputs:
            self._compare(spec, outputs[spec.name][1])
        self._positions = [outputs[spec.name][0] for spec in self.bundle.outputs]

    def _compare(self, spec: TensorSpec, port: Any) -> None:
        """Compare a tensor of the manifest with the model's; a dimension without a number fits any."""
        dtype = port.get_element_type().get_type_name()
        shape = port.get_partial_shape()
        axes = [int(axis.get_length()) if axis.is_static else None for axis in shape] if shape.rank.is_static else None
        fits = axes is None or (
            len(axes) == 1 + len(spec.shape)
            and axes[0] in (None, self.bundle.fixed_batch)
            and all(
                came is None or (came == expected and not free)
                for came, expected, free in zip(axes[1:], spec.shape, spec.free, strict=True)
            )
        )
        if dtype != _DTYPES[spec.dtype] or not fits:
            raise BundleError(
                f"{self.path}: {spec.name!r} is {dtype} {shape} in the model, "
                f"expected {_DTYPES[spec.dtype]} {spec.in_words()} as in {self.bundle.described_in}, with a free N"
            )

    def _engine_call(self, batch: np.ndarray) -> EngineCall:
        from openvino import Tensor

        # Wrapped once and not copied, as ONNX Runtime does it; what comes back is a copy, so that calls may follow.
        inputs = {0: Tensor(batch, shared_memory=True)}
        return functools.partial(_run, self._request, inputs, self._positions)

    def _unload(self) -> None:
        self._request = self._model = None


def _run(request: Any, inputs: dict[int, Any], positions: Sequence[int]) -> list[np.ndarray]:
    outputs = request.infer(inputs, share_inputs=True)
    return [outputs[position] for position in positions]


def _reason(error: Exception) -> str:
    """Return what its message says of the model: what it lists, else the first line that is no place in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return "; ".join(listed) or next(iter(told), "") or one_line(error)


def _import_engine() -> ModuleType:
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise EngineError(f"openvino is installed but does not import: {one_line(error)}") from error
        raise MissingExtraError(
            "OpenVINO is not installed; --engine openvino needs it", remedy="pip install 'edgefold[openvino]'"
        ) from error
    except ImportError as error:
        raise EngineError(f"openvino is installed but does not import: {one_line(error)}") from error
    return openvino
