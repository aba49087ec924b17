"""An ONNX model as a TensorRT engine, by TensorRT or TensorRT-RTX. Needs neither torch nor onnx.

The network is strongly typed: precision is what the graph says, the only way that TensorRT 10, 11 and RTX share. RTX
builds on any machine, for the GPUs that are asked for; TensorRT builds for the GPU that it runs on.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from runtime.errors import ExportError, MissingExtraError
from runtime.onnx_file import onnx_header_from_bytes

RTX = "tensorrt_rtx"
MODULES = ("tensorrt", RTX)  # in the order in which they are tried
BATCH_SIZES = (1, 8, 64)

# Without a driver nearly every error is followed by such a line, which says nothing about the model.
_MEANINGLESS = "cudaError 35"
_CUDA_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine. dtype in numpy's words; shape with -1 for the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """A serialised engine, and what cannot be read back from it without its GPU.

    compute_capability: what it was built for, as in `sm86`; None is every GPU that RTX serves, or the one at hand.
    batch_sizes: smallest, best served and largest batch of the profile.
    """

    plan: bytes
    module: str
    version: str
    compute_capability: str | None
    batch_sizes: tuple[int, int, int]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]


def engine_from_onnx(
    model: bytes,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    length: int | None = None,
    compute_capability: str | None = None,
    module: str | None = None,
    tf32: bool = False,
) -> Engine:
    """Build an engine from a serialised ONNX model whose weights are inside and whose batch is free.

    batch_sizes: the profile's smallest and largest are theirs; it is tuned for the one in the middle. length: the
    longest of texts whose length is free as well; the engine is tuned for that.
    compute_capability: `sm86`, or None (`Engine`). module: one of `MODULES`, None for the first that is installed.
    tf32: lets float32 products be rounded to 10 bits, which misses the parity gate of FP32.
    Raises ExportError with everything that TensorRT reported, MissingExtraError where there is no TensorRT, BundleError
    where the model is not whole.
    """
    profile = _profile_sizes(batch_sizes)
    if outside := onnx_header_from_bytes(model, "the model").external_data:
        raise ExportError(f"the model keeps weights in {', '.join(outside)}; expected them inside the file")
    trt = tensorrt_module(module)
    log = _collecting_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        reported = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _refused(trt, "cannot read the model", [*reported, *log.errors])
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    _set_capability(trt, config, compute_capability)
    _add_profile(trt, builder, config, network, profile, length, log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(trt, "cannot build the model", log.errors)
    return Engine(
        plan=bytes(plan),
        module=trt.__name__,
        version=trt.__version__,
        compute_capability=compute_capability,
        batch_sizes=profile,
        inputs=tuple(_tensor(trt, network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_tensor(trt, network.get_output(i)) for i in range(network.num_outputs)),
    )


def tensorrt_module(name: str | None = None) -> ModuleType:
    """Return the module `name`, or the first of `MODULES` that is installed and can build here.

    Raises MissingExtraError where it is not installed, ExportError where it cannot be used.
    """
    if name is not None and name not in MODULES:
        raise ExportError(f"no TensorRT module '{name}'; expected one of {', '.join(MODULES)}")
    unusable = []
    for each in [name] if name else MODULES:
        try:
            module = importlib.import_module(each)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # a library that is missing is an ImportError, OSError or RuntimeError, by version
            unusable.append(f"{each} does not import: {error}")
            continue
        # TensorRT ends the process in its first call where there is no device; RTX does not need one.
        if each == RTX or cuda_devices():
            return module
        unusable.append(f"{each} builds on the GPU that it builds for, and there is none here")
    if unusable:
        raise ExportError("; ".join(unusable), remedy="pip install 'edgefold[rtx]' builds engines without a GPU.")
    raise MissingExtraError(
        f"{name} is not installed" if name else f"neither {' nor '.join(MODULES)} is installed",
        remedy="pip install 'edgefold[rtx]' (GeForce and RTX GPUs), or NVIDIA's own tensorrt on the device",
    )


def cuda_devices() -> int:
    """Return the number of CUDA devices that the driver has; 0 where there is no driver."""
    for name in _CUDA_LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def _profile_sizes(batch_sizes: Sequence[int]) -> tuple[int, int, int]:
    sizes = sorted(batch_sizes)
    if not sizes or sizes[0] < 1:
        raise ExportError(f"batch sizes are {list(batch_sizes)}; expected at least one, all positive")
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]


def _set_capability(trt: ModuleType, config: Any, capability: str | None) -> None:
    if capability is None:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise ExportError(
            f"{trt.__name__} builds for the GPU at hand, not for {capability}",
            remedy=f"Leave the capability out, or build with {RTX}.",
        )
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if capability not in known:
        raise ExportError(
            f"{trt.__name__} {trt.__version__} does not build for '{capability}'; expected one of {', '.join(known)}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[capability], 0)


def _add_profile(
    trt: ModuleType,
    builder: Any,
    config: Any,
    network: Any,
    sizes: tuple[int, int, int],
    length: int | None,
    log: Any,
) -> None:
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        batch, *shape = tensor.shape
        free_length = length is not None and shape == [-1]
        if batch != -1 or (-1 in shape and not free_length):
            raise ExportError(
                f"input {tensor.name} has shape {list(tensor.shape)} (-1 is free); expected a free batch and sizes",
                remedy="Export with a dynamic batch axis, as export.to_onnx does; of texts, say how long they may be.",
            )
        least, best, most = ((1,), (length,), (length,)) if free_length else (tuple(shape),) * 3
        profile.set_shape(tensor.name, (sizes[0], *least), (sizes[1], *best), (sizes[2], *most))
    if config.add_optimization_profile(profile) < 0:
        raise _refused(trt, f"refuses the batch sizes {sizes}", log.errors)


def _tensor(trt: ModuleType, tensor: Any) -> EngineTensor:
    names = {trt.float32: "float32", trt.float16: "float16", trt.int32: "int32", trt.int64: "int64"}
    names |= {trt.uint8: "uint8", trt.int8: "int8", trt.bool: "bool"}
    return EngineTensor(tensor.name, names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def _collecting_log(trt: ModuleType) -> Any:
    """Return a logger that keeps errors: TensorRT returns None or False, and the reason is only in its log."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _refused(trt: ModuleType, what: str, reported: Sequence[str]) -> ExportError:
    lines = dict.fromkeys(" ".join(each.split()) for each in reported if _MEANINGLESS not in each)
    reasons = "".join(f"\n  {line}" for line in lines) or " (it gave no reason)"
    return ExportError(f"{trt.__name__} {trt.__version__} {what}:{reasons}")
