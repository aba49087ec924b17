"""A student that was trained on grids of few bits, as the integers and scales that it was trained with.

What is exported of such a layer (`compress.layers.quant.SnappedLayer`) is float arithmetic: inputs as
Div → Round → Clip → Mul by one step, and weights that lie on a grid of their own in each output channel, whose step has
taken in the batch norm behind the layer (`export.to_onnx`). Both are found again in the graph and written in the form
that every engine reads: QuantizeLinear → DequantizeLinear of the inputs, DequantizeLinear of the weights, signed and
around zero, biases in float. Nothing is rounded a second time; where weights are on no grid, ExportError says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.onnx_graph import Node, OnnxGraph, model_from_parts
from export.to_int8 import require_signed
from runtime.errors import ExportError

INT4_OPSET = 21  # the first one with tensors of 4 bits
BITS, LARGEST = 8, 127
LARGEST_INT4 = 7
# How far a weight may lie from a level, in steps: float32 rounds the product of a level and a step by 127 · 2^-24.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """What a layer's input is rounded to: lowest ... highest times `step`. nodes: the four that do it, in order."""

    source: str
    output: str
    step: np.ndarray
    lowest: int
    highest: int
    nodes: tuple[Node, ...]

    @property
    def bits(self) -> int:
        return int(self.highest - self.lowest).bit_length()


@dataclass(frozen=True, eq=False)
class GridWeight:
    """Constant weights as levels (int8) times scales (channels,), along `axis`."""

    name: str
    levels: np.ndarray
    scales: np.ndarray
    axis: int

    @property
    def largest(self) -> int:
        return int(np.abs(self.levels).max(initial=0))


class GridGraph:
    """A float graph with its grids. layers: the weights of each product that reads one."""

    def __init__(self, model: bytes) -> None:
        self.graph = OnnxGraph(onnx.load_model_from_string(model))
        self.grids = {grid.output: grid for node in self.graph.nodes if (grid := _grid_of(self.graph, node))}
        self.layers = {
            node: _weight_of(self.graph, node) for node in self.graph.nodes if set(node.inputs[:1]) & set(self.grids)
        }
        if not self.layers:
            raise ExportError(
                "the model has no layer whose inputs are on a grid", remedy="Give the exported stage `quantize:`."
            )

    def nodes(self) -> list[Node | Grid]:
        """Return the nodes in order, those of a grid as the grid, in the place of the last of them."""
        of_grids = {node: grid for grid in self.grids.values() for node in grid.nodes}
        found: list[Node | Grid] = []
        for node in self.graph.nodes:
            grid = of_grids.get(node)
            if grid is None:
                found.append(node)
            elif node is grid.nodes[-1]:
                found.append(grid)
        return found


def qdq_from_onnx(model: bytes, *, int4: bool = False) -> bytes:
    """Return the exported graph of a quantised student with QuantizeLinear and DequantizeLinear.

    int4: weights of 4 bits and fewer as tensors of 4 bits, which needs opset 21; else all are INT8, which every engine
    reads, and opset and IR stay. Inputs of fewer than 8 bits travel in 8, cut off in float before.
    Raises ExportError where the graph has no grids, or where weights are on none.
    """
    draft = GridGraph(model)
    constants = dict(draft.graph.constants)
    constants["int8.zero"] = np.array(0, np.int8)
    nodes: list[Node] = []
    written: dict[str, str] = {}
    packed: list[str] = []
    for each in draft.nodes():
        if isinstance(each, Grid):
            nodes += _quantized(each, constants)
            continue
        weight = draft.layers.get(each)
        if weight is None:
            nodes.append(each)
            continue
        if weight.name not in written:
            written[weight.name] = f"{weight.name}.dequantized"
            in_four = int4 and weight.largest <= LARGEST_INT4
            name = f"{weight.name}.int{4 if in_four else 8}"
            packed += [name, f"{name}.zeros"] if in_four else []
            constants |= {name: weight.levels, f"{weight.name}.scales": weight.scales}
            constants[f"{name}.zeros"] = np.zeros(len(weight.scales), np.int8)
            parts = [name, f"{weight.name}.scales", f"{name}.zeros"]
            nodes.append(Node("DequantizeLinear", parts, [written[weight.name]], {"axis": weight.axis}))
        nodes += _product(each, written[weight.name], draft.grids[each.inputs[0]], constants)
    made = model_from_parts(
        draft.graph.model, nodes, constants, shapes={}, opsets={"": INT4_OPSET} if packed else {}, metadata={}
    )
    if not packed:
        require_signed(made)
    _pack(made, packed)
    _check(made)
    return bytes(made.SerializeToString(deterministic=True))


def _quantized(grid: Grid, constants: dict[str, np.ndarray]) -> list[Node]:
    """Return the nodes that put a grid in the place of its own."""
    name, nodes = grid.source, []
    constants[f"{grid.output}.scale"] = grid.step
    if grid.bits < BITS:
        name = f"{grid.output}.clipped"
        ends = [f"{grid.output}.lowest", f"{grid.output}.highest"]
        for end, level in zip(ends, (grid.lowest, grid.highest), strict=True):
            constants[end] = np.array(level * grid.step, np.float32)
        nodes.append(Node("Clip", [grid.source, *ends], [name]))
    points = [f"{grid.output}.scale", "int8.zero"]
    nodes.append(Node("QuantizeLinear", [name, *points], [f"{grid.output}.int8"]))
    nodes.append(Node("DequantizeLinear", [f"{grid.output}.int8", *points], [grid.output]))
    return nodes


