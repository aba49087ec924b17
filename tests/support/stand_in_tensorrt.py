"""A TensorRT and a CUDA runtime that run on the host: they keep what was called, and compute a known function.

`tensorrt` of version 10 in the calls that the runner makes. An engine's plan is JSON: names, types and shapes of its
tensors, and profiles. Its function: logits[n, c] = sum of row n of the input + c.
"""

from __future__ import annotations

import ctypes
import json
import math
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

VERSION = "10.3.0"


Calls = list[str]  # what was called, in order


def tensorrt(calls: Calls, name: str = "tensorrt", version: str = VERSION) -> ModuleType:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    module.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")  # type: ignore[attr-defined]
    module.nptype = lambda dtype: np.dtype(dtype)  # type: ignore[attr-defined]
    module.ILogger = type("ILogger", (), {"Severity": SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)})  # type: ignore[attr-defined]

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            calls.append("deserialize")
            try:
                return Engine(json.loads(plan), calls)
            except ValueError:
                self.log.log(1, "Serialization assertion failed:\n  magicTag")
                return None

    module.Runtime = Runtime  # type: ignore[attr-defined]
    return module


def builder(calls: Calls) -> ModuleType:
    """TensorRT 10's builder: a plan is made of what was asked for; its log has no layers, its inspector has."""
    module = tensorrt(calls)
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)  # type: ignore[attr-defined]
    module.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")  # type: ignore[attr-defined]
    module.BuilderFlag = SimpleNamespace(TF32="tf32")  # type: ignore[attr-defined]
    module.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")  # type: ignore[attr-defined]
    module.LayerInformationFormat = SimpleNamespace(JSON="json")  # type: ignore[attr-defined]
    for name in ("float32", "float16", "int32", "int64", "uint8", "int8", "bool"):
        setattr(module, name, name)
    tensor = SimpleNamespace(name="input", dtype="uint8", shape=(-1, 4))
    logits = SimpleNamespace(name="logits", dtype="float32", shape=(-1, 3))

    class Config(SimpleNamespace):
        def clear_flag(self, flag: str) -> None:
            calls.append(f"clear {flag}")

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            calls.append(f"{pool} {size}")

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, measured: bytes) -> Any:
            calls.append(f"cache of {len(measured)} bytes")
            return SimpleNamespace(serialize=lambda: measured + b"new")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return self.cache

    class Builder:
        def __init__(self, log: Any) -> None: ...
        def create_network(self, flags: int) -> Any:
            calls.append(f"network {flags}")
            return SimpleNamespace(num_inputs=1, num_outputs=1, get_input=lambda i: tensor, get_output=lambda i: logits)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, *ends: calls.append(f"{name} {ends}"))

        def build_serialized_network(self, network: Any, config: Config) -> bytes:
            return f"plan of {network.name}, {config.profiling_verbosity}".encode()

    class OnnxParser:
        def __init__(self, network: Any, log: Any) -> None: ...
        def parse(self, model: bytes) -> bool:
            return True

    layer = {
        "Name": "fc", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}],
        "Constants": [{"Name": "w", "Datatype": "Half"}], "Outputs": [{"Name": "y", "Format/Datatype": "Float"}],
        "Metadata": "[ONNX Layer: node_a]\x1e[ONNX Layer: node_b]",
    }  # fmt: skip
    inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": ["brief", layer]}))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    module.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)  # type: ignore[attr-defined]
    module.Builder, module.OnnxParser = Builder, OnnxParser  # type: ignore[attr-defined]
    return module


def builder_and_runtime(calls: Calls, shape: tuple[int, ...], outputs: dict[str, int]) -> ModuleType:
    """Builds plans that its own runtime runs, with the profiles that are asked for.

    They take images of `shape` in uint8, and give `outputs`: name and width, float32.
    """
    module, runtime = builder(calls), tensorrt(calls)
    module.Runtime = runtime.Runtime  # type: ignore[attr-defined]
    base = module.Builder  # type: ignore[attr-defined]
    tensor = SimpleNamespace(name="input", dtype="uint8", shape=(-1, *shape))
    given = [SimpleNamespace(name=name, dtype="float32", shape=(-1, width)) for name, width in outputs.items()]

    class Builder(base):  # type: ignore[misc, valid-type]
        def __init__(self, log: Any) -> None:
            self.profiles: list[list[int]] = []

        def create_network(self, flags: int) -> Any:
            calls.append(f"network {flags}")
            ends = {
                "num_inputs": 1,
                "get_input": lambda i: tensor,
                "num_outputs": len(given),
                "get_output": given.__getitem__,
            }
            return SimpleNamespace(**ends)

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, *ends: self.profiles.append([end[0] for end in ends]))

        def build_serialized_network(self, network: Any, config: Any) -> bytes:
            calls.append(f"build {self.profiles}")
            tensors = {"input": ["input", "uint8", [-1, *shape]]}
            tensors |= {name: ["output", "float32", [-1, width]] for name, width in outputs.items()}
            return json.dumps({"tensors": tensors, "profiles": self.profiles}).encode()

    module.Builder = Builder  # type: ignore[attr-defined]
    return module


