"""An ONNX model as a TensorRT engine, by TensorRT or TensorRT-RTX. Needs neither torch nor onnx.

The network is strongly typed: precision is what the graph says, the only way that TensorRT 10, 11 and RTX share. RTX
builds on any machine, for the GPUs that are asked for; TensorRT builds for the GPU that it runs on.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.engine_layers import HEADING, layers_from_inspector, layers_from_log
from runtime.cuda import cuda_devices
from runtime.engine_file import EngineFile, EngineTensor, Layer, Profile, Shape
from runtime.errors import ExportError, MissingExtraError
from runtime.files import sha256_of_bytes, write_atomically
from runtime.onnx_file import onnx_header_from_bytes, operators_from_bytes

RTX = "tensorrt_rtx"
MODULES = ("tensorrt", RTX)  # in the order in which they are tried
BATCH_SIZES = (1, 8, 64)
MOST_BYTES = 2**31 - 1  # what protobuf, and with it every parser, takes in one message

# Without a driver nearly every error is followed by such a line, which says nothing about the model.
_MEANINGLESS = "cudaError 35"
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Engine:
    """A serialised engine, and what cannot be read back from it without its GPU.

    compute_capability: what it was built for, as in `sm86`; None is every GPU that RTX serves. device: the GPU that it
    was built on, where it runs on no other kind.
    """

    plan: bytes
    onnx_sha256: str
    module: str
    version: str
    compute_capability: str | None
    device: str | None
    profiles: tuple[Profile, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    flags: Mapping[str, bool | int | None]
    layers: tuple[Layer, ...]

    @property
    def batch_sizes(self) -> tuple[int, int, int]:
        """Return the smallest, best served and largest batch of the first profile."""
        return self.profiles[0].batch_sizes

    def describe(self, onnx_file: str) -> EngineFile:
        """Return what stands beside the engine, which was built of `onnx_file`."""
        facts = {key: value for key, value in vars(self).items() if key != "plan"}
        return EngineFile(plan_sha256=sha256_of_bytes(self.plan), onnx_file=onnx_file, **facts)


def engine_from_onnx(
    model: bytes,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    further_profiles: Sequence[Sequence[int]] = (),
    length: int | None = None,
    compute_capability: str | None = None,
    module: str | None = None,
    tf32: bool = False,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    name: str = "",
    origin: str = "the model",
    most_bytes: int = MOST_BYTES,
) -> Engine:
    """Build an engine from a serialised ONNX model whose weights are inside and whose batch is free.

    batch_sizes: the profile's smallest and largest are theirs; it is tuned for the one in the middle. further_profiles:
    more of them in the same engine. length: the longest of texts whose length is free as well; the engine is tuned for
    that. compute_capability: `sm86`, or None (`Engine`). module: one of `MODULES`, None for the first that can.
    tf32: lets float32 products be rounded to 10 bits, which misses the parity gate of FP32. workspace_mib: the most
    memory that a layer may take beside its inputs and outputs. timing_cache: a file by which TensorRT measures no
    kernel twice on one kind of GPU; RTX measures none and leaves it alone.
    name: stands in the plan. origin: what error messages call the model. most_bytes: larger models are refused.
    Raises ExportError with everything that TensorRT reported, MissingExtraError where there is no TensorRT, BundleError
    where the model is not whole.
    """
    sizes = [profile_sizes(each) for each in (batch_sizes, *further_profiles)]
    require_buildable(model, origin=origin, most_bytes=most_bytes)
    trt = tensorrt_module(module or (RTX if compute_capability else None))
    log = _collecting_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        reported = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _refused(trt, f"cannot read {origin}", [*reported, *log.errors])
    network.name = name
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or layers have no data types
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    _set_capability(trt, config, compute_capability)
    profiles = tuple(_add_profile(trt, builder, config, network, each, length, log) for each in sizes)
    cache = _read_timing_cache(trt, config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(trt, f"cannot build {origin}", log.errors)
    if cache and timing_cache is not None:
        write_atomically(timing_cache, bytes(config.get_timing_cache().serialize()))
    here = None if trt.__name__ == RTX else next(iter(cuda_devices()), None)
    return Engine(
        plan=bytes(plan),
        onnx_sha256=sha256_of_bytes(model),
        module=trt.__name__,
        version=trt.__version__,
        compute_capability=here.capability if here else compute_capability,
        device=here.name if here else None,
        profiles=profiles,
        inputs=tuple(_tensor(trt, network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_tensor(trt, network.get_output(i)) for i in range(network.num_outputs)),
        flags={"strongly_typed": True, "tf32": tf32, "workspace_mib": workspace_mib},
        layers=layers_from_log(log.layers) or _inspected(trt, log, bytes(plan)),
    )


def require_buildable(model: bytes, *, origin: str = "the model", most_bytes: int = MOST_BYTES) -> None:
    """Refuse what no TensorRT builds, or what it would build into something else, before one sees it.

    Raises BundleError where the model is not whole, ExportError for the others.
    """
    if len(model) > most_bytes:
        raise ExportError(
            f"{origin} has {len(model):,} bytes; expected at most {most_bytes:,}",
            remedy="A student is smaller: see whether this is the right file.",
        )
    if outside := onnx_header_from_bytes(model, origin).external_data:
        raise ExportError(
            f"{origin} keeps weights in {', '.join(outside)}; expected them inside the file",
            remedy="Save the model again without external data.",
        )
    operators = operators_from_bytes(model, origin)
    foreign = [domain for domain in operators.domains if domain not in _STANDARD]
    if "edgefold" in foreign:
        raise ExportError(
            f"{origin} has edgefold's packed operators, which are no GPU's; TensorRT builds standard ones",
            remedy="Run the packed file with ONNX Runtime (--format packed).",
        )
    if foreign:
        kinds = ", ".join(dict.fromkeys(each.kind for each in operators.nodes if each.domain in foreign))
        raise ExportError(
            f"{origin} has operators of {', '.join(map(repr, foreign))} ({kinds}); TensorRT builds standard ones",
            remedy="Export the model again with the operators of ONNX alone.",
        )
    if unsigned := operators.unsigned_quantizers:
        raise ExportError(
            f"{origin} quantises to uint8 in {len(unsigned)} places, first in {unsigned[0]}; TensorRT reads it as int8 "
            "and cuts off everything above 127",
            remedy="Quantise to int8 with zero point 0, as the format int8 does.",
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


def profile_sizes(batch_sizes: Sequence[int]) -> tuple[int, int, int]:
    """Return the smallest batch, the one in the middle, and the largest. Raises ExportError where there is none."""
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
) -> Profile:
    profile = builder.create_optimization_profile()
    ends: tuple[dict[str, Shape], ...] = ({}, {}, {})
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        batch, *shape = tensor.shape
        free_length = length is not None and shape == [-1]
        if batch != -1 or (-1 in shape and not free_length):
            raise ExportError(
                f"input {tensor.name} has shape {list(tensor.shape)} (-1 is free); expected a free batch and sizes",
                remedy="Export with a dynamic batch axis, as export.to_onnx does; of texts, say how long they may be.",
            )
        inner = ((1,), (length,), (length,)) if free_length else (tuple(shape),) * 3
        for end, size, rest in zip(ends, sizes, inner, strict=True):
            end[tensor.name] = (size, *rest)
        profile.set_shape(tensor.name, *(end[tensor.name] for end in ends))
    if config.add_optimization_profile(profile) < 0:
        raise _refused(trt, f"refuses the batch sizes {sizes}", log.errors)
    return Profile(*ends)


def _read_timing_cache(trt: ModuleType, config: Any, path: Path | None) -> bool:
    """Give the builder what it measured before; False where nothing is measured."""
    if path is None or trt.__name__ == RTX or not hasattr(config, "create_timing_cache"):
        return False
    try:
        measured = path.read_bytes()
    except FileNotFoundError:
        measured = b""
    # A cache of another GPU or version is no error: what is not in it is measured.
    config.set_timing_cache(config.create_timing_cache(measured), True)
    return True


def _inspected(trt: ModuleType, log: Any, plan: bytes) -> tuple[Layer, ...]:
    """Return the layers that the engine itself tells of, where it can be loaded."""
    if not cuda_devices():
        return ()
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return ()
    described = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_from_inspector(described)


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
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith(HEADING):
                self.layers = message

    return Log()


def _refused(trt: ModuleType, what: str, reported: Sequence[str]) -> ExportError:
    lines = dict.fromkeys(" ".join(each.split()) for each in reported if _MEANINGLESS not in each)
    reasons = "".join(f"\n  {line}" for line in lines) or " (it gave no reason)"
    return ExportError(f"{trt.__name__} {trt.__version__} {what}:{reasons}")
