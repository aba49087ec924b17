"""What is known of a TensorRT engine: a JSON file beside it, `model.sm86.engine.json`.

A plan is opaque, and without the GPU that it was built for nothing of it can be read back. So whoever builds it writes
down what it was built of, by what, for what, and what became of its layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.errors import BundleError

KIND, FORMAT_VERSION = "tensorrt engine", 1
SUFFIX = ".json"  # after the engine's own name
Shape = tuple[int, ...]

_BUILD_AGAIN = "Build the engine again: edgefold export engine BUNDLE."


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine. dtype in numpy's words; shape with -1 for the batch."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Profile:
    """The shapes of the inputs between which an engine runs, and those that it is tuned for; by name of the input."""

    least: Mapping[str, Shape]
    best: Mapping[str, Shape]
    most: Mapping[str, Shape]

    @property
    def batch_sizes(self) -> tuple[int, int, int]:
        """Return the smallest, best served and largest batch."""
        return tuple(next(iter(each.values()))[0] for each in (self.least, self.best, self.most))  # type: ignore[return-value]

    def takes(self, name: str, shape: Sequence[int]) -> bool:
        """Return whether the input `name` may have `shape`."""
        least, most = self.least[name], self.most[name]
        return len(shape) == len(most) and all(
            low <= came <= high for low, came, high in zip(least, shape, most, strict=True)
        )


@dataclass(frozen=True)
class Layer:
    """A layer as it runs: its data types in TensorRT's words (`Int8`, `Half`), and the ONNX nodes that are in it."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What is known of an engine wherever it lies.

    compute_capability: what it was built for, as in `sm86`; None is every GPU that TensorRT-RTX serves. device: the GPU
    that it was built on, where it runs on no other kind.
    """

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


@dataclass(frozen=True, kw_only=True)
class EngineFile(EngineFacts):
    """An engine's description. onnx_file: the file of the bundle that it was built of."""

    plan_sha256: str
    onnx_file: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": KIND, "format_version": FORMAT_VERSION, **asdict(self)}


@dataclass(frozen=True)
class EngineBuild:
    """How an engine came about that was built on this machine. cached: by an earlier run; seconds: that building took,
    then or now; key: names it in the cache (`runtime.engine_cache`).
    """

    cached: bool
    seconds: float
    key: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def engine_file_from_json(text: bytes, origin: str) -> EngineFile:
    """Parse the description of an engine; `origin` is what errors call it. Raises BundleError."""
    try:
        value = json.loads(text)
        if value["kind"] != KIND or value["format_version"] != FORMAT_VERSION:
            came = f"{value['kind']} {value['format_version']}"
            raise BundleError(f"{origin}: is '{came}', expected '{KIND} {FORMAT_VERSION}'", remedy=_BUILD_AGAIN)
        return EngineFile(
            plan_sha256=str(value["plan_sha256"]),
            onnx_sha256=str(value["onnx_sha256"]),
            onnx_file=str(value["onnx_file"]),
            module=str(value["module"]),
            version=str(value["version"]),
            compute_capability=value["compute_capability"],
            device=value["device"],
            profiles=tuple(_profile(each) for each in value["profiles"]),
            inputs=tuple(_tensor(each) for each in value["inputs"]),
            outputs=tuple(_tensor(each) for each in value["outputs"]),
            flags=dict(value["flags"]),
            layers=tuple(_layer(each) for each in value["layers"]),
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BundleError(f"{origin}: no description of an engine ({error!r})", remedy=_BUILD_AGAIN) from None


def _profile(value: Any) -> Profile:
    ends = ({name: tuple(shape) for name, shape in value[key].items()} for key in ("least", "best", "most"))
    return Profile(*ends)


def _tensor(value: Any) -> EngineTensor:
    return EngineTensor(value["name"], value["dtype"], tuple(value["shape"]))


def _layer(value: Any) -> Layer:
    types = (tuple(value[key]) for key in ("inputs", "constants", "outputs", "nodes"))
    return Layer(value["name"], value["kind"], *types)
