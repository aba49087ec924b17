"""An ONNX model in a 16-bit precision: weights and arithmetic in it; inputs, scaling, fold and outputs as before.

What lies between the first and the last product changes. Before the first one stand scaling, and the logarithms of a
table's numbers; behind the last one the fold and the softmax, whose exponentials end at 11.09 in float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs

from export.onnx_graph import Node, OnnxGraph, model_from_parts, without_unread
from runtime.errors import ExportError

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Stand for minus or plus infinity, as in the masks of attention.
_UNBOUNDED = float(np.finfo(np.float32).max) * 0.99
# Inputs that are float32 whatever the others are, by operator.
_FLOAT_INPUTS = {"Resize": (2,)}


@dataclass(frozen=True)
class HalfPrecision:
    """A 16-bit precision. format: its name in a recipe. largest: its last finite number.

    opset: the first that has its operators, where that is later than `export.to_onnx` writes.
    """

    format: str
    name: str
    element: int
    dtype: np.dtype[Any]
    largest: float
    opset: int | None = None


def half_from_onnx(model: bytes, half: HalfPrecision) -> bytes:
    """Return a float32 model (`export.to_onnx`) as one of 16 bits with the same inputs and outputs.

    Raises ExportError where a constant is larger than `half` holds, or where an operator does not take it.
    """
    graph = OnnxGraph(onnx.load_model_from_string(model))
    opsets = {"": half.opset} if half.opset else {}
    if half.opset:
        _require_same_meaning(graph, half.opset)
    writer = _HalfWriter(graph, _float_names(graph), half)
    for node in graph.nodes:
        writer.write(node)
    outputs = [each.name for each in graph.outputs]
    written = model_from_parts(
        graph.model, without_unread(writer.nodes, outputs), writer.constants, shapes={}, opsets=opsets, metadata={}
    )
    try:
        onnx.checker.check_model(written, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        reason = " ".join(str(error).split())
        raise ExportError(
            f"the model cannot be written in {half.name}: {reason}", remedy=f"Leave {half.format} out of the formats."
        ) from error
    return bytes(written.SerializeToString(deterministic=True))


def _require_same_meaning(graph: OnnxGraph, opset: int) -> None:
    """Refuse operators that have other attributes, inputs or outputs in `opset` than in the model's own."""
    own = next(each.version for each in graph.model.opset_import if each.domain in ("", "ai.onnx"))
    for operator in sorted({node.operator for node in graph.nodes if not node.domain}):
        before, after = (defs.get_schema(operator, version) for version in (own, opset))
        if before.since_version != after.since_version and _form(before) != _form(after):
            raise ExportError(f"{operator} of opset {own} is not the one of opset {opset}, which the precision needs")


def _form(schema: Any) -> tuple[Any, ...]:
    """Return what a node of an operator is written with; defaults as text, since protobuf messages have no order."""
    attributes = {name: str(each.default_value) for name, each in schema.attributes.items()}
    return attributes, [each.name for each in schema.inputs], [each.name for each in schema.outputs]


def _float_names(graph: OnnxGraph) -> set[str]:
    """Return the names of values that are float32, constants apart."""
    inferred = onnx.shape_inference.infer_shapes(graph.model, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {each.name for each in values if each.type.tensor_type.elem_type == TensorProto.FLOAT}


class _HalfWriter:
    """Writes the nodes of a graph anew, with casts where a value goes from one precision to the other."""

    def __init__(self, graph: OnnxGraph, floats: set[str], precision: HalfPrecision) -> None:
        self.graph = graph
        self.floats = floats
        self.precision = precision
        self.half = _between_products(graph)
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[tuple[str, str], str] = {}  # of a value in the other precision

    def write(self, node: Node) -> None:
        inside = node in self.half
        stay = _FLOAT_INPUTS.get(node.operator, ())
        inputs = [self._input(name, node, inside and i not in stay) for i, name in enumerate(node.inputs)]
        if not inside:
            self.nodes.append(Node(node.operator, inputs, node.outputs, node.attributes, node.domain))
            return
        attributes = dict(node.attributes)
        if node.operator == "Cast" and attributes["to"] == TensorProto.FLOAT:
            attributes["to"] = self.precision.element
        outputs = [f"{name}.half" if name in self.floats else name for name in node.outputs]
        self.nodes.append(Node(node.operator, inputs, outputs, attributes, node.domain))
        for name, made in zip(node.outputs, outputs, strict=True):
            if name in self.floats and self._is_read_outside(name):
                self.nodes.append(Node("Cast", [made], [name], {"to": TensorProto.FLOAT}))

    def _is_read_outside(self, name: str) -> bool:
        return self.graph.is_output(name) or any(node not in self.half for node in self.graph.consumers(name))

    def _input(self, name: str, reader: Node, halve: bool) -> str:
        if name in self.graph.constants:
            return self._constant(name, halve)
        if not halve or name not in self.floats:
            return name
        maker = self.graph.producer(name)
        if maker is not None and maker in self.half:
            return f"{name}.half"
        return self._cast(name, bounded=reader.operator not in _PRODUCTS)

    def _cast(self, name: str, *, bounded: bool) -> str:
        """Return `name`, made in float32, in 16 bits. bounded: a mask's infinity becomes the largest number."""
        key = (name, "bounded" if bounded else "half")
        if key not in self.names:
            self.names[key] = made = f"{name}.{key[1]}"
            source = name
            if bounded:
                limits = []
                largest = self.precision.largest
                for limit, value in (("least", -largest), ("most", largest)):
                    self.constants[f"{self.precision.name}.{limit}"] = np.array(value, np.float32)
                    limits.append(f"{self.precision.name}.{limit}")
                source = f"{name}.clipped"
                self.nodes.append(Node("Clip", [name, *limits], [source]))
            self.nodes.append(Node("Cast", [source], [made], {"to": self.precision.element}))
        return self.names[key]

    def _constant(self, name: str, halve: bool) -> str:
        value = self.graph.constants[name]
        if not halve or value.dtype != np.float32:
            self.constants[name] = value
            return name
        self.constants[f"{name}.half"] = _rounded(name, value, self.precision)
        return f"{name}.half"


def _rounded(name: str, value: np.ndarray, precision: HalfPrecision) -> np.ndarray:
    finite = value[np.abs(value) < _UNBOUNDED]
    largest = float(np.abs(finite).max(initial=0))
    if np.isnan(value).any() or largest > precision.largest:
        raise ExportError(
            f"{name} has values up to {largest:.6g}, and {precision.name} ends at {precision.largest:.6g}",
            remedy=f"Leave {precision.format} out of the formats, or train with weight decay.",
        )
    return np.clip(value, -precision.largest, precision.largest).astype(precision.dtype)


def _between_products(graph: OnnxGraph) -> set[Node]:
    """Return the nodes from the first product on a path to the last one; a table of embeddings counts as one."""
    after: set[Node] = set()
    made: set[str] = set()
    for node in graph.nodes:
        if _is_product(graph, node) or not made.isdisjoint(node.inputs):
            after.add(node)
            made.update(node.outputs)
    before: set[Node] = set()
    read: set[str] = set()
    for node in reversed(graph.nodes):
        if _is_product(graph, node) or not read.isdisjoint(node.outputs):
            before.add(node)
            read.update(filter(None, node.inputs))
    return after & before


def _is_product(graph: OnnxGraph, node: Node) -> bool:
    if node.operator == "Gather":
        table = graph.constant(node, 0)
        return table is not None and table.dtype == np.float32
    return node.operator in _PRODUCTS
