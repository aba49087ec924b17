"""TensorRT engines: tensorrt 10 and 11, and tensorrt_rtx, by the calls that all three have.

A timed call waits for the GPU at its end, so clocks are synchronised. By default it copies its inputs there and its
outputs back, as a program does whose data lie in the host's memory, and so is comparable with engines of a CPU.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.cuda import CudaDevice, cuda_devices
from runtime.cuda_memory import CudaMemory, cuda_memory
from runtime.engine_file import EngineFile, engine_file_from_json
from runtime.errors import BundleError, DeviceError, EngineError, MissingExtraError, UsageError
from runtime.files import sha256_of_bytes
from runtime.runners.base import EngineCall, Runner, one_line
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.tensorrt_library import RTX, collecting_log


@dataclass(frozen=True, eq=False)
class _Bound:
    """Buffers for one batch shape, by name of the tensor, and what puts a run over them on the stream."""

    addresses: dict[str, int]
    launch: Callable[[], None]


class TensorRTRunner(Runner):
    """Runs an engine on the first CUDA device.

    copies: whether a call copies inputs and outputs between the host and the GPU; else the inputs lie there before, and
    outputs are fetched after the clock has stopped. cuda_graph: launch the engine as one CUDA graph.
    """

    engine = "tensorrt"
    _description: EngineFile  # from `_prepare_load` on
    _memory: CudaMemory  # from `_load` on

    def __init__(
        self,
        bundle: Bundle,
        format: str,
        *,
        threads: int = 1,
        choice: EngineChoice = DEFAULT,
        copies: bool = True,
        cuda_graph: bool = False,
    ) -> None:
        self._copies = copies
        self._cuda_graph = cuda_graph
        self._bound: dict[tuple[int, ...], _Bound] = {}
        self._contexts: dict[int, Any] = {}
        super().__init__(bundle, format, threads=threads, choice=choice)

    def takes_batch(self, size: int) -> bool:
        return self._profile_of((size, *self.bundle.input.shape)) is not None

    def _prepare_load(self) -> Callable[[], None]:
        plan, self._description = self._read_engine()
        device = self._device()  # before the module: classic TensorRT ends a process that has none
        self._trt = self._module()
        self.version = self._trt.__version__
        self.engine = self._trt.__name__
        self.providers = (f"{device.name} ({device.capability})",)
        return functools.partial(self._load, plan)

    def _read_engine(self) -> tuple[bytes, EngineFile]:
        """Return the engine and its description, which belong together."""
        description, plan = _description(self.bundle, self.format), self.bundle.read_bytes(self.file.file)
        if sha256_of_bytes(plan) != description.plan_sha256:
            raise BundleError(f"{self.path}: not the engine that {self.file.description} describes", self._remedy())
        return plan, description

    def _device(self) -> CudaDevice:
        wanted = self._description.compute_capability
        needed = f"an {wanted.upper()} GPU" if wanted else "an NVIDIA GPU"
        device = next(iter(cuda_devices()), None)
        if device is None:
            raise DeviceError(f"{self.path}: needs {needed}, and this machine has no CUDA device")
        if wanted is not None and wanted != device.capability:
            here = f"{device.name} of {device.capability.upper()}"
            raise DeviceError(f"{self.path}: needs {needed}, and here is {here}", remedy=self._remedy())
        return device

    def _module(self) -> ModuleType:
        name, version = self._description.module, self._description.version
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise EngineError(f"{name} is installed but does not import: {one_line(error)}") from error
            extra = f"pip install 'edgefold[{'rtx' if name == RTX else 'tensorrt'}]' (on a Jetson: NVIDIA's own build)"
            raise MissingExtraError(f"{name} is not installed; {self.path} was built by it", remedy=extra) from error
        except Exception as error:  # a library that is missing is an ImportError, OSError or RuntimeError, by version
            raise EngineError(f"{name} is installed but does not import: {one_line(error)}") from error
        if module.__version__ != version:
            raise EngineError(
                f"{self.path}: was built by {name} {version}, which alone loads it, and here is {module.__version__}",
                remedy=self._remedy(),
            )
        return module

    def _remedy(self, batch: int | None = None) -> str:
        """Return how an engine is built that runs here, with `batch` rows a call where that is what was lacking."""
        build = f"On the device: edgefold export engine {self.bundle.path} --format {self.file.source}"
        return f"Choose another batch, or build for it: {build} --profile 1,{batch}" if batch else build

    def _load(self, plan: bytes) -> None:
        log = collecting_log(self._trt)
        self._runtime = self._trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reasons = "; ".join(dict.fromkeys(log.errors)) or "it gave no reason"
            raise EngineError(f"{self.path}: {self.engine} {self.version} cannot load it: {reasons}", self._remedy())
        self._memory = cuda_memory()

    def _check_loaded(self) -> None:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if inputs != [self.bundle.input.name]:
            expected = f"{self.bundle.input.name} as in manifest.json"
            raise BundleError(f"{self.path}: the engine's inputs are {', '.join(inputs)}, expected {expected}")
        self._outputs = [name for name in names if name not in inputs]
        for spec in (self.bundle.input, *self.bundle.outputs):
            if spec.name not in names:
                raise BundleError(
                    f"{self.path}: the engine has no {spec.name!r} of manifest.json, but {', '.join(names)}"
                )
            if self._dtype(spec.name) != np.dtype(spec.dtype):
                came = self._dtype(spec.name)
                raise BundleError(f"{self.path}: {spec.name!r} is {came} in the engine, expected {spec.dtype}")
        self.notes = (
            f"copies of inputs and outputs between host and GPU are {'' if self._copies else 'not '}counted",
            f"memory by {self._memory.name}, CUDA graph {'on' if self._cuda_graph else 'off'}",
        )

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))

    def _engine_call(self, batch: np.ndarray) -> EngineCall:
        memory, bound = self._memory, self._bind(batch)
        name, specs = self.bundle.input.name, self.bundle.outputs

        def fetch() -> list[np.ndarray]:
            outputs = [np.empty((len(batch), *spec.shape), self._dtype(spec.name)) for spec in specs]
            for spec, output in zip(specs, outputs, strict=True):
                memory.download(output, bound.addresses[spec.name])
            memory.synchronize()
            return outputs

        def call_with_copies() -> list[np.ndarray]:
            memory.upload(bound.addresses[name], batch)
            bound.launch()
            return fetch()

        def call_alone() -> _Deferred:
            bound.launch()
            memory.synchronize()
            return _Deferred(fetch)

        return call_with_copies if self._copies else call_alone

    def _bind(self, batch: np.ndarray) -> _Bound:
        """Return buffers for `batch`, which it lies in: those of its shape or, where copies are not timed, its own.

        The engine runs once over them, so that nothing is made in the first timed call.
        """
        profile = self._profile_of(batch.shape)
        if profile is None:
            taken = ", ".join("-".join(map(str, each.batch_sizes)) for each in self._description.profiles)
            raise UsageError(
                f"{self.path}: a batch of {len(batch)} is outside the engine's profiles (least-best-most: {taken})",
                remedy=self._remedy(len(batch)),
            )
        if self._copies and batch.shape in self._bound:
            return self._bound[batch.shape]
        memory, context, name = self._memory, self._context(profile), self.bundle.input.name
        context.set_input_shape(name, batch.shape)
        addresses = {name: memory.allocate(batch.nbytes)}
        for output in self._outputs:
            count = int(np.prod(tuple(context.get_tensor_shape(output))))
            addresses[output] = memory.allocate(count * self._dtype(output).itemsize)
        memory.upload(addresses[name], batch)
        launch = functools.partial(self._launch, context, batch.shape, addresses)
        launch()
        memory.synchronize()
        self._bound[batch.shape] = bound = _Bound(addresses, memory.captured(launch) if self._captures else launch)
        return bound

    def _launch(self, context: Any, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        # Calls of several shapes share a context, so each says which is its own.
        context.set_input_shape(self.bundle.input.name, shape)
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self._memory.stream):
            raise EngineError(f"{self.path}: {self.engine} {self.version} did not start")

    def _profile_of(self, shape: tuple[int, ...]) -> int | None:
        """Return the profile that takes `shape` and is tuned for what is nearest to it."""
        name = self.bundle.input.name
        profiles = self._description.profiles
        fitting = [i for i, profile in enumerate(profiles) if profile.takes(name, shape)]
        return min(fitting, key=lambda i: abs(profiles[i].best[name][0] - shape[0]), default=None)

    def _context(self, profile: int) -> Any:
        """Return the execution context of a profile, made when it is first needed."""
        if profile not in self._contexts:
            settings = self._runtime_config()
            create = self._engine.create_execution_context
            context = create(settings) if settings is not None else create()
            if context is None:
                raise EngineError(f"{self.path}: {self.engine} {self.version} gives no context; is there memory?")
            if len(self._description.profiles) > 1:
                context.set_optimization_profile_async(profile, self._memory.stream)
                self._memory.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _runtime_config(self) -> Any:
        """Return RTX's settings; None where there are none.

        Kernels are made for the shapes at hand before they are timed, and not while they are.
        """
        trt = self._trt
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return None
        settings = self._engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._cuda_graph:
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return settings

    @property
    def _captures(self) -> bool:
        """Return whether CUDA graphs are for us to capture; RTX does it itself."""
        return self._cuda_graph and not hasattr(self._trt, "CudaGraphStrategy")

    def _unload(self) -> None:
        self._contexts, self._bound = {}, {}
        self._engine = self._runtime = None
        self._memory.close()


class _Deferred(Sequence[np.ndarray]):
    """Outputs that are fetched when somebody looks at them: behind the clock."""

    def __init__(self, fetch: Callable[[], list[np.ndarray]]) -> None:
        self._fetch = functools.cache(fetch)

    def __getitem__(self, index: Any) -> Any:
        return self._fetch()[index]

    def __len__(self) -> int:
        return len(self._fetch())


def _description(bundle: Bundle, format: str) -> EngineFile:
    file = bundle.format(format).description
    if file is None:
        raise BundleError(f"{bundle.path}: format {format!r} is no engine that edgefold built: it names no source")
    return engine_file_from_json(bundle.read_bytes(file), str(bundle.path / file))
