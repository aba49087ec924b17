"""The forms in which a recipe can ask for its student: `export: {formats: [onnx, int8]}`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, create_model

from compress.kinds import Spec
from export.opsets import LEAST_OPSET, OPSET
from export.parity import GATES, Gate
from runtime.manifest import EngineRequest
from runtime.onnx_support import LEAST_OPSETS


class FormatSpec(Spec):
    """A form. students: which ones it is for: `quantized` are those of stages with `quantize`, `real` all other."""

    students: ClassVar[Literal["any", "binary", "real", "quantized"]] = "any"


class OnnxSpec(FormatSpec):
    kind = "onnx"


class PackedSpec(FormatSpec):
    """A binary student with weights and activations of one bit, for the operators of `runtime/ops`."""

    kind = "packed"
    students = "binary"


class Fp16Spec(FormatSpec):
    """Weights and arithmetic in float16; inputs, preprocessing, fold and outputs as in `onnx`."""

    kind = "fp16"
    students = "real"


class Bf16Spec(FormatSpec):
    """Weights and arithmetic in bfloat16, for TensorRT on GPUs from Ampere on, and for OpenVINO.

    ONNX Runtime's CPU provider lacks it: parity is then proven by the same arithmetic in float32 (`export.to_bf16`).
    """

    kind = "bf16"
    students = "real"


class GateSpec(Spec):
    """What a format may differ by from the student, in the place of its precision's own gate; what is absent stays."""

    max_error_over_std: float | None = Field(None, gt=0)
    top1_agreement: float | None = Field(None, ge=0, le=1)
    metric_drop_points: float | None = Field(None, ge=0, le=100)

    def over(self, gate: Gate) -> Gate:
        """Return `gate` with what is given here."""
        return dataclasses.replace(gate, **self.model_dump(exclude_none=True))


class Int8Spec(FormatSpec):
    """8-bit weights and activations, quantised after training on `rows` training rows (`export.to_int8`); signed, for
    TensorRT.

    method: how ranges are read from the rows; `auto` takes the one with the smallest error on them. keep_float: the
    first layer, the last one, or both. Where the gate fails on other training rows, layers go back to float until it
    holds.
    """

    kind = "int8"
    students = "real"

    rows: int = Field(512, ge=1, le=65_536)
    method: Literal["auto", "minmax", "percentile", "entropy"] = "auto"
    keep_float: tuple[Literal["first", "last"], ...] = ()
    gate: GateSpec | None = None

    @property
    def resolved_gate(self) -> Gate:
        return self.gate.over(GATES["int8"]) if self.gate else GATES["int8"]


class Int8CpuSpec(Int8Spec):
    """`int8` in the form that engines on a CPU compute fast, unsigned and with whole blocks on 8-bit numbers."""

    kind = "int8_cpu"


class Int4Spec(FormatSpec):
    """A quantised student with weights of 4 bits and fewer as tensors of 4 bits, half as large as in `onnx`; opset 21.

    TensorRT refuses it: it takes weights of 4 bits for no convolution.
    """

    kind = "int4"
    students = "quantized"


class QonnxSpec(FormatSpec):
    """A quantised student as QONNX, for FPGA flows; any ONNX Runtime runs it too, in float."""

    kind = "qonnx"
    students = "quantized"


if TYPE_CHECKING:
    _OfFormat = FormatSpec
else:  # `from` is a word of Python's own, so no class body can declare it
    _OfFormat = create_model(
        "_OfFormat", __base__=FormatSpec, **{"from": (Literal["onnx", "fp16", "int8", "bf16"], "onnx")}
    )


class TensorrtSpec(_OfFormat):
    """A TensorRT engine of another format (`from`), which says its precision; may be listed several times.

    capabilities: the GPUs to build for, as in `sm86` (TensorRT-RTX only); none is every GPU that RTX serves or, for
    TensorRT, the one at hand. workspace: MiB that a layer may take. profiles: batch sizes, each list a profile of its
    own, tuned for its middle one; none are those of `batch_sizes`. via: `torch` goes from the trained model by
    torch-tensorrt, in float32 and without ONNX, to an ExportedProgram beside the bundle. Where no engine can be built
    the bundle keeps the request, for `edgefold export engine BUNDLE` on the device.
    """

    kind = "tensorrt"
    students = "real"

    capabilities: tuple[Annotated[str, Field(pattern=r"^sm[0-9]{2,3}$")], ...] = ()
    module: Literal["tensorrt", "tensorrt_rtx"] | None = None
    workspace: int | None = Field(None, ge=1, le=1 << 20)
    profiles: tuple[Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1)], ...] = ()
    via: Literal["onnx", "torch"] = "onnx"

    @property
    def source(self) -> str:
        """Return the format that the engine is built of."""
        return str(getattr(self, "from"))

    @property
    def request(self) -> EngineRequest:
        """Return what the bundle keeps of it."""
        return EngineRequest(self.source, self.capabilities, self.module, self.workspace, self.profiles)


def opset_problem(formats: Sequence[FormatSpec], opset: int | None) -> tuple[str, str] | None:
    """Return which formats cannot be written in `opset`, and what to do; None where all can."""
    least = {spec.kind: LEAST_OPSETS.get(spec.kind, (LEAST_OPSET, "")) for spec in formats}
    late = {kind: needs for kind, needs in least.items() if opset is not None and needs[0] > opset}
    if not late:
        return None
    why = "; ".join(f"{kind} needs {needed} at least, {reason}" for kind, (needed, reason) in late.items())
    needed = max(needed for needed, _ in late.values())
    instead = f"choose {needed}" if needed <= OPSET else "leave opset out"
    return f"came {opset}, but {why}", f"Leave {' and '.join(late)} out of the formats, or {instead}."


def engine_specs(formats: Sequence[FormatSpec]) -> list[TensorrtSpec]:
    """Return the formats that are TensorRT engines."""
    return [spec for spec in formats if isinstance(spec, TensorrtSpec)]


FORMATS: dict[str, type[FormatSpec]] = {
    "onnx": OnnxSpec,
    "packed": PackedSpec,
    "fp16": Fp16Spec,
    "bf16": Bf16Spec,
    "int8": Int8Spec,
    "int8_cpu": Int8CpuSpec,
    "int4": Int4Spec,
    "qonnx": QonnxSpec,
    "tensorrt": TensorrtSpec,
}
