"""Operators as they were written in earlier opsets: the same values from other attributes, or from other operators.

What replaces an operator is what engines of that time look for when they put it together again: ONNX Runtime makes one
LayerNormalization or Gelu of the nodes that are written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx_graph import Shape
from runtime.errors import ExportError

Nodes = list[onnx.NodeProto]


@dataclass(eq=False)
class Values:
    """What is known of a graph's values by name. New constants go into `added`."""

    constants: Mapping[str, np.ndarray]
    types: Mapping[str, int]
    shapes: Mapping[str, Shape]
    added: dict[str, np.ndarray] = field(default_factory=dict)

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        self.added[name] = np.array(value, dtype)
        return name

    def dtype(self, name: str) -> np.dtype[Any]:
        if name not in self.types:
            raise ExportError(f"the type of {name} is not known, so what reads it cannot be written in an older opset")
        return helper.tensor_dtype_to_np_dtype(self.types[name])

    def rank(self, node: onnx.NodeProto) -> int:
        shape = self.shapes.get(node.input[0])
        if shape is None:
            raise ExportError(f"{node.op_type} reads {node.input[0]} with so many axes as nobody knows")
        return len(shape)

    def given(self, node: onnx.NodeProto, position: int) -> np.ndarray | None:
        """Return the constant at an input; None where it is absent. Raises ExportError where it is computed."""
        if position >= len(node.input) or not node.input[position]:
            return None
        if node.input[position] not in self.constants:
            raise ExportError(
                f"{node.op_type} computes its {node.input[position]}, which older opsets need as a constant"
            )
        return self.constants[node.input[position]]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _layer_normalization(node: onnx.NodeProto, values: Values) -> Nodes:
    """(x - mean) / sqrt(variance + epsilon), in float32 whatever x is, then scale and bias in the type of x."""
    given = attributes_of(node)
    x, scale, bias = (*node.input, "")[:3]
    y = node.output[0]
    if any(node.output[1:]) or given.get("stash_type", TensorProto.FLOAT) != TensorProto.FLOAT:
        raise ExportError("LayerNormalization gives its statistics, or takes them in another type than float32")
    axis = given.get("axis", -1)
    axes = list(range(axis if axis < 0 else axis - values.rank(node), 0))
    dtype = values.dtype(x)
    half = dtype != np.float32
    two = values.constant(f"{y}.two", 2.0, np.float32)
    epsilon = values.constant(f"{y}.epsilon", given.get("epsilon", 1e-5), np.float32)
    source = f"{x}.{y}.float" if half else x
    over: dict[str, Any] = {"axes": axes, "keepdims": 1}
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("ReduceMean", [source], "mean", over),
        ("Sub", [source, f"{y}.mean"], "centred", {}),
        ("Pow", [f"{y}.centred", two], "squared", {}),
        ("ReduceMean", [f"{y}.squared"], "variance", over),
        ("Add", [f"{y}.variance", epsilon], "above_zero", {}),
        ("Sqrt", [f"{y}.above_zero"], "deviation", {}),
        ("Div", [f"{y}.centred", f"{y}.deviation"], "normal", {}),
    ]
    nodes = [helper.make_node("Cast", [x], [source], to=TensorProto.FLOAT)] if half else []
    nodes += [helper.make_node(operator, inputs, [f"{y}.{name}"], **more) for operator, inputs, name, more in steps]
    normal = f"{y}.normal"
    if half:
        nodes.append(helper.make_node("Cast", [normal], [f"{normal}.half"], to=helper.np_dtype_to_tensor_dtype(dtype)))
        normal = f"{normal}.half"
    nodes.append(helper.make_node("Mul", [normal, scale], [f"{y}.scaled" if bias else y]))
    return [*nodes, helper.make_node("Add", [f"{y}.scaled", bias], [y])] if bias else nodes


def _gelu(node: onnx.NodeProto, values: Values) -> Nodes:
    """x/2 (1 + erf(x / √2)), or x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks & Gimpel 2016)."""
    (x,), (y,) = node.input, node.output
    dtype = values.dtype(x)

    def constant(name: str, value: float) -> str:
        return values.constant(f"{y}.{name}", value, dtype)

    if attributes_of(node).get("approximate", b"none") == b"tanh":
        inside: list[tuple[str, list[str], str]] = [
            ("Pow", [x, values.constant(f"{y}.three", 3.0, np.float32)], "cube"),
            ("Mul", [f"{y}.cube", constant("share", 0.044715)], "bent"),
            ("Add", [x, f"{y}.bent"], "sum"),
            ("Mul", [f"{y}.sum", constant("root", math.sqrt(2 / math.pi))], "inside"),
            ("Tanh", [f"{y}.inside"], "outside"),
        ]
    else:
        inside = [("Div", [x, constant("root", math.sqrt(2))], "inside"), ("Erf", [f"{y}.inside"], "outside")]
    steps = [
        *inside,
        ("Add", [f"{y}.outside", constant("one", 1.0)], "above_zero"),
        ("Mul", [x, f"{y}.above_zero"], "double"),
    ]
    nodes = [helper.make_node(operator, inputs, [f"{y}.{name}"]) for operator, inputs, name in steps]
    return [*nodes, helper.make_node("Mul", [f"{y}.double", constant("half", 0.5)], [y])]


def _reduce(node: onnx.NodeProto, values: Values) -> Nodes:
    """Axes as an attribute; an operator without axes reduces all, unless it says that it then reduces none."""
    given = attributes_of(node)
    axes = values.given(node, 1)
    if given.pop("noop_with_empty_axes", 0) and (axes is None or not axes.size):
        if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"):
            raise ExportError(f"{node.op_type} reduces no axis, which it can from opset 18 on")
        return [helper.make_node("Identity", node.input[:1], node.output)]
    if axes is not None and axes.size:
        given["axes"] = axes.tolist()
    return [helper.make_node(node.op_type, node.input[:1], node.output, **given)]


