"""Operations of a graph on (N, C, H, W) as they are on (N, H, W, C).

Inside a binary stage all activations are channels last, so that no transposes stand between its nodes. An operation
that has no such form is left as it is, between transposes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from export.onnx_graph import Node, OnnxGraph

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_AXIS = {old: new for new, old in enumerate(TO_LAST)}  # where an axis of (N, C, H, W) lies afterwards

# fmt: off
ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor",
))
# fmt: on
FEW_CHANNELS = 32

_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
_POOLS = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}

# name of a value, constant of a form of its own → their names in the new graph
Constant = Callable[[str, np.ndarray], str]


def has_channels_last_form(graph: OnnxGraph, node: Node) -> bool:
    """Whether `channels_last_form` gives something for `node`."""
    moving = [name for name in node.inputs if name and name not in graph.constants]
    if node.domain or not moving or graph.rank(node.outputs[0]) is None:
        return False
    if node.operator in ELEMENTWISE:
        return all(graph.rank(name) in (0, 4) for name in moving) and graph.rank(node.outputs[0]) == 4
    if graph.rank(node.inputs[0]) != 4 or len(moving) != (len(node.inputs) if node.operator == "Concat" else 1):
        return False
    if node.operator in _REDUCTIONS:
        axes = reduced_axes(graph, node)
        return axes is not None and (bool(node.attributes.get("keepdims", 1)) or {2, 3} <= axes)
    if node.operator == "Concat":
        return all(graph.rank(name) == 4 for name in moving)
    return node.operator in (*_POOLS, "Slice", "Pad") or is_pointwise(graph, node)


def reduced_axes(graph: OnnxGraph, node: Node) -> set[int] | None:
    """Return the axes of (N, C, H, W) that a reduction takes away, None where they are not known."""
    axes = graph.constant(node, 1)
    given = node.attributes.get("axes") if axes is None else axes
    return {int(axis) % 4 for axis in given} if given is not None else None


def is_pointwise(graph: OnnxGraph, node: Node) -> bool:
    """Whether `node` is a real 1×1 convolution: a product of matrices, channels last."""
    weight = graph.constant(node, 1)
    return (
        node.operator == "Conv"
        and weight is not None
        and weight.ndim == 4
        and weight.shape[2:] == (1, 1)
        and node.attributes.get("group", 1) == 1
        and not any(node.attributes.get("pads", ()))
        and node.attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and (len(node.inputs) < 3 or not node.inputs[2] or node.inputs[2] in graph.constants)
    )


def channels_last_form(
    graph: OnnxGraph, node: Node, inputs: Mapping[str, str], output: str, constant: Constant
) -> list[Node]:
    """Return `node` for channels last, as nodes that make `output`. inputs: what its inputs are called in that form."""
    width = (graph.shape(node.outputs[0]) or ())[-1:]
    if node.operator == "PRelu" and node.inputs[1] in graph.constants:
        slope = constant(node.inputs[1], constant_channels_last(graph.constants[node.inputs[1]], *width))
        return prelu(inputs[node.inputs[0]], slope, graph.constants[node.inputs[1]], output)
    if node.operator in ELEMENTWISE:
        names = [
            constant(name, constant_channels_last(graph.constants[name], *width))
            if name in graph.constants
            else inputs[name]
            for name in node.inputs
        ]
        return [Node(node.operator, names, [output], node.attributes)]
    if node.operator in _POOLS:
        axes = constant("axes", np.array([1, 2]))
        return [Node(_POOLS[node.operator], [inputs[node.inputs[0]], axes], [output], {"keepdims": 1})]
    if node.operator in _REDUCTIONS:
        axes = constant("axes", np.array(sorted(_AXIS[axis] for axis in reduced_axes(graph, node) or ())))
        attributes = {key: value for key, value in node.attributes.items() if key != "axes"}
        return [Node(node.operator, [inputs[node.inputs[0]], axes], [output], attributes)]
    if node.operator == "Concat":
        axis = _AXIS[int(node.attributes["axis"]) % 4]
        return [Node("Concat", [inputs[name] for name in node.inputs], [output], {"axis": axis})]
    if node.operator == "Slice":
        return [_slice(graph, node, inputs[node.inputs[0]], output, constant)]
    if node.operator == "Pad":
        return [_pad(graph, node, inputs[node.inputs[0]], output, constant)]
    return _product(graph, node, inputs[node.inputs[0]], output, constant)


def constant_channels_last(array: np.ndarray, width: int | str | None = None) -> np.ndarray:
    """Return what is broadcast with (N, H, W, C) as `array` was with (N, C, H, W); leading axes of 1 are left out.

    width: W. Few channels are written out for a row of the image: ONNX Runtime works in runs as long as the constant,
    and takes thirty times as long for those of three numbers.
    """
    if array.size == 1 or (array.size and (array == array.reshape(-1)[0]).all()):
        return array.reshape(-1)[0]
    moved = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(TO_LAST)
    while moved.ndim > 1 and moved.shape[0] == 1:
        moved = moved[0]
    if moved.ndim == 1 and len(moved) <= FEW_CHANNELS and isinstance(width, int):
        moved = np.tile(moved, (width, 1))  # (W, C)
    return np.ascontiguousarray(moved)


def prelu(x: str, slope: str, slopes: np.ndarray, output: str) -> list[Node]:
    """Return `x < 0 ? x * slope : x` as nodes: with slopes up to 1 the larger of the two, from 1 on the smaller.

    ONNX Runtime takes three times as long for a PRelu whose slopes lie along the last axis.
    """
    choose = "Max" if (slopes <= 1).all() else "Min" if (slopes >= 1).all() else None
    if choose is None:
        return [Node("PRelu", [x, slope], [output])]
    return [Node("Mul", [x, slope], [f"{output}_steep"]), Node(choose, [x, f"{output}_steep"], [output])]


def _slice(graph: OnnxGraph, node: Node, x: str, output: str, constant: Constant) -> Node:
    starts, ends = (graph.constants[name] for name in node.inputs[1:3])
    axes, steps = graph.constant(node, 3), graph.constant(node, 4)
    axes = np.arange(len(starts)) if axes is None else axes
    moved = np.array([_AXIS[int(axis) % 4] for axis in axes])
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    return Node("Slice", [x, *(constant("slice", each) for each in (starts, ends, moved, steps))], [output])


def _pad(graph: OnnxGraph, node: Node, x: str, output: str, constant: Constant) -> Node:
    pads, axes = graph.constants[node.inputs[1]], graph.constant(node, 3)
    moved = np.array([_AXIS[int(axis) % 4] for axis in (range(4) if axes is None else axes)])
    value = [graph.constants[name] for name in node.inputs[2:3] if name]
    names = [constant("pads", pads), constant("pad", value[0]) if value else "", constant("axes", moved)]
    return Node("Pad", [x, *names], [output], node.attributes)


def _product(graph: OnnxGraph, node: Node, x: str, output: str, constant: Constant) -> list[Node]:
    nodes = []
    strides = [int(stride) for stride in node.attributes.get("strides", (1, 1))]
    if strides != [1, 1]:
        bounds = [np.array([0, 0]), np.array([np.iinfo(np.int64).max] * 2), np.array([1, 2]), np.array(strides)]
        nodes.append(Node("Slice", [x, *(constant("slice", each) for each in bounds)], [f"{output}_strided"]))
        x = f"{output}_strided"
    weight = constant(node.inputs[1], np.ascontiguousarray(graph.constants[node.inputs[1]][:, :, 0, 0].T))
    biased = len(node.inputs) > 2 and bool(node.inputs[2])
    product = f"{output}_product" if biased else output
    nodes.append(Node("MatMul", [x, weight], [product]))
    if biased:
        nodes.append(Node("Add", [product, constant(node.inputs[2], graph.constants[node.inputs[2]])], [output]))
    return nodes
