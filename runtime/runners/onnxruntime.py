"""ONNX Runtime, on the CPU or on another execution provider."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from runtime.cpu import keep_products_exact
from runtime.errors import BundleError, EngineError, MissingExtraError
from runtime.manifest import TensorSpec
from runtime.onnx_file import OnnxHeader, onnx_header_from_bytes, refuse_external_data
from runtime.onnx_support import crashes_on, lays_out_wrongly, refusal
from runtime.runners.base import EngineCall, Runner, one_line
from runtime.runners.providers import BY_NAME, CPU, plugin_devices, require_compiled_in

_ERRORS_ONLY = 3  # its default prints advice about the graph on stderr
_RECORD_NODES = "session.record_ep_graph_assignment_info"  # from 1.24 on; older ones know nothing of it
_NAMED_AT_MOST = 5

_DTYPES = {"float16": "float16", "float32": "float", "float64": "double"}


class OnnxRuntimeRunner(Runner):
    """Runs an ONNX file with `threads` threads inside an operation and one operation at a time.

    The provider that was chosen runs it or nothing does: ONNX Runtime itself would go on with the CPU, with a line of
    warning or without. Operations that a provider does not have run on the CPU, and `notes` counts them.
    """

    engine = "onnxruntime"

    def _prepare_load(self) -> Callable[[], None]:
        engine = _import_engine()
        self.version = engine.__version__
        self._provider = BY_NAME[self.choice.provider or "cpu"]
        model = self._read_model()
        header = onnx_header_from_bytes(model, str(self.path))
        refuse_external_data(header, self.path)
        if self._provider.name == CPU and crashes_on(self.version, self.format):
            raise EngineError(
                f"{self.path}: onnxruntime {self.version} crashes on {self.format} on a CPU",
                remedy=self._upgrade(header),
            )
        options = engine.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = engine.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        keep_products_exact(options)
        if lays_out_wrongly(self.version):
            options.graph_optimization_level = engine.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        providers = self._providers(engine, options)
        self._configure(options, header)
        return functools.partial(self._load, engine, model, options, providers, header)

    def _read_model(self) -> bytes:
        return self.bundle.read_bytes(self.file.file)

    def _configure(self, options: Any, header: OnnxHeader) -> None:
        """Add what the model needs beyond the engine to its session options."""

    def _providers(self, engine: ModuleType, options: Any) -> list[Any] | None:
        """Return what a session is given as providers; None where its options say it, as a plugin's do."""
        provider = self._provider
        if provider.name == CPU:
            return [CPU]
        options.add_session_config_entry(_RECORD_NODES, "1")
        if provider.plugin and provider.name not in engine.get_available_providers():
            devices = plugin_devices(engine, provider)
            options.add_provider_for_devices(devices[:1], {})  # a session takes one; the first is the provider's choice
            return None
        require_compiled_in(engine, provider)
        return [(provider.name, provider.filled_options(self.threads))]

    def _load(
        self, engine: ModuleType, model: bytes, options: Any, providers: list[Any] | None, header: OnnxHeader
    ) -> None:
        try:
            # What older versions print when they fall back is no result; newer ones do not fall back.
            with contextlib.redirect_stdout(sys.stderr):
                self._session = engine.InferenceSession(
                    model, sess_options=options, providers=providers, enable_fallback=0
                )
        except Exception as error:  # its exception types are private and differ between versions
            where, remedy = "", self._upgrade(header)
            if self._provider.name != CPU:
                where = f" on {self._provider.name}"
                remedy = remedy or "Or run it on the CPU: leave the provider out."
            raise EngineError(
                f"{self.path}: onnxruntime {self.version} cannot load this model{where} "
                f"(opset {header.opset}, IR {header.ir_version}): {one_line(error)}",
                remedy=remedy or "Install a newer onnxruntime, or export with a lower opset: edgefold export --help.",
            ) from error

    def _upgrade(self, header: OnnxHeader) -> str:
        """Return what helps where this onnxruntime is too old for a model; nothing where it is not known to be."""
        too_old = refusal(header, self.version, self.format)
        return too_old.remedy() if too_old else ""

    def _check_loaded(self) -> None:
        self.providers = tuple(self._session.get_providers())
        # ONNX Runtime adds the CPU behind any other provider, for the operations that this one lacks.
        if self.providers not in ((self._provider.name,), (self._provider.name, CPU)):
            raise EngineError(
                f"{self.path}: onnxruntime runs on {', '.join(self.providers)}, expected {self._provider.name}",
                remedy="Its own log says why: it falls back where a driver or a library of the provider is missing.",
            )
        self._session.disable_fallback()  # or a failed run is tried again on another provider without a word
        if self._provider.name != CPU:
            self._count_nodes()
        inputs = {each.name: each for each in self._session.get_inputs()}
        if list(inputs) != [self.bundle.input.name]:
            raise BundleError(
                f"{self.path}: the model's inputs are {', '.join(inputs)}, "
                f"expected {self.bundle.input.name} as in {self.bundle.described_in}"
            )
        outputs = {each.name: each for each in self._session.get_outputs()}
        for spec in self.bundle.outputs:
            if spec.name not in outputs:
                raise BundleError(
                    f"{self.path}: output {spec.name!r} of {self.bundle.described_in} is not in the model; "
                    f"it has {', '.join(outputs)}"
                )
        for spec, argument in [
            (self.bundle.input, inputs[self.bundle.input.name]),
            *((spec, outputs[spec.name]) for spec in self.bundle.outputs),
        ]:
            self._compare(spec, argument)

    def _count_nodes(self) -> None:
        """Say which operations are left on the CPU, and refuse a provider that took none."""
        name = self._provider.name
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            self.notes = (f"onnxruntime {self.version} does not say which operations run on {name}; 1.24 does",)
            return
        left: Counter[str] = Counter()
        taken = 0
        for part in self._session.get_provider_graph_assignment_info():
            operations = [node.op_type for node in part.get_nodes()]
            if part.ep_name == name:
                taken += len(operations)
            else:
                left.update(operations)
        if not taken:
            raise EngineError(
                f"{self.path}: {name} took none of the model's {left.total()} operations; all would run on the CPU",
                remedy="Choose another provider or another format; leave the provider out for the CPU.",
            )
        self.nodes = {name: taken, **({CPU: left.total()} if left else {})}
        if left:
            operators = ", ".join(f"{count} {op}" for op, count in left.most_common(_NAMED_AT_MOST))
            more = ", ..." if len(left) > _NAMED_AT_MOST else ""
            total = taken + left.total()
            self.notes = (f"{left.total()} of {total} operations run on the CPU and not on {name}: {operators}{more}",)

    def _compare(self, spec: TensorSpec, argument: Any) -> None:
        """Compare a tensor of the manifest with the model's; a dimension without a number fits any."""
        dtype = f"tensor({_DTYPES.get(spec.dtype, spec.dtype)})"
        batch, *shape = argument.shape or [None]
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(came, int) or (came == expected and not free)
            for came, expected, free in zip(shape, spec.shape, spec.free, strict=True)
        )
        if argument.type != dtype or not fits or (isinstance(batch, int) and batch != self.bundle.fixed_batch):
            raise BundleError(
                f"{self.path}: {spec.name!r} is {argument.type} {list(argument.shape)} in the model, "
                f"expected {dtype} {spec.in_words()} as in {self.bundle.described_in}, with a free N"
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
