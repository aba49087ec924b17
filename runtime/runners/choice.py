"""Which engine runs a model, on what part of the machine and in which precision: what a user chooses by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from runtime.errors import UsageError

EngineName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
ProviderName = Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx", "openvino", "xnnpack", "coreml", "qnn"]
Precision = Literal["fp32", "bf16"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PROVIDERS: tuple[ProviderName, ...] = get_args(ProviderName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class EngineChoice:
    """What is absent is the format's own engine, on the CPU, with the numbers of the file.

    engine: `tensorrt` is the first of tensorrt and tensorrt_rtx that can build an engine where it runs. provider: what
    ONNX Runtime hands the model to. precision: what OpenVINO computes float tensors in; its own choice would depend on
    the CPU, so it is never asked.
    """

    engine: EngineName | None = None
    provider: ProviderName | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("engine", self.engine, ENGINES),
            ("provider", self.provider, PROVIDERS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value is not None and value not in known:
                raise UsageError(f"{what} is {value!r}, expected {', '.join(known)}")
        if self.provider is not None and self.engine not in (None, "onnxruntime"):
            raise UsageError(
                f"provider {self.provider} with engine {self.engine}: providers are those of onnxruntime",
                remedy="Leave one of the two out; provider openvino is OpenVINO inside ONNX Runtime, and so on.",
            )
        if self.precision is not None and self.engine != "openvino":
            raise UsageError(
                f"precision {self.precision} without engine openvino: others compute in the precision of the file",
                remedy="Choose engine openvino, or another format of the bundle (fp16, int8).",
            )

    @property
    def label(self) -> str:
        """A name for results, fit for a file's name; empty for what every format runs on by itself."""
        if self.engine not in (None, "onnxruntime"):
            return f"{self.engine}-bf16" if self.precision == "bf16" else str(self.engine)
        return f"onnxruntime-{self.provider}" if self.provider not in (None, "cpu") else ""

    def key(self, format: str) -> str:
        """Return the name of a format on this engine: `int8`, `int8@openvino`."""
        return f"{format}@{self.label}" if self.label else format

    @property
    def builds(self) -> bool:
        """Whether TensorRT builds an engine of the file where it runs."""
        return self.engine in ("tensorrt", "tensorrt_rtx")

    @property
    def tensorrt_module(self) -> str | None:
        """The module of TensorRT that is asked for; None for the first that can build."""
        return self.engine if self.engine == "tensorrt_rtx" else None

    @property
    def arguments(self) -> list[str]:
        """What was chosen as options of `python -m runtime`."""
        return [f"--{name}={value}" for name, value in self.to_json().items()]

    def to_json(self) -> dict[str, Any]:
        """Return what was chosen, without what was not."""
        chosen: Mapping[str, str | None] = vars(self)
        return {name: value for name, value in chosen.items() if value is not None}


DEFAULT = EngineChoice()
