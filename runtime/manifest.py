"""The bundle's `manifest.json`, typed.

Every key of format version 1 is checked for presence and type; an error names the key, what came and what was
expected. Keys that this version does not know are ignored, so that a bundle may carry more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from runtime.errors import BundleError, UsageError
from runtime.featuriser import Featuriser, featuriser_from_json
from runtime.table import HashedColumns

FORMAT_VERSION = 1
GATE = ("max_error_over_std", "top1_agreement", "metric_drop_points")
DTYPES = ("uint8", "int8", "int32", "int64", "float16", "float32", "float64")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model; `shape` leaves the batch out.

    dynamic: letters of `layout` (without N) of axes that may be shorter than `shape` says, down to 1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""
    dynamic: str = ""

    @property
    def free(self) -> tuple[bool, ...]:
        """Return for each axis of `shape` whether it may be shorter."""
        letters = self.layout[1:] if self.dynamic else " " * len(self.shape)
        return tuple(letter in self.dynamic for letter in letters)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether rows of `shape`, without the batch, fit."""
        return len(shape) == len(self.shape) and all(
            1 <= came <= most if free else came == most
            for came, most, free in zip(shape, self.shape, self.free, strict=True)
        )

    def in_words(self) -> str:
        """Return the shape with the batch, as messages write it: `[N, 28, 28, 1]`, or `[N, <=128]`."""
        sizes = [f"<={size}" if free else str(size) for size, free in zip(self.shape, self.free, strict=True)]
        return f"[N, {', '.join(sizes)}]"


@dataclass(frozen=True)
class FormatFile:
    """One deployable form: its file in the bundle. `opset` and `ir_version` are those of an ONNX file.

    gate: what it may differ by from the model that was trained (`export.parity.Gate`), where that is not its
    precision's own. source: of a TensorRT engine, the format that it was built of. capability: the GPU that it was
    built for, where that is one.
    """

    file: str
    size_bytes: int
    precision: str
    opset: int | None = None
    ir_version: int | None = None
    gate: Mapping[str, float] | None = None
    source: str | None = None
    capability: str | None = None

    @property
    def description(self) -> str | None:
        """Return the file that says what is known of an engine (`runtime.engine_file`); None of other forms."""
        return f"{self.file}.json" if self.source is not None else None


