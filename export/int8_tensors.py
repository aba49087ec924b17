"""Which tensors of a graph are 8-bit numbers when some of its layers are, so that whole blocks are computed on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import TensorProto

from export.int8_layers import Layer
from export.onnx_graph import Node, OnnxGraph

_ACTIVATIONS = ("Relu", "Clip")
_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split")
_POOLS = ("AveragePool", "GlobalAveragePool")
_POSITIVE = ("Relu", "Exp", "Sigmoid", "Softmax", "Abs", "Sqrt")


class Tensors:
    """Which tensors are 8-bit numbers.

    made: those that nodes of 8-bit numbers make, and nothing reads them but as such. read: those that are quantised for
    the layers that read them.
    """

    def __init__(self, graph: OnnxGraph, layers: Sequence[Layer]) -> None:
        self.graph = graph
        self.layers = {layer.node: layer for layer in layers}
        self.made: set[str] = set()
        self.read = {layer.activation for layer in layers}
        self._taken_up: set[Node] = set()  # activations that end the node in front of them
        for node in graph.nodes:
            if node not in self._taken_up:
                self._look_at(node)

    def _look_at(self, node: Node) -> None:
        reads_made = bool(node.inputs) and node.inputs[0] in self.made
        if node in self.layers:
            if node.operator == "Conv":
                self.made.add(self._end_of(node))
        elif reads_made and _moves(self.graph, node):
            self.made.update(node.outputs)
        elif (
            (node.operator in ("Add", "Concat") and self.made.issuperset(node.inputs))
            or (node.operator in (*_POOLS, *_ACTIVATIONS) and reads_made)
            or self.is_norm(node)
            or self.is_mean(node)
        ):
            self.made.add(self._end_of(node))

    def is_norm(self, node: Node) -> bool:
        return (
            node.operator == "BatchNormalization"
            and node.inputs[0] in self.made
            and self.graph.rank(node.inputs[0]) == 4
            and all(name in self.graph.constants for name in node.inputs[1:])
        )

    def is_mean(self, node: Node) -> bool:
        """Whether `node` is a mean over height and width."""
        axes = self.graph.constant(node, 1)
        return (
            node.operator == "ReduceMean"
            and node.inputs[0] in self.made
            and self.graph.rank(node.inputs[0]) == 4
            and axes is not None
            and {int(axis) % 4 for axis in axes.reshape(-1)} == {2, 3}
        )

    def _end_of(self, node: Node) -> str:
        """Return what `node` makes, behind the activation that alone reads it."""
        (name,) = node.outputs
        reader = self.graph.sole_consumer(name)
        if reader is None or reader.operator not in _ACTIVATIONS:
            return name
        self._taken_up.add(reader)
        return reader.outputs[0]


def source_of(graph: OnnxGraph, name: str) -> str:
    """Return the tensor whose numbers `name` has, and so its scale, whatever layers there are in INT8."""
    while (node := graph.producer(name)) is not None and _moves(graph, node) and node.inputs[0] not in graph.constants:
        name = node.inputs[0]
    return name


def never_negative(graph: OnnxGraph) -> Collection[str]:
    """Return the tensors that cannot be negative, whatever the rows."""
    unsigned = TensorProto.UINT8
    known: set[str] = {each.name for each in graph.inputs if each.type.tensor_type.elem_type == unsigned}
    for node in graph.nodes:
        values = [name for name in node.inputs if name and name not in graph.constants]
        low = graph.constant(node, 1) if node.operator == "Clip" else None
        if (
            node.operator in _POSITIVE
            or (low is not None and bool((low >= 0).all()))
            or (node.operator in (*_POOLS, "Cast", "Clip", "ReduceMean") and node.inputs[0] in known)
            or (_moves(graph, node) and node.inputs[0] in known)
            or (node.operator in ("Mul", "Add") and any(x in known and (y >= 0).all() for x, y in graph.operands(node)))
            or (node.operator in ("Add", "Concat") and len(values) == len(node.inputs) and known.issuperset(values))
        ):
            known.update(node.outputs)
    return known


def _moves(graph: OnnxGraph, node: Node) -> bool:
    """Whether `node` gives numbers that it reads, or zeros beside them."""
    if node.operator == "Pad":
        value = graph.constant(node, 2)
        return node.attributes.get("mode", b"constant") == b"constant" and (value is None or not value.any())
    return node.operator in _MOVES and (len(node.outputs) == 1 or node.operator == "Split")
