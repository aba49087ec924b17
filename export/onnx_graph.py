"""An ONNX graph by name: what makes a value, what reads it, what is constant, and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime.errors import ExportError

Shape = tuple[int | str | None, ...]


@dataclass(eq=False)
class Node:
    """One operation; an absent optional input or output is an empty name."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""

    def to_proto(self) -> onnx.NodeProto:
        proto = helper.make_node(self.operator, self.inputs, self.outputs, domain=self.domain)
        for key in sorted(self.attributes):
            proto.attribute.append(helper.make_attribute(key, self.attributes[key]))
        return proto


class OnnxGraph:
    """The graph of a model whose weights are inside and which has no subgraphs.

    constants: initializers, and what follows from constants alone. shapes: as far as inference knows them; a free axis
    is its name, an unknown one None.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self.inputs = list(model.graph.input)
        self.outputs = list(model.graph.output)
        self.nodes = [_node_of(each) for each in model.graph.node]
        self._fold_constants()
        self.shapes = _inferred_shapes(model)
        self.index()

    def index(self) -> None:
        """Note who makes and who reads each value; to be called again after `nodes` changed."""
        self._producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._consumers.setdefault(name, []).append(node)
        self._output_names = {each.name for each in self.outputs}

    def producer(self, name: str) -> Node | None:
        return self._producers.get(name)

    def made_by(self, name: str, *operators: str) -> Node | None:
        """Return the node that makes `name` if it is one of `operators`."""
        node = self._producers.get(name)
        return node if node is not None and node.operator in operators else None

    def consumers(self, name: str) -> Sequence[Node]:
        return self._consumers.get(name, ())

    def is_output(self, name: str) -> bool:
        return name in self._output_names

    def sole_consumer(self, name: str) -> Node | None:
        """Return the only node that reads `name`, if nothing else does, the outside included."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and not self.is_output(name) else None

    def shape(self, name: str) -> Shape | None:
        return tuple(self.constants[name].shape) if name in self.constants else self.shapes.get(name)

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def constant(self, node: Node, position: int) -> np.ndarray | None:
        """Return the constant that is an input of `node`; None where it is absent or no constant."""
        return self.constants.get(node.inputs[position]) if position < len(node.inputs) else None

    def operands(self, node: Node) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (value, constant) of a node with two operands, one of them constant; in either order."""
        for value, other in (node.inputs[:2], node.inputs[1::-1]):
            if value not in self.constants and other in self.constants:
                yield value, self.constants[other]

    def _fold_constants(self) -> None:
        kept = []
        for node in self.nodes:
            if node.inputs and not all(name in self.constants for name in node.inputs if name):
                kept.append(node)
                continue
            graph = helper.make_graph(
                [node.to_proto()], "constants", [], [onnx.ValueInfoProto(name=each) for each in node.outputs]
            )
            for name in filter(None, node.inputs):
                graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
            evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.model.opset_import))
            self.constants.update(zip(node.outputs, map(np.asarray, evaluator.run(None, {})), strict=True))
        self.nodes = kept


def model_from_parts(
    like: onnx.ModelProto,
    nodes: Sequence[Node],
    constants: Mapping[str, np.ndarray],
    *,
    shapes: Mapping[str, tuple[int, Shape]],
    opsets: Mapping[str, int],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Return a model with the inputs, outputs, producer and metadata of `like`.

    shapes: element type and shape of values that inference cannot know. Constants that nothing reads are left out.
    """
    read = {name for node in nodes for name in node.inputs}
    graph = helper.make_graph(
        [node.to_proto() for node in nodes],
        like.graph.name,
        list(like.graph.input),
        list(like.graph.output),
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in read],
        value_info=[helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()],
    )
    imports = {each.domain: each.version for each in like.opset_import} | dict(opsets)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in imports.items()],
        ir_version=like.ir_version,
        producer_name=like.producer_name,
        producer_version=like.producer_version,
    )
    for key, value in sorted(({each.key: each.value for each in like.metadata_props} | dict(metadata)).items()):
        model.metadata_props.add(key=key, value=value)
    return model


def without_unread(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes that the outputs need; an output of a node that nothing reads loses its name."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if read.isdisjoint(node.outputs):
            continue
        node.outputs = [name if name in read else "" for name in node.outputs]
        while node.outputs and not node.outputs[-1]:
            node.outputs.pop()
        read.update(filter(None, node.inputs))
        kept.append(node)
    return kept[::-1]


def _node_of(proto: onnx.NodeProto) -> Node:
    attributes = {each.name: helper.get_attribute_value(each) for each in proto.attribute}
    if any(isinstance(value, onnx.GraphProto) for value in attributes.values()):
        raise ExportError(
            f"the graph has a branch or a loop ({proto.op_type}), which no packed or portable form has",
            remedy="No Python branch of the model may depend on a tensor.",
        )
    return Node(proto.op_type, list(proto.input), list(proto.output), attributes, proto.domain)


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(
            axis.dim_param or (axis.dim_value if axis.HasField("dim_value") else None)
            for axis in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
