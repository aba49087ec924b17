"""An ONNX model as a TensorRT engine, by TensorRT or TensorRT-RTX. Needs neither torch nor onnx.

The network is strongly typed: precision is what the graph says, the only way that TensorRT 10, 11 and RTX share. RTX
builds on any machine, for the GPUs that are asked for; TensorRT builds for the GPU that it runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.buildable import MOST_BYTES, require_buildable
from runtime.cuda import cuda_devices
from runtime.engine_file import EngineFacts, EngineFile, EngineTensor, Layer, Profile, Shape
from runtime.engine_layers import layers_from_inspector, layers_from_log
from runtime.errors import ExportError
from runtime.files import sha256_of_bytes, write_atomically
from runtime.tensorrt_library import RTX, collecting_log, tensorrt_module

BATCH_SIZES = (1, 8, 64)

# Without a driver nearly every error is followed by such a line, which says nothing about the model.
_MEANINGLESS = "cudaError 35"


@dataclass(frozen=True, kw_only=True)
class Engine(EngineFacts):
    """A serialised engine, and what cannot be read back from it without its GPU."""

    plan: bytes

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
    work = _Work(trt, origin)
    work.parse(model, name)
    work.configure(tf32=tf32, workspace_mib=workspace_mib)
    _set_capability(trt, work.config, compute_capability)
    profiles = tuple(work.add_profile(each, length) for each in sizes)
    plan = work.plan(timing_cache)
    here = None if trt.__name__ == RTX else next(iter(cuda_devices()), None)
    return Engine(
        plan=plan,
        onnx_sha256=sha256_of_bytes(model),
        module=trt.__name__,
        version=trt.__version__,
        compute_capability=here.capability if here else compute_capability,
        device=here.name if here else None,
        profiles=profiles,
        inputs=work.inputs,
        outputs=work.outputs,
        flags={"strongly_typed": True, "tf32": tf32, "workspace_mib": workspace_mib},
        layers=work.layers(plan),
    )


class _Work:
    """The objects of one build, in the order in which TensorRT wants them. origin: what errors call the model."""

    def __init__(self, trt: ModuleType, origin: str) -> None:
        self._trt = trt
        self._origin = origin
        self._log = collecting_log(trt)
        self._builder = trt.Builder(self._log)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.config = self._builder.create_builder_config()
        self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or layers have no data types

    def parse(self, model: bytes, name: str) -> None:
        parser = self._trt.OnnxParser(self._network, self._log)
        if not parser.parse(model):
            reported = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise self._refused(f"cannot read {self._origin}", *reported)
        self._network.name = name

    def configure(self, *, tf32: bool, workspace_mib: int | None) -> None:
        if not tf32:
            self.config.clear_flag(self._trt.BuilderFlag.TF32)
        if workspace_mib is not None:
            self.config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)

    def add_profile(self, sizes: tuple[int, int, int], length: int | None) -> Profile:
        profile = self._builder.create_optimization_profile()
        ends: tuple[dict[str, Shape], ...] = ({}, {}, {})
        for tensor in self._tensors("input"):
            for end, shape in zip(ends, _ends_of(tensor, sizes, length), strict=True):
                end[tensor.name] = shape
            profile.set_shape(tensor.name, *(end[tensor.name] for end in ends))
        if self.config.add_optimization_profile(profile) < 0:
            raise self._refused(f"refuses the batch sizes {sizes}")
        return Profile(*ends)

    def plan(self, timing_cache: Path | None) -> bytes:
        """Build. timing_cache: what was measured before, and then what is measured now as well."""
        kept = timing_cache if self._trt.__name__ != RTX and hasattr(self.config, "create_timing_cache") else None
        if kept is not None:
            # A cache of another GPU or version is no error: what is not in it is measured.
            measured = kept.read_bytes() if kept.exists() else b""
            self.config.set_timing_cache(self.config.create_timing_cache(measured), True)
        plan = self._builder.build_serialized_network(self._network, self.config)
        if plan is None:
            raise self._refused(f"cannot build {self._origin}")
        if kept is not None:
            write_atomically(kept, bytes(self.config.get_timing_cache().serialize()))
        return bytes(plan)

    @property
    def inputs(self) -> tuple[EngineTensor, ...]:
        return tuple(_described(self._trt, each) for each in self._tensors("input"))

    @property
    def outputs(self) -> tuple[EngineTensor, ...]:
        return tuple(_described(self._trt, each) for each in self._tensors("output"))

    def layers(self, plan: bytes) -> tuple[Layer, ...]:
        """Return the layers that were logged, else those that the engine itself tells of, where it can be loaded."""
        if logged := layers_from_log(self._log.layers):
            return logged
        engine = self._trt.Runtime(self._log).deserialize_cuda_engine(plan) if cuda_devices() else None
        if engine is None:
            return ()
        described = engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
        return layers_from_inspector(described)

    def _tensors(self, kind: str) -> list[Any]:
        count, get = getattr(self._network, f"num_{kind}s"), getattr(self._network, f"get_{kind}")
        return [get(i) for i in range(count)]

    def _refused(self, what: str, *reported: str) -> ExportError:
        said = (" ".join(each.split()) for each in (*reported, *self._log.errors) if _MEANINGLESS not in each)
        reasons = "".join(f"\n  {line}" for line in dict.fromkeys(said)) or " (it gave no reason)"
        return ExportError(f"{self._trt.__name__} {self._trt.__version__} {what}:{reasons}")


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


def _ends_of(tensor: Any, sizes: tuple[int, int, int], length: int | None) -> list[Shape]:
    """Return an input's shapes at the batch sizes of a profile; a free length is 1 at the least, `length` else."""
    batch, *shape = tensor.shape
    free_length = length is not None and shape == [-1]
    if batch != -1 or (-1 in shape and not free_length):
        raise ExportError(
            f"input {tensor.name} has shape {list(tensor.shape)} (-1 is free); expected a free batch and sizes",
            remedy="Export with a dynamic batch axis, as export.to_onnx does; of texts, say how long they may be.",
        )
    inner = ((1,), (length,), (length,)) if free_length else (tuple(shape),) * 3
    return [(size, *rest) for size, rest in zip(sizes, inner, strict=True)]


def _described(trt: ModuleType, tensor: Any) -> EngineTensor:
    names = {trt.float32: "float32", trt.float16: "float16", trt.int32: "int32", trt.int64: "int64"}
    names |= {trt.uint8: "uint8", trt.int8: "int8", trt.bool: "bool"}
    return EngineTensor(tensor.name, names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
