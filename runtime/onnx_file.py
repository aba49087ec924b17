"""What an ONNX file says about itself, read without onnx or protobuf.

An ONNX file is one protobuf message (`ModelProto` of onnx.proto). This module reads its wire format: a
sequence of (field number, wire type, value). Only the fields that decide whether a device may load the file
are looked at; weights are skipped, never copied.

The reader exists for two reasons. A device has neither onnx nor protobuf installed. And a tensor may name
another file as its content: engines up to ONNX Runtime 1.23 follow such a name out of the model's folder, so
it has to be refused before an engine sees the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from runtime.errors import BundleError
from runtime.wire import WireError, as_integer, as_message, as_text, fields_of

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_UINT8 = 2  # TensorProto.DataType.UINT8
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

# Where tensors can lie: message -> {field number: message of that field}, numbered as in onnx.proto.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose content lies in another file."""

    name: str
    location: str


@dataclass(frozen=True)
class OnnxHeader:
    """`opsets` maps domain to version; the default domain is `""`, however the file spells it."""

    ir_version: int
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    external_tensors: tuple[ExternalTensor, ...] = ()

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.opsets[""]

    @property
    def external_data(self) -> tuple[str, ...]:
        """Every location that a tensor names, in file order, each once."""
        return tuple(dict.fromkeys(tensor.location for tensor in self.external_tensors))


@dataclass(frozen=True)
class Operator:
    """A node of the graph; an absent optional input is an empty name."""

    kind: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Operators:
    """The nodes of a model, those of branches and functions included.

    unsigned_quantizers: names of those that quantise to uint8, or from it.
    """

    nodes: tuple[Operator, ...]
    unsigned_quantizers: tuple[str, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the domains of the nodes, each once; the default one is `""`."""
        return tuple(dict.fromkeys("" if node.domain == "ai.onnx" else node.domain for node in self.nodes))


def operators_from_bytes(data: bytes, name: str) -> Operators:
    """Read the nodes of a model; `name` is what error messages call it. Raises BundleError."""
    try:
        return _operators(memoryview(data))
    except WireError as error:
        raise not_whole(name, error) from None


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read the header of the ONNX file at `path`. Raises BundleError where it is not a whole ONNX model."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    return onnx_header_from_bytes(data, str(path))


def onnx_header_from_bytes(data: bytes, name: str) -> OnnxHeader:
    """Read the header from a model's bytes; `name` is what error messages call it. Raises BundleError."""
    try:
        return _header(memoryview(data))
    except WireError as error:
        raise not_whole(name, error) from None


def refuse_external_data(header: OnnxHeader, path: Path) -> None:
    """Raise BundleError if the model at `path` wants the content of a tensor from another file."""
    if not header.external_tensors:
        return
    tensors = header.external_tensors
    tensor = next((each for each in tensors if _way_out(path.parent, each.location)), tensors[0])
    way_out = _way_out(path.parent, tensor.location)
    where = f"outside the model's folder ({way_out})" if way_out else "a file beside the model"
    others = f", and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    raise BundleError(
        f"{path}: tensor {tensor.name!r} wants its data from {tensor.location!r}, {where}{others}; "
        "expected its weights inside the file",
        remedy="Save the model again without external data, and only load models whose origin you trust.",
    )


def _way_out(folder: Path, location: str) -> str:
    """Say how `location` leaves `folder` (an absolute path, `..`, a symlink); empty if it stays inside."""
    windows = PureWindowsPath(location)
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        return "an absolute path"
    if ".." in windows.parts:
        return "it goes up by '..'"
    try:
        inside = (folder / location).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # embedded NUL, a loop of links
        return "it cannot be followed"
    return "" if inside else "through a symlink"


def not_whole(name: str, error: WireError) -> BundleError:
    """Return the error of a file that cannot be read to its end."""
    return BundleError(f"{name}: not a whole ONNX model ({error})", remedy="Copy the file again, or export it again.")


def _header(model: memoryview) -> OnnxHeader:
    ir_version = 0
    has_graph = False
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    for number, wire_type, value in fields_of(model):
        if number == 1:
            ir_version = as_integer(wire_type, value)
        elif number == 7:
            has_graph = True
        elif number == 8:
            domain, version = _operator_set(as_message(wire_type, value))
            opsets["" if domain == "ai.onnx" else domain] = version
        elif number == 14:
            key, text = _string_pair(as_message(wire_type, value))
            metadata[key] = text
    missing = [
        what
        for what, present in (
            ("an IR version", ir_version > 0),
            ("a graph", has_graph),
            ("a default operator set", opsets.get("", 0) > 0),
        )
        if not present
    ]
    if missing:
        raise WireError(f"it lacks {' and '.join(missing)}")
    return OnnxHeader(ir_version, opsets, metadata, tuple(_external_tensors(model)))


