"""ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from runtime.errors import BundleError, EngineError, MissingExtraError
from runtime.manifest import TensorSpec
from runtime.onnx_file import OnnxHeader, onnx_header_from_bytes, refuse_external_data
from runtime.runners.base import EngineCall, Runner, one_line

PROVIDERS = ("CPUExecutionProvider",)
_ERRORS_ONLY = 3  # its default prints advice about the graph on stderr

_DTYPES = {"float16": "float16", "float32": "float", "float64": "double"}


class OnnxRuntimeRunner(Runner):
    """Runs an ONNX file with `threads` threads inside an operation and one operation at a time."""

    engine = "onnxruntime"

    def _prepare_load(self) -> Callable[[], None]:
        engine = _import_engine()
        self.version = engine.__version__
        model = self._read_model()
        header = onnx_header_from_bytes(model, str(self.path))
        refuse_external_data(header, self.path)
        options = engine.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = engine.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        self._configure(options, header)
        return functools.partial(self._load, engine, model, options, header)

    def _read_model(self) -> bytes:
        return self.bundle.read_bytes(self.file.file)

    def _configure(self, options: Any, header: OnnxHeader) -> None:
        """Add what the model needs beyond the engine to its session options."""

    def _load(self, engine: ModuleType, model: bytes, options: Any, header: OnnxHeader) -> None:
        try:
            self._session = engine.InferenceSession(model, sess_options=options, providers=list(PROVIDERS))
        except Exception as error:  # its exception types are private and differ between versions
            raise EngineError(
                f"{self.path}: onnxruntime {self.version} cannot load this model "
                f"(opset {header.opset}, IR {header.ir_version}): {one_line(error)}",
                remedy="Where the engine is older than the model: install a newer onnxruntime, "
                "or export with a lower opset.",
            ) from error

    def _check_loaded(self) -> None:
        self.providers = tuple(self._session.get_providers())
        if self.providers != PROVIDERS:
            raise EngineError(
                f"{self.path}: onnxruntime runs on {', '.join(self.providers)}, expected {', '.join(PROVIDERS)}",
                remedy="Install an onnxruntime whose build has the expected provider.",
            )
        self._session.disable_fallback()  # or a failed run is tried again on another provider without a word
        inputs = {each.name: each for each in self._session.get_inputs()}
        if list(inputs) != [self.bundle.input.name]:
            raise BundleError(
                f"{self.path}: the model's inputs are {', '.join(inputs)}, "
                f"expected {self.bundle.input.name} as in manifest.json"
            )
        outputs = {each.name: each for each in self._session.get_outputs()}
        for spec in self.bundle.outputs:
            if spec.name not in outputs:
                raise BundleError(
                    f"{self.path}: output {spec.name!r} of manifest.json is not in the model; "
                    f"it has {', '.join(outputs)}"
                )
        for spec, argument in [
            (self.bundle.input, inputs[self.bundle.input.name]),
            *((spec, outputs[spec.name]) for spec in self.bundle.outputs),
        ]:
            self._compare(spec, argument)

    def _compare(self, spec: TensorSpec, argument: Any) -> None:
        """Compare a tensor of the manifest with the model's; a dimension without a number fits any."""
        dtype = f"tensor({_DTYPES.get(spec.dtype, spec.dtype)})"
        batch, *shape = argument.shape or [None]
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(came, int) or (came == expected and not free)
            for came, expected, free in zip(shape, spec.shape, spec.free, strict=True)
        )
        if argument.type != dtype or not fits or isinstance(batch, int):
            raise BundleError(
                f"{self.path}: {spec.name!r} is {argument.type} {list(argument.shape)} in the model, "
                f"expected {dtype} {spec.in_words()} as in manifest.json, with a free N"
            )

    def _engine_call(self, batch: np.ndarray) -> EngineCall:
        names = [spec.name for spec in self.bundle.outputs]
        return functools.partial(self._session.run, names, {self.bundle.input.name: batch})

    def _unload(self) -> None:
        self._session = None


def _import_engine() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise EngineError(f"onnxruntime is installed but does not import: {one_line(error)}") from error
        raise MissingExtraError(
            "ONNX Runtime is not installed; ONNX files need it",
            remedy="pip install 'edgefold[onnxruntime]' (on a Jetson: NVIDIA's own build of onnxruntime)",
        ) from error
    except ImportError as error:
        raise EngineError(f"onnxruntime is installed but does not import: {one_line(error)}") from error
    return onnxruntime
