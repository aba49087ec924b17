"""What an ONNX file holds, read without onnx: inputs and outputs, operators, and the size of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from runtime.onnx_file import not_whole, operators_from_bytes
from runtime.wire import WireError, as_integer, as_message, as_text, fields_of

# TensorProto.DataType of onnx.proto, by numpy's names where numpy has the type.
_TYPES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16"),
)

Axis = int | str


@dataclass(frozen=True)
class GraphSummary:
    """inputs, outputs: name, data type and axes; a free axis is its name, or "?". operators: how often which is used.

    weights: how many numbers of which data type the file carries.
    """

    inputs: tuple[tuple[str, str, tuple[Axis, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[Axis, ...]], ...]
    operators: Mapping[str, int]
    weights: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        tensors = {
            what: [{"name": name, "dtype": dtype, "shape": list(axes)} for name, dtype, axes in values]
            for what, values in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        return {**tensors, "operators": dict(self.operators), "weights": dict(self.weights)}


def summary_from_bytes(data: bytes, name: str) -> GraphSummary:
    """Read a model's bytes; `name` is what error messages call it. Raises BundleError where it is not a whole model."""
    nodes = operators_from_bytes(data, name).nodes
    operators = Counter(node.kind if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.kind}" for node in nodes)
    try:
        return _summary(memoryview(data), dict(sorted(operators.items(), key=lambda each: (-each[1], each[0]))))
    except WireError as error:
        raise not_whole(name, error) from None


def _summary(model: memoryview, operators: Mapping[str, int]) -> GraphSummary:
    weights: Counter[str] = Counter()
    named: set[str] = set()
    values: dict[int, list[tuple[str, str, tuple[Axis, ...]]]] = {11: [], 12: []}
    for graph in _children(model, 7):
        for number, wire_type, value in fields_of(graph):
            if number == 5:
                tensor, dtype, count = _weight(as_message(wire_type, value))
                named.add(tensor)
                weights[dtype] += count
            elif number in values:
                values[number].append(_value(as_message(wire_type, value)))
    # Up to IR 3 every weight is an input as well.
    inputs = tuple(each for each in values[11] if each[0] not in named)
    return GraphSummary(inputs, tuple(values[12]), operators, dict(weights.most_common()))


def _weight(tensor: memoryview) -> tuple[str, str, int]:
    """Return name, data type and count of numbers of a TensorProto."""
    name, kind, sizes = "", 0, []
    for number, wire_type, value in fields_of(tensor):
        if number == 1:
            sizes += _integers(wire_type, value)
        elif number == 2:
            kind = as_integer(wire_type, value)
        elif number == 8:
            name = as_text(wire_type, value)
    return name, _type(kind), prod(sizes)


def _integers(wire_type: int, value: int | memoryview) -> list[int]:
    """Return the numbers of a repeated field, written one by one or packed."""
    if isinstance(value, int):
        return [as_integer(wire_type, value)]
    numbers, number, shift = [], 0, 0
    for byte in value:
        number |= (byte & 0x7F) << shift
        shift = shift + 7 if byte >= 0x80 else 0
        if byte < 0x80:
            numbers.append(number)
            number = 0
    return numbers


def _value(info: memoryview) -> tuple[str, str, tuple[Axis, ...]]:
    """Return name, data type and axes of a ValueInfoProto."""
    name, kind, axes = "", 0, []
    for number, wire_type, value in fields_of(info):
        if number == 1:
            name = as_text(wire_type, value)
        elif number == 2:
            for tensor in _children(as_message(wire_type, value), 1):
                for inner, inner_type, content in fields_of(tensor):
                    if inner == 1:
                        kind = as_integer(inner_type, content)
                    elif inner == 2:
                        axes = [_axis(each) for each in _children(as_message(inner_type, content), 1)]
    return name, _type(kind), tuple(axes)


def _axis(dimension: memoryview) -> Axis:
    for number, wire_type, value in fields_of(dimension):
        if number == 1:
            return as_integer(wire_type, value)
        if number == 2:
            return as_text(wire_type, value)
    return "?"


def _children(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, wire_type, value in fields_of(message):
        if number == wanted:
            yield as_message(wire_type, value)


def _type(kind: int) -> str:
    return _TYPES[kind] if 0 <= kind < len(_TYPES) else f"type {kind}"
