"""An ONNX model in bfloat16 (`export.half_precision`), and its arithmetic in float32 for engines that lack bfloat16.

Opset 22 is the first whose convolution has bfloat16. ONNX Runtime's CPU provider has no operator of it, so parity is
proven by the file with every value widened: the weights are those of the file, each result is computed in float32 and
rounded to bfloat16, as a GPU does that adds in float32.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from export.half_precision import HalfPrecision, half_from_onnx
from export.onnx_graph import Node, OnnxGraph, model_from_parts

BFLOAT16 = HalfPrecision(
    "bf16",
    "bfloat16",
    TensorProto.BFLOAT16,
    np.dtype(ml_dtypes.bfloat16),
    float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
    opset=22,
)


def bf16_from_onnx(model: bytes) -> bytes:
    """Return a float32 model (`export.to_onnx`) as one of bfloat16, of opset 22, with the same inputs and outputs.

    Raises ExportError where an operator does not take bfloat16 or means something else in that opset.
    """
    return half_from_onnx(model, BFLOAT16)


def widened_from_bf16(model: bytes) -> bytes:
    """Return a float32 model that computes what the bfloat16 `model` does, each result rounded to bfloat16."""
    parsed = onnx.load_model_from_string(model)
    narrow = _bfloat16_names(parsed)
    graph = OnnxGraph(parsed)
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _widened(node, narrow)
    constants = {
        name: value.astype(np.float32) if value.dtype == BFLOAT16.dtype else value
        for name, value in graph.constants.items()
    }
    written = model_from_parts(parsed, nodes, constants, shapes={}, opsets={}, metadata={})
    onnx.checker.check_model(written, full_check=True)
    return bytes(written.SerializeToString(deterministic=True))


def _widened(node: Node, narrow: set[str]) -> list[Node]:
    """Return the node with float32 in the place of bfloat16, and what rounds its results."""
    if node.operator == "Cast" and node.attributes["to"] == BFLOAT16.element:
        return _rounding(node.inputs[0], node.outputs[0])
    exact = {name: f"{name}.exact" for name in node.outputs if name in narrow}
    outputs = [exact.get(name, name) for name in node.outputs]
    made = [Node(node.operator, node.inputs, outputs, node.attributes, node.domain)]
    for name, before in exact.items():
        made += _rounding(before, name)
    return made


def _rounding(source: str, name: str) -> list[Node]:
    """Return the casts that make `name`, in float32, of the float32 value `source` rounded to bfloat16."""
    return [
        Node("Cast", [source], [f"{name}.rounded"], {"to": BFLOAT16.element}),
        Node("Cast", [f"{name}.rounded"], [name], {"to": TensorProto.FLOAT}),
    ]


def _bfloat16_names(model: onnx.ModelProto) -> set[str]:
    """Return the names of values that are bfloat16, constants apart."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    constants = {each.name for each in inferred.initializer}
    return {
        each.name
        for each in inferred.value_info
        if each.type.tensor_type.elem_type == BFLOAT16.element and each.name not in constants
    }
