"""An ONNX model in half precision: weights and arithmetic in float16; inputs, scaling, fold and outputs as before.

What lies between the first and the last product is float16. Before the first one stand scaling, and the logarithms of a
table's numbers; behind the last one the fold and the softmax, whose exponentials end at 11.09 in float16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from export.onnx_graph import Node, OnnxGraph, model_from_parts, without_unread
from runtime.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Stand for minus or plus infinity, as in the masks of attention.
_UNBOUNDED = float(np.finfo(np.float32).max) * 0.99
# Inputs that are float32 whatever the others are, by operator.
_FLOAT_INPUTS = {"Resize": (2,)}


def fp16_from_onnx(model: bytes) -> bytes:
    """Return a float32 model (`export.to_onnx`) as one of float16 with the same inputs and outputs.

    Raises ExportError where a constant is larger than float16 holds, or where an operator does not take float16.
    """
    graph = OnnxGraph(onnx.load_model_from_string(model))
    writer = _HalfWriter(graph, _float_names(graph))
    for node in graph.nodes:
        writer.write(node)
    outputs = [each.name for each in graph.outputs]
    half = model_from_parts(
        graph.model, without_unread(writer.nodes, outputs), writer.constants, shapes={}, opsets={}, metadata={}
    )
    try:
        onnx.checker.check_model(half, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        reason = " ".join(str(error).split())
        raise ExportError(
            f"the model cannot be written in float16: {reason}", remedy="Leave fp16 out of the formats."
        ) from error
    return bytes(half.SerializeToString(deterministic=True))


def _float_names(graph: OnnxGraph) -> set[str]:
    """Return the names of values that are float32, constants apart."""
    inferred = onnx.shape_inference.infer_shapes(graph.model, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {each.name for each in values if each.type.tensor_type.elem_type == TensorProto.FLOAT}


class _HalfWriter:
    """Writes the nodes of a graph anew, with casts where a value goes from one precision to the other."""

    def __init__(self, graph: OnnxGraph, floats: set[str]) -> None:
        self.graph = graph
        self.floats = floats
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
            attributes["to"] = TensorProto.FLOAT16
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
        """Return `name`, made in float32, in float16. bounded: a mask's infinity becomes the largest number."""
        key = (name, "bounded" if bounded else "half")
        if key not in self.names:
            self.names[key] = made = f"{name}.{key[1]}"
            source = name
            if bounded:
                limits = []
                for limit, value in (("least", -LARGEST), ("most", LARGEST)):
                    self.constants[f"float16.{limit}"] = np.array(value, np.float32)
                    limits.append(f"float16.{limit}")
                source = f"{name}.clipped"
                self.nodes.append(Node("Clip", [name, *limits], [source]))
            self.nodes.append(Node("Cast", [source], [made], {"to": TensorProto.FLOAT16}))
        return self.names[key]

    def _constant(self, name: str, halve: bool) -> str:
        value = self.graph.constants[name]
        if not halve or value.dtype != np.float32:
            self.constants[name] = value
            return name
        self.constants[f"{name}.half"] = _in_half(name, value)
        return f"{name}.half"


def _in_half(name: str, value: np.ndarray) -> np.ndarray:
    finite = value[np.abs(value) < _UNBOUNDED]
    largest = float(np.abs(finite).max(initial=0))
    if np.isnan(value).any() or largest > LARGEST:
        raise ExportError(
            f"{name} has values up to {largest:.6g}, and float16 ends at {LARGEST:.0f}",
            remedy="Leave fp16 out of the formats, or train with weight decay.",
        )
    return np.clip(value, -LARGEST, LARGEST).astype(np.float16)


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