@dataclass(frozen=True)
class EngineRequest:
    """A TensorRT engine that is wanted of a format of the bundle, built where its recipe ran or on the device.

    source: the format, which says the precision. capabilities: the GPUs that TensorRT-RTX builds for, as in `sm86`;
    none is every GPU that it serves and, for TensorRT, the one at hand. profiles: batch sizes, the smallest and the
    largest of each being its bounds; none are the bundle's.
    """

    source: str = "onnx"
    capabilities: tuple[str, ...] = ()
    module: str | None = None
    workspace_mib: int | None = None
    profiles: tuple[tuple[int, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.source,
            "capabilities": list(self.capabilities),
            "module": self.module,
            "workspace_mib": self.workspace_mib,
            "profiles": [list(sizes) for sizes in self.profiles],
        }

    def in_words(self) -> str:
        return f"TensorRT engine of {self.source} for {', '.join(self.capabilities) or 'the GPU'}"


@dataclass(frozen=True)
class Manifest:
    """`text` makes the input of a text, `table` of a table's row; None where the model takes something else.

    engines: TensorRT engines that are wanted; what is built of them is among the formats.
    """

    name: str
    stage: str
    recipe_key: str
    classes: int
    subclasses: int
    class_names: tuple[str, ...]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]
    formats: Mapping[str, FormatFile]
    engines: tuple[EngineRequest, ...]
    samples_file: str
    labels_file: str
    metrics: Mapping[str, float]
    text: Featuriser | None
    table: HashedColumns | None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the manifest names, relative to the bundle."""
        carried = self.text.files if self.text else ()
        beside = (form.description for form in self.formats.values() if form.description)
        return (*(form.file for form in self.formats.values()), *beside, self.samples_file, self.labels_file, *carried)

    @property
    def missing_engines(self) -> tuple[EngineRequest, ...]:
        """Return the wanted engines that are not built, each for the GPUs that it is not built for."""
        found = []
        for request in self.engines:
            built = {form.capability for form in self.formats.values() if form.source == request.source}
            missing = tuple(each for each in request.capabilities if each not in built)
            if missing or not (request.capabilities or built):
                found.append(replace(request, capabilities=missing))
        return tuple(found)


def manifest_from_json(text: str, origin: str) -> Manifest:
    """Parse `text`; `origin` is what error messages call it. Raises BundleError."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{origin}: not JSON ({error})") from None
    fields = _Fields(value, origin)
    version = fields.integer("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{origin}: format_version is {version}, this edgefold reads {FORMAT_VERSION}",
            remedy="Install the edgefold version that wrote the bundle, or export it again.",
        )
    manifest = Manifest(
        name=fields.text("name"),
        stage=fields.text("stage"),
        recipe_key=fields.text("recipe_key"),
        classes=fields.integer("classes", least=1),
        subclasses=fields.integer("subclasses", least=1),
        class_names=tuple(each.as_text() for each in fields.items("class_names")),
        input=_tensor_spec(fields.child("input")),
        outputs=tuple(_tensor_spec(each) for each in fields.items("outputs")),
        batch_sizes=tuple(each.as_integer(least=1) for each in fields.items("batch_sizes")),
        formats={key: _format_file(each) for key, each in fields.entries("formats")},
        engines=tuple(_engine_request(each) for each in fields.items("engines")) if fields.has("engines") else (),
        samples_file=fields.text("samples"),
        labels_file=fields.text("labels"),
        metrics={key: each.as_number() for key, each in fields.entries("metrics")},
        text=_featuriser(fields.child("text")) if fields.has("text") else None,
        table=_columns(fields.child("table")) if fields.has("table") else None,
    )
    _check(manifest, origin)
    return manifest


def _tensor_spec(fields: _Fields) -> TensorSpec:
    dtype = fields.child("dtype")
    if dtype.value not in DTYPES:
        dtype.refuse(f"one of {', '.join(DTYPES)}")
    spec = TensorSpec(
        name=fields.text("name"),
        dtype=dtype.as_text(),
        shape=tuple(each.as_integer(least=1) for each in fields.items("shape")),
        layout=fields.text("layout") if fields.has("layout") else "",
        dynamic=fields.text("dynamic") if fields.has("dynamic") else "",
    )
    if spec.dynamic and (len(spec.layout) != len(spec.shape) + 1 or not set(spec.dynamic) <= set(spec.layout[1:])):
        fields.child("dynamic").refuse(f"letters of the layout {spec.layout!r} behind the batch")
    return spec


def _format_file(fields: _Fields) -> FormatFile:
    return FormatFile(
        file=fields.text("file"),
        size_bytes=fields.integer("size_bytes", least=0),
        precision=fields.text("precision"),
        opset=fields.integer("opset", least=1) if fields.has("opset") else None,
        ir_version=fields.integer("ir_version", least=1) if fields.has("ir_version") else None,
        gate={key: fields.child("gate").child(key).as_number() for key in GATE} if fields.has("gate") else None,
        source=fields.text("source") if fields.has("source") else None,
        capability=fields.text("capability") if fields.has("capability") else None,
    )


def _engine_request(fields: _Fields) -> EngineRequest:
    def optional(key: str) -> _Fields | None:
        return fields.child(key) if fields.has(key) and fields.child(key).value is not None else None

    module, workspace = optional("module"), optional("workspace_mib")
    return EngineRequest(
        source=fields.text("from"),
        capabilities=tuple(each.as_text() for each in fields.items("capabilities")),
        module=module.as_text() if module else None,
        workspace_mib=workspace.as_integer(least=1) if workspace else None,
        profiles=tuple(tuple(size.as_integer(least=1) for size in each.as_list()) for each in fields.items("profiles")),
    )