def _external_tensors(model: memoryview) -> Iterator[ExternalTensor]:
    """Find them wherever a tensor can lie: weights, constants, subgraphs, functions, training parts."""
    for kind, message in _messages(model):
        if kind == "TensorProto":
            yield from _external_tensor(message)


def _messages(model: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield every message of `_CHILDREN`, and every tensor, in the order of the file."""
    pending = [("ModelProto", model)]  # a stack of our own: a file may nest deeper than Python recurses
    while pending:
        kind, message = pending.pop()
        yield kind, message
        children = _CHILDREN.get(kind, {})
        found = [
            (children[number], as_message(wire_type, value))
            for number, wire_type, value in fields_of(message)
            if number in children
        ]
        pending.extend(reversed(found))


def _external_tensor(tensor: memoryview) -> Iterator[ExternalTensor]:
    name, entries, external = "", {}, False
    for number, wire_type, value in fields_of(tensor):
        if number == 8:
            name = as_text(wire_type, value)
        elif number == 13:  # counted even if data_location denies it: honest exporters write both or neither
            external = True
            key, text = _string_pair(as_message(wire_type, value))
            entries[key] = text
        elif number == 14:
            external = external or as_integer(wire_type, value) == _EXTERNAL
    if external:
        yield ExternalTensor(name, entries.get("location", ""))


def _operators(model: memoryview) -> Operators:
    nodes: list[Operator] = []
    unsigned: list[str] = []
    # By name over all graphs: where a name has two types in two branches, either counts.
    tensors = (message for kind, message in _messages(model) if kind == "TensorProto")
    uint8 = {_tensor_name(tensor) for tensor in tensors if _is_uint8(tensor)}
    for kind, message in _messages(model):
        if kind != "NodeProto":
            continue
        node, attributes = _node(message)
        nodes.append(node)
        if node.kind == "Constant" and any(_is_uint8(each) for each in attributes.get("value", ())):
            uint8.update(node.outputs)
        if node.kind in _QUANTIZERS and _is_unsigned(node, attributes, uint8):
            unsigned.append(node.name or node.outputs[0])
    return Operators(tuple(nodes), tuple(unsigned))


def _is_unsigned(node: Operator, attributes: Mapping[str, Sequence[int | memoryview]], uint8: set[str]) -> bool:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else ""
    if zero_point:
        return zero_point in uint8
    if node.kind == "QuantizeLinear":  # without a zero point it gives uint8, unless it says another type
        return attributes.get("output_dtype", (_UINT8,))[-1] in (0, _UINT8)
    return node.inputs[0] in uint8


def _node(message: memoryview) -> tuple[Operator, dict[str, list[int | memoryview]]]:
    """Return a node and its attributes that are an integer or a tensor, by name."""
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""], 7: [""]}
    attributes: dict[str, list[int | memoryview]] = {}
    for number, wire_type, value in fields_of(message):
        if number in texts:
            texts[number].append(as_text(wire_type, value))
        elif number == 5:
            name, values = "", []
            for field, inner, content in fields_of(as_message(wire_type, value)):
                if field == 1:
                    name = as_text(inner, content)
                elif field in (3, 5):
                    values.append(content)
            attributes[name] = values
    return Operator(texts[4][-1], texts[7][-1], texts[3][-1], tuple(texts[1]), tuple(texts[2])), attributes


def _is_uint8(tensor: int | memoryview) -> bool:
    return not isinstance(tensor, int) and any(field[0] == 2 and field[2] == _UINT8 for field in fields_of(tensor))


def _tensor_name(tensor: memoryview) -> str:
    return next((as_text(wire_type, value) for number, wire_type, value in fields_of(tensor) if number == 8), "")


def _operator_set(message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire_type, value in fields_of(message):
        if number == 1:
            domain = as_text(wire_type, value)
        elif number == 2:
            version = as_integer(wire_type, value)
    return domain, version


def _string_pair(message: memoryview) -> tuple[str, str]:
    pair = {1: "", 2: ""}
    for number, wire_type, value in fields_of(message):
        if number in pair:
            pair[number] = as_text(wire_type, value)
    return pair[1], pair[2]