def _product(node: Node, weight: str, grid: Grid, constants: dict[str, np.ndarray]) -> list[Node]:
    """Return `node` with other weights; those of a Gemm lie with the outputs first.

    ONNX Runtime rounds a bias to the grid of the sums. Behind inputs of few bits that is coarse (2 % of the classes of
    a network with inputs and weights of 4 bits were others), so there the bias is added by itself.
    """
    attributes = {**node.attributes, "transB": 1} if node.operator == "Gemm" else node.attributes
    data, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else ""
    if bias not in constants or grid.bits == BITS:
        return [Node(node.operator, [data, weight, *([bias] if bias else [])], node.outputs, attributes)]
    values = constants[bias]
    constants[f"{node.outputs[0]}.bias"] = values.reshape(-1, 1, 1) if node.operator == "Conv" else values
    sums = f"{node.outputs[0]}.sums"
    return [
        Node(node.operator, [data, weight], [sums], attributes),
        Node("Add", [sums, f"{node.outputs[0]}.bias"], node.outputs),
    ]


def _grid_of(graph: OnnxGraph, last: Node) -> Grid | None:
    """Return the grid that `last` ends, a Mul behind Div → Round → Clip; None where it is another Mul."""
    if last.operator != "Mul":
        return None
    clip = graph.made_by(last.inputs[0], "Clip")
    rounded = clip and graph.made_by(clip.inputs[0], "Round")
    divided = rounded and graph.made_by(rounded.inputs[0], "Div")
    if clip is None or rounded is None or divided is None:
        return None
    step, again = graph.constant(divided, 1), graph.constant(last, 1)
    lowest, highest = graph.constant(clip, 1), graph.constant(clip, 2)
    if step is None or again is None or lowest is None or highest is None or step.ndim or step != again:
        return None
    if not (step > 0 and -LARGEST - 1 <= lowest <= highest <= LARGEST):
        raise ExportError(f"{last.outputs[0]} is rounded to {lowest} ... {highest} steps of {step}; expected INT8")
    nodes = (divided, rounded, clip, last)
    return Grid(divided.inputs[0], last.outputs[0], step, round(float(lowest)), round(float(highest)), nodes)


def _weight_of(graph: OnnxGraph, node: Node) -> GridWeight:
    weight = graph.constant(node, 1)
    if node.operator not in ("Conv", "Gemm", "MatMul") or weight is None or weight.ndim < 2:
        raise ExportError(f"{node.operator} reads inputs on a grid; expected a product with constant weights")
    axis = weight.ndim - 1 if node.operator == "MatMul" else 0
    if node.operator == "Gemm" and not node.attributes.get("transB"):
        weight = np.ascontiguousarray(weight.T)
    try:
        return GridWeight(node.inputs[1], *levels_of(weight, axis), axis)
    except ExportError as error:
        raise ExportError(f"{node.inputs[1]}: {error.message}", remedy=error.remedy) from None


def levels_of(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 levels of the shape of `weight`, and scales (channels,) along `axis`, whose product it is.

    A channel's grid is read off its weights: the coarsest one that holds them all and has at most 127 levels on either
    side. Raises ExportError where there is none.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)  # (channels, others)
    reach = np.abs(rows).max(axis=1)
    levels = np.zeros(rows.shape, np.int8)
    scales = np.ones(len(rows), np.float32)  # also of a channel of zeros, as TensorRT refuses a scale of 0
    left = np.flatnonzero(reach)
    for largest in range(1, LARGEST + 1):
        scaled = rows[left] / reach[left, None] * largest
        fits = np.abs(scaled - np.rint(scaled)).max(axis=1) < TOLERANCE
        levels[left[fits]] = np.rint(scaled[fits])
        scales[left[fits]] = reach[left[fits]] / largest
        left = left[~fits]
    if len(left):
        raise ExportError(
            f"{len(left)} of {len(rows)} channels have weights on no grid of 8 bits",
            remedy="Export the stage as it was trained; what scales weights must scale a whole output channel.",
        )
    shape = (weight.shape[axis], *(size for place, size in enumerate(weight.shape) if place != axis))
    return np.ascontiguousarray(np.moveaxis(levels.reshape(shape), 0, axis)), scales


def _pack(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make 4-bit tensors of int8 ones: two to a byte, the first in the lower half."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            values = onnx.numpy_helper.to_array(tensor).flatten().view(np.uint8) & 15
            values = np.append(values, np.zeros(len(values) % 2, np.uint8))
            tensor.data_type = onnx.TensorProto.INT4
            tensor.raw_data = (values[::2] | values[1::2] << 4).tobytes()


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        raise ExportError(f"the quantised graph is not valid ONNX: {' '.join(str(error).split())}") from error
