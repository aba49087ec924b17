"""What an ONNX graph takes and gives, read from the file without onnx or protobuf (see `runtime.onnx_file`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from runtime.onnx_file import not_whole
from runtime.wire import WireError, as_integer, as_message, as_text, fields_of

# TensorProto.DataType of onnx.proto, by numpy's names where numpy has the type.
_TYPES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz"),
    *("float8e5m2", "float8e5m2fnuz", "uint4", "int4"),
)
# Fields of TypeProto.
_KINDS = {1: "tensor", 4: "sequence", 5: "map", 7: "opaque value", 8: "sparse tensor", 9: "optional"}

Axis = int | str | None


@dataclass(frozen=True)
class Value:
    """An input or output of a graph.

    dtype: empty for what is no tensor. axes: the sizes that the file gives; a free axis is its name, or None without
    one; None in the place of the axes where the file does not even say how many there are.
    """

    name: str
    kind: str
    dtype: str
    axes: tuple[Axis, ...] | None

    def in_words(self) -> str:
        return f"{self.name!r}, {self.type_in_words()}"

    def type_in_words(self) -> str:
        if self.kind != "tensor":
            return f"a {self.kind}"
        axes = "of unknown shape" if self.axes is None else f"[{', '.join(map(_axis_in_words, self.axes))}]"
        return f"{self.dtype} {axes}"


@dataclass(frozen=True)
class Signature:
    """inputs: without those that only give a weight a name. weights: how many numbers of which type, most first.

    own_domains: of functions that the file itself defines.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    weights: Mapping[str, int]
    own_domains: tuple[str, ...]


def signature_from_bytes(data: bytes, name: str) -> Signature:
    """Read what a model takes and gives; `name` is what error messages call it. Raises BundleError."""
    try:
        return _signature(memoryview(data))
    except WireError as error:
        raise not_whole(name, error) from None


def _signature(model: memoryview) -> Signature:
    inputs: list[Value] = []
    outputs: list[Value] = []
    weights: set[str] = set()
    numbers: Counter[str] = Counter()
    for graph in _messages(model, 7):
        for number, wire_type, value in fields_of(graph):
            if number == 5:
                weight, dtype, count = _weight(as_message(wire_type, value))
                weights.add(weight)
                numbers[dtype] += count
            elif number in (11, 12):
                (inputs if number == 11 else outputs).append(_value(as_message(wire_type, value)))
    # Up to IR 3 every weight is an input as well.
    free = tuple(each for each in inputs if each.name not in weights)
    domains = [
        as_text(wire_type, value)
        for function in _messages(model, 25)
        for number, wire_type, value in fields_of(function)
        if number == 10
    ]
    return Signature(free, tuple(outputs), dict(numbers.most_common()), tuple(domains))


def _weight(tensor: memoryview) -> tuple[str, str, int]:
    """Return name, type and count of numbers of a TensorProto."""
    name, dtype = "", "undefined"
    sizes: list[int] = []
    for number, wire_type, value in fields_of(tensor):
        if number == 1:
            sizes += _integers(value)
        elif number == 8:
            name = as_text(wire_type, value)
        elif number == 2:
            dtype = _type_name(as_integer(wire_type, value))
    return name, dtype, prod(sizes)


def _integers(value: int | memoryview) -> list[int]:
    """Return the numbers of a repeated field, written one by one or packed."""
    if isinstance(value, int):
        return [value]
    numbers, number, shift = [], 0, 0
    for byte in value:
        number |= (byte & 0x7F) << shift
        shift = shift + 7 if byte >= 0x80 else 0
        if byte < 0x80:
            numbers.append(number)
            number = 0
    return numbers


def _value(info: memoryview) -> Value:
    name, kind, dtype = "", "value of unknown type", ""
    axes: tuple[Axis, ...] | None = None
    for number, wire_type, value in fields_of(info):
        if number == 1:
            name = as_text(wire_type, value)
        elif number == 2:
            for field, inner, content in fields_of(as_message(wire_type, value)):
                kind = _KINDS.get(field, kind)
                if field == 1:
                    dtype, axes = _tensor(as_message(inner, content))
    return Value(name, kind, dtype, axes)


def _tensor(message: memoryview) -> tuple[str, tuple[Axis, ...] | None]:
    dtype = "undefined"
    axes: tuple[Axis, ...] | None = None
    for number, wire_type, value in fields_of(message):
        if number == 1:
            dtype = _type_name(as_integer(wire_type, value))
        elif number == 2:
            axes = tuple(_axis(axis) for axis in _messages(as_message(wire_type, value), 1))
    return dtype, axes


def _axis(message: memoryview) -> Axis:
    for number, wire_type, value in fields_of(message):
        if number == 1:
            size = as_integer(wire_type, value)
            return size if size > 0 else None  # 0 and -1 are what some exporters write for "free"
        if number == 2:
            return as_text(wire_type, value) or None
    return None


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, wire_type, value in fields_of(message):
        if number == wanted:
            yield as_message(wire_type, value)


def _type_name(number: int) -> str:
    return _TYPES[number] if 0 <= number < len(_TYPES) else f"type {number} of onnx.proto"


def _axis_in_words(axis: Axis) -> str:
    return "?" if axis is None else str(axis)