def _split(node: onnx.NodeProto, values: Values) -> Nodes:
    """Parts by their sizes where a number of them is given: equal ones, the last one smaller."""
    given = attributes_of(node)
    parts = given.pop("num_outputs", None)
    inputs = list(node.input)
    if parts is not None:
        axis = (values.shapes.get(node.input[0]) or ())[given.get("axis", 0) :][:1]
        if not axis or not isinstance(axis[0], int):
            raise ExportError(f"Split cuts {node.input[0]} into {parts} along an axis of a size that nobody knows")
        size = -(-axis[0] // parts)
        sizes = [min(size, axis[0] - i * size) for i in range(parts)]
        inputs = [node.input[0], values.constant(f"{node.output[0]}.sizes", sizes, np.int64)]
    return [helper.make_node("Split", inputs, node.output, **given)]


def _pad(node: onnx.NodeProto, values: Values) -> Nodes:
    """Widths of all axes, in the place of those of some."""
    given = attributes_of(node)
    if given.get("mode") == b"wrap":
        raise ExportError("Pad wraps around, which it does from opset 19 on")
    axes = values.given(node, 3)
    inputs = list(node.input[:3])
    if axes is not None:
        widths, rank = values.given(node, 1), values.rank(node)
        assert widths is not None  # an input that is not optional
        full = np.zeros((2, rank), np.int64)
        full[:, axes] = widths.reshape(2, -1)
        inputs[1] = values.constant(f"{node.output[0]}.widths", full.reshape(-1), np.int64)
    while not inputs[-1]:
        inputs.pop()
    return [helper.make_node("Pad", inputs, node.output, **given)]


def _shape(node: onnx.NodeProto, values: Values) -> Nodes:
    """The whole shape, and a piece of it where a piece is wanted."""
    given = attributes_of(node)
    if not given.get("start") and "end" not in given:
        return [helper.make_node("Shape", node.input, node.output)]
    (y,) = node.output
    bounds = [
        values.constant(f"{y}.{name}", [given.get(name, default)], np.int64)
        for name, default in (("start", 0), ("end", np.iinfo(np.int64).max))
    ]
    return [
        helper.make_node("Shape", node.input, [f"{y}.whole"]),
        helper.make_node("Slice", [f"{y}.whole", *bounds], [y]),
    ]


def _reshape(node: onnx.NodeProto, values: Values) -> Nodes:
    """Without allowzero, which says nothing where no size is 0; ONNX Runtime 1.8 to 1.10 takes a -1 amiss beside it.

    Sizes that are computed are of rows, of which there is one at least.
    """
    given = attributes_of(node)
    sizes = values.constants.get(node.input[1])
    if sizes is None or sizes.all():
        given.pop("allowzero", None)
    return [helper.make_node("Reshape", node.input, node.output, **given)]


def _gemm(node: onnx.NodeProto, values: Values) -> Nodes:
    """With a bias, of zeros where there is none: the Gemm with Relu that ONNX Runtime 1.7 to 1.12 makes needs one."""
    given = attributes_of(node)
    outputs = (values.shapes.get(node.input[1]) or (None, None))[0 if given.get("transB") else 1]
    if len(node.input) > 2 or not isinstance(outputs, int):
        return [node]
    zeros = values.constant(f"{node.output[0]}.zeros", np.zeros(outputs), values.dtype(node.input[1]))
    return [helper.make_node("Gemm", [*node.input, zeros], node.output, **given)]


def _hard_swish(node: onnx.NodeProto, values: Values) -> Nodes:
    """x max(0, min(1, x/6 + 1/2))."""
    (x,), (y,) = node.input, node.output
    sigmoid = helper.make_node("HardSigmoid", [x], [f"{y}.gate"], alpha=1 / 6, beta=0.5)
    return [sigmoid, helper.make_node("Mul", [x, f"{y}.gate"], [y])]


def _mish(node: onnx.NodeProto, values: Values) -> Nodes:
    """x tanh(log(1 + exp(x)))."""
    (x,), (y,) = node.input, node.output
    steps = [("Softplus", [x], f"{y}.soft"), ("Tanh", [f"{y}.soft"], f"{y}.gate"), ("Mul", [x, f"{y}.gate"], y)]
    return [helper.make_node(operator, inputs, [output]) for operator, inputs, output in steps]


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

# Operator -> the first opset that has it as it is, and how it is written before.
REWRITES: Mapping[str, tuple[int, Callable[[onnx.NodeProto, Values], Nodes]]] = {
    "Gelu": (20, _gelu),
    "Gemm": (18, _gemm),
    "HardSwish": (14, _hard_swish),
    "LayerNormalization": (17, _layer_normalization),
    "Mish": (18, _mish),
    "Pad": (18, _pad),
    **{f"Reduce{name}": (18, _reduce) for name in _REDUCTIONS},
    "Reshape": (18, _reshape),
    "Shape": (15, _shape),
    "Split": (18, _split),
}


def values_of(model: onnx.ModelProto) -> Values:
    """Return what is known of the values of a model, by inference."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = (*inferred.input, *inferred.value_info, *inferred.output)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return Values(
        constants,
        {each.name: each.type.tensor_type.elem_type for each in known}
        | {each.name: each.data_type for each in model.graph.initializer},
        {
            each.name: tuple(axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim)
            for each in known
            if each.type.tensor_type.HasField("shape")
        }
        | {name: value.shape for name, value in constants.items()},
    )