def rtx(calls: Calls) -> ModuleType:
    """The same with what TensorRT-RTX has beside: settings of a context."""
    module = tensorrt(calls, "tensorrt_rtx")
    module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", LAZY="lazy")  # type: ignore[attr-defined]
    module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")  # type: ignore[attr-defined]
    return module


class Engine:
    def __init__(self, plan: dict[str, Any], calls: Calls) -> None:
        self.tensors = plan["tensors"]  # name -> [mode, dtype, shape with -1]
        self.profiles = plan["profiles"]
        self.calls = calls

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": []}))

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return str(self.tensors[name][0])

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.tensors[name][1])

    def create_runtime_config(self) -> Any:
        return SimpleNamespace()

    def create_execution_context(self, settings: Any = None) -> Context:
        strategy = getattr(settings, "dynamic_shapes_kernel_specialization_strategy", "none")
        self.calls.append(f"context {strategy} {getattr(settings, 'cuda_graph_strategy', 'none')}")
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.engine.calls.append(f"profile {index}")
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profiles[self.profile]
        assert least <= shape[0] <= most, f"{shape} is outside profile {self.profile}"
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (batch, *_), *_ = self.shapes.values()
        return tuple(batch if size == -1 else size for size in self.engine.tensors[name][2])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.engine.calls.append("execute")
        assert set(self.addresses) == set(self.engine.tensors), "a tensor has no address"
        inputs = [name for name in self.engine.tensors if self.engine.get_tensor_mode(name) == "input"]
        rows = self._array(inputs[0], self.shapes[inputs[0]]).reshape(self.shapes[inputs[0]][0], -1).sum(axis=1)
        for name in self.engine.tensors:
            if name not in inputs:
                output = self._array(name, self.get_tensor_shape(name))
                output[:] = rows[:, None] + np.arange(output.shape[1])
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self.engine.get_tensor_dtype(name))
        memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


def cuda_runtime(calls: Calls) -> ModuleType:
    """The CUDA runtime of cuda-python, on memory of the host; each function returns its status first."""
    module = ModuleType("cuda.bindings.runtime")
    buffers: dict[int, Any] = {}

    def malloc(size: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(max(size, 1))
        address = ctypes.addressof(buffer)
        buffers[address] = buffer
        return 0, address

    def copy(target: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        assert stream == 7
        device = target if kind == "to device" else source
        assert any(start <= device < start + len(buffer) for start, buffer in buffers.items()), "no buffer of the GPU"
        calls.append(kind)
        ctypes.memmove(target, source, size)
        return (0,)

    def called(name: str, *results: Any) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            calls.append(name)
            return (0, *results)

        return function

    def free(address: int) -> tuple[int]:
        del buffers[address]
        return (0,)

    module.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")  # type: ignore[attr-defined]
    module.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # type: ignore[attr-defined]
    functions = {
        "cudaStreamCreate": called("stream", 7), "cudaMalloc": malloc, "cudaMemcpyAsync": copy, "cudaFree": free,
        "cudaStreamSynchronize": called("synchronize"), "cudaStreamDestroy": called("destroy"),
        "cudaStreamBeginCapture": called("begin capture"), "cudaStreamEndCapture": called("end capture", "graph"),
        "cudaGraphInstantiate": called("instantiate", "launched"), "cudaGraphLaunch": called("launch graph"),
        "cudaGraphExecDestroy": called("destroy graph"),
    }  # fmt: skip
    for name, function in functions.items():
        setattr(module, name, function)
    module.buffers = buffers  # type: ignore[attr-defined]
    return module