def _featuriser(fields: _Fields) -> Featuriser:
    try:
        return featuriser_from_json(fields.value)
    except UsageError as error:
        raise BundleError(f"{fields.origin}: {fields.path}: {error.message}", error.remedy) from None


def _columns(fields: _Fields) -> HashedColumns:
    try:
        return HashedColumns.from_json(fields.value)
    except UsageError as error:
        raise BundleError(f"{fields.origin}: {fields.path}: {error.message}", error.remedy) from None


def _check(manifest: Manifest, origin: str) -> None:
    """Check what no single key can show."""
    if len(manifest.class_names) != manifest.classes:
        raise BundleError(f"{origin}: class_names has {len(manifest.class_names)} names, classes is {manifest.classes}")
    logits = next(iter(manifest.outputs), None)
    if logits is None or logits.shape != (manifest.classes,):
        came = "no output" if logits is None else f"{logits.name!r} of shape {list(logits.shape)}"
        raise BundleError(f"{origin}: the first output is {came}, expected class logits of shape [{manifest.classes}]")
    takes = (manifest.input.dtype, manifest.input.shape)
    if manifest.text is not None and takes != ("int32", (manifest.text.length,)):
        raise BundleError(
            f"{origin}: the input is {takes[0]} of shape {list(takes[1])}, expected int32 of shape "
            f"[{manifest.text.length}] as text.length says"
        )
    if manifest.table is not None and takes != ("int32", (manifest.table.length,)):
        raise BundleError(
            f"{origin}: the input is {takes[0]} of shape {list(takes[1])}, expected int32 of shape "
            f"[{manifest.table.length}] as table.numbers and table.categories say"
        )
    if manifest.table is not None and manifest.text is not None:
        raise BundleError(f"{origin}: text and table are both given, expected one of them")
    for key in ("batch_sizes", "formats"):
        if not getattr(manifest, key):
            raise BundleError(f"{origin}: {key} is empty, expected at least one entry")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class _Fields:
    """A JSON value with its path, so that every complaint can say where."""

    def __init__(self, value: Any, origin: str, path: str = "") -> None:
        self.value = value
        self.origin = origin
        self.path = path

    def has(self, key: str) -> bool:
        return key in self.mapping()

    def child(self, key: str) -> _Fields:
        mapping = self.mapping()
        path = f"{self.path}.{key}" if self.path else key
        if key not in mapping:
            raise BundleError(f"{self.origin}: key {path!r} is missing")
        return _Fields(mapping[key], self.origin, path)

    def text(self, key: str) -> str:
        return self.child(key).as_text()

    def integer(self, key: str, *, least: int | None = None) -> int:
        return self.child(key).as_integer(least=least)

    def items(self, key: str) -> list[_Fields]:
        return self.child(key).as_list()

    def as_list(self) -> list[_Fields]:
        if not isinstance(self.value, list):
            self.refuse("a list")
        return [_Fields(each, self.origin, f"{self.path}[{i}]") for i, each in enumerate(self.value)]

    def entries(self, key: str) -> list[tuple[str, _Fields]]:
        child = self.child(key)
        return [(name, child.child(name)) for name in child.mapping()]

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return self.value

    def as_text(self) -> str:
        if not isinstance(self.value, str):
            self.refuse("text")
        return self.value

    def as_integer(self, *, least: int | None = None) -> int:
        expected = "an integer" if least is None else f"an integer >= {least}"
        if type(self.value) is not int or (least is not None and self.value < least):  # True is an int, too
            self.refuse(expected)
        return self.value

    def as_number(self) -> float:
        if type(self.value) not in (int, float):
            self.refuse("a number")
        return self.value

    def refuse(self, expected: str) -> NoReturn:
        came = json.dumps(self.value)
        came = came if len(came) <= 60 else f"{came[:57]}..."
        raise BundleError(f"{self.origin}: {self.path or 'the document'} is {came}, expected {expected}")
