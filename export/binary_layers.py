"""Finds the binary layers of a simulated graph, each with the operations around it that its packed operator does too.

A binary layer is a Conv, Gemm or MatMul of signs with constant weights that have one magnitude per output. Signs are
`Where(x >= 0, 1, -1)`; between them and the layer there may be padding. What follows is taken while nothing else reads
what lies between: a factor and a summand per channel, an activation with slopes, a residual, a second activation. See
`runtime/ops/README.md` for the operators.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.onnx_graph import Node, OnnxGraph
from runtime.errors import ExportError

PRODUCTS = ("Conv", "Gemm", "MatMul")

# What may stand between signs and a layer that reads them: moved values are still signs.
# fmt: off
_MOVES = frozenset((
    "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Concat", "Split", "Gather",
    "Expand", "MaxPool", "Cast",
))
# fmt: on
_COMPARISONS = ("GreaterOrEqual", "Greater", "LessOrEqual", "Less")


@dataclass(frozen=True, eq=False)
class SignSource:
    """Signs of `value`, or of `value * scale + bias` by channel."""

    value: str
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None

    def same_as(self, other: SignSource) -> bool:
        return self.value == other.value and all(
            (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
            for a, b in ((self.scale, other.scale), (self.bias, other.bias))
        )


@dataclass(eq=False)
class PackedLayer:
    """One node of the packed graph. weight: ±1 in torch's layout, (outputs, C/G, height, width) or (outputs, C).

    A `FixedConv` reads `source` itself and not its signs, times `input_scale` and up to `levels`, as the nodes `before`
    it do in the simulated graph; its weights are whole numbers of 8 bits.

    value: what the layer gives with everything that is fused, by its name in the simulated graph; last: the node there
    that makes it. nodes: everything that the packed operator stands for, the signs' own apart. scale holds the
    magnitude of the weights as well, which is exact for powers of two; with another one the simulation's own sums are
    rounded.
    """

    operator: str
    name: str
    node: Node
    source: SignSource
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    value: str
    last: Node
    nodes: list[Node]
    group: int = 1
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_value: int = 0
    slope: np.ndarray | None = None
    residual: str | None = None
    slope_after: np.ndarray | None = None
    has_bias: bool = False
    input_scale: float = 1.0
    levels: int = 0
    before: tuple[Node, ...] = ()

    @property
    def is_binary(self) -> bool:
        return self.operator != "FixedConv"

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def channels(self) -> int:
        return int(self.weight.shape[1]) * self.group

    @property
    def rank(self) -> int:
        return int(self.weight.ndim)


def find_binary_layers(graph: OnnxGraph, *, strict: bool) -> list[PackedLayer]:
    """Return the binary layers of `graph` in its order, without what follows them.

    strict: raise ExportError where signs reach a product that is no binary layer, and so would stay a float one.
    """
    layers, problems = [], []
    fed = products_of_signs(graph)
    for node in graph.nodes:
        if node.operator not in PRODUCTS or node not in fed:
            continue
        try:
            layers.append(_layer(graph, node))
        except NotPackedError as error:
            problems.append(f"{name_of(graph, node)}: {error}")
    if problems and strict:
        raise ExportError(
            "signs reach layers that no packed operator can stand for, and they would stay float:"
            + "".join(f"\n  {problem}" for problem in problems),
            remedy="Train these layers with binary weights, or do not take signs before them.",
        )
    return layers


def take_surroundings(graph: OnnxGraph, layers: Sequence[PackedLayer]) -> None:
    """Extend layers over the operations around them. Where two are added, the binary or else the later one adds."""
    claimed = {node for layer in layers for node in layer.before}
    backwards = layers[::-1]
    for layer in (*filter(_is_binary, backwards), *itertools.filterfalse(_is_binary, backwards)):
        _take_what_follows(graph, layer, claimed)
    for layer in layers:
        if layer.is_binary:
            layer.source = _with_affine(graph, layer, claimed)


def name_of(graph: OnnxGraph, node: Node) -> str:
    """Return what a user calls the layer of a product: where its weight lies in the module."""
    weights = [name for name in node.inputs[1:2] if name in graph.constants]
    return weights[0].removesuffix(".weight") if weights else node.outputs[0]


def per_channel(constant: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """Return `constant` as (channels,) where it is one value or one per channel of (N, channels, ...), else None."""
    if constant.dtype != np.float32 or constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(-1), (channels,)))


def signs_of(graph: OnnxGraph, name: str) -> str | None:
    """Return x where `name` is sign(x), with sign(0) = +1 and sign(NaN) = -1, else None."""
    node = graph.made_by(name, "Where")
    if node is not None and _is(graph, node.inputs[1], 1) and _is(graph, node.inputs[2], -1):
        return _not_negative(graph, node.inputs[0])
    node = graph.made_by(name, "Sub", "Add")  # (x >= 0) * 2 - 1
    if node is not None and _is(graph, node.inputs[1], 1 if node.operator == "Sub" else -1):
        twice = graph.made_by(node.inputs[0], "Mul")
        bits = graph.made_by(twice.inputs[0], "Cast") if twice is not None and _is(graph, twice.inputs[1], 2) else None
        return _not_negative(graph, bits.inputs[0]) if bits is not None else None
    return None


def _not_negative(graph: OnnxGraph, name: str) -> str | None:
    """Return x where `name` is x >= 0."""
    node = graph.made_by(name, "GreaterOrEqual", "LessOrEqual")
    if node is None:
        return None
    x, zero = node.inputs if node.operator == "GreaterOrEqual" else node.inputs[::-1]
    return x if _is(graph, zero, 0) else None


def _is(graph: OnnxGraph, name: str, value: float) -> bool:
    constant = graph.constants.get(name)
    return constant is not None and constant.size == 1 and float(constant.reshape(())) == value


def products_of_signs(graph: OnnxGraph) -> set[Node]:
    """Return the convolutions and products of matrices whose data are signs, moved and padded or not."""
    signs: set[str] = set()
    found = set()
    for node in graph.nodes:
        if any(signs_of(graph, name) for name in node.outputs[:1]):
            signs.update(node.outputs)
        elif signs.intersection(node.inputs[:1] if node.operator != "Concat" else node.inputs):
            if node.operator in _MOVES:
                signs.update(node.outputs)
            elif node.operator in (*PRODUCTS, "ConvTranspose"):
                found.add(node)
    return found


class NotPackedError(Exception):
    """Why no packed operator can stand for a layer."""


def _layer(graph: OnnxGraph, node: Node) -> PackedLayer:
    given = graph.constant(node, 1)
    if given is None:
        raise NotPackedError("its weights are not constant")
    if node.operator == "Conv" and given.ndim != 4:
        raise NotPackedError(f"it is a convolution over {given.ndim - 2} axes; expected 2")
    if node.operator != "Conv" and graph.rank(node.inputs[0]) != 2:
        raise NotPackedError(f"its input has {graph.rank(node.inputs[0])} axes; expected rows of channels")
    if node.operator == "MatMul" or (node.operator == "Gemm" and not node.attributes.get("transB", 0)):
        given = given.T
    magnitudes = np.abs(given.reshape(len(given), -1))
    if given.ndim < 2 or not magnitudes.size or (magnitudes != magnitudes[:, :1]).any() or not magnitudes[:, 0].all():
        raise NotPackedError("its weights are not ± one magnitude per output")
    bias = graph.constant(node, 2)
    if node.operator == "Gemm" and (
        node.attributes.get("alpha", 1.0) != 1 or node.attributes.get("beta", 1.0) != 1 or node.attributes.get("transA")
    ):
        raise NotPackedError("it is a Gemm with alpha, beta or a transposed input")
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = None if bias is None else per_channel(bias, len(given), 2)
        if bias is None:
            raise NotPackedError("its bias is not one constant per output")
    layer = PackedLayer(
        operator="BinaryConv" if given.ndim == 4 else "BinaryGemm",
        name=name_of(graph, node),
        node=node,
        source=SignSource(node.inputs[0]),
        weight=np.where(given < 0, np.int8(-1), np.int8(1)),
        scale=np.ascontiguousarray(magnitudes[:, 0], dtype=np.float32),
        bias=np.zeros(len(given), np.float32) if bias is None else bias,
        value=node.outputs[0],
        last=node,
        nodes=[node],
        has_bias=bias is not None,
    )
    if node.operator == "Conv":
        read_geometry(layer, node)
    _read_signs(graph, layer)
    return layer


def read_geometry(layer: PackedLayer, node: Node) -> None:
    """Take group, strides, dilations and padding of a convolution."""
    attributes = node.attributes
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotPackedError(f"its padding is {attributes['auto_pad'].decode()}; expected numbers")
    layer.group = int(attributes.get("group", 1))
    layer.strides = _pair(attributes.get("strides", (1, 1)))
    layer.dilations = _pair(attributes.get("dilations", (1, 1)))
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    layer.pads = (int(top), int(left), int(bottom), int(right))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _read_signs(graph: OnnxGraph, layer: PackedLayer) -> None:
    """Walk from the layer's input to what its signs are taken of."""
    name = layer.node.inputs[0]
    pad = graph.made_by(name, "Pad") if layer.rank == 4 else None
    if pad is not None:
        _read_padding(graph, layer, pad)
        name = pad.inputs[0]
    source = signs_of(graph, name)
    if source is None:
        raise NotPackedError(f"its signs pass {_operator(graph, name)} on their way")
    if graph.rank(source) != layer.rank:
        raise NotPackedError("nothing says how many axes its input has")
    layer.source = SignSource(source)


def _operator(graph: OnnxGraph, name: str) -> str:
    node = graph.producer(name)
    return node.operator if node is not None else "nothing"


def _read_padding(graph: OnnxGraph, layer: PackedLayer, pad: Node) -> None:
    pads, value = spatial_pads(graph, pad), graph.constant(pad, 2)
    number = 0.0 if value is None else float(value.reshape(()))
    if pads is None or pad.attributes.get("mode", b"constant") != b"constant" or min(pads) < 0:
        raise NotPackedError("its padding is not one number around the image")
    if number not in (0, 1, -1):
        raise NotPackedError(f"its image is padded with {number:g}; expected 0, 1 or -1")
    if number and any(layer.pads):
        raise NotPackedError(f"its image is padded with {number:g} and then with 0")
    layer.pads = tuple(a + b for a, b in zip(layer.pads, pads, strict=True))  # type: ignore[assignment]
    layer.pad_value = int(number)
    layer.nodes.append(pad)


def spatial_pads(graph: OnnxGraph, pad: Node) -> tuple[int, int, int, int] | None:
    """Return (top, left, bottom, right) of a Pad of (N, C, H, W) that leaves N and C alone, else None."""
    pads, axes = graph.constant(pad, 1), graph.constant(pad, 3)
    if pads is None or (len(pad.inputs) > 3 and pad.inputs[3] and axes is None):
        return None
    over = [int(axis) % 4 for axis in axes] if axes is not None else list(range(4))
    before, after = [0] * 4, [0] * 4
    for position, axis in enumerate(over):
        before[axis], after[axis] = int(pads[position]), int(pads[position + len(over)])
    if any((*before[:2], *after[:2])):
        return None
    return before[2], before[3], after[2], after[3]


def _with_affine(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> SignSource:
    """Return what the layer's signs are taken of, without the factor and the summand that only signs need."""
    name, bias = _unwrapped(graph, layer, layer.source.value, "Add", claimed)
    name, scale = _unwrapped(graph, layer, name, "Mul", claimed)
    if scale is None and bias is None:
        return layer.source
    scale = np.ones(layer.channels, np.float32) if scale is None else scale
    bias = np.zeros(layer.channels, np.float32) if bias is None else bias
    return SignSource(name, scale, bias)


def _unwrapped(
    graph: OnnxGraph, layer: PackedLayer, name: str, operator: str, claimed: set[Node]
) -> tuple[str, np.ndarray | None]:
    """Return what `operator` makes `name` of with a constant per channel, and the constant; else `name` itself."""
    node = graph.made_by(name, operator)
    if node is None or node in claimed or graph.is_output(name):
        return name, None
    after_sum = name != layer.source.value  # then only that sum may read it
    if not (graph.sole_consumer(name) if after_sum else _only_signs_of(graph, name)):
        return name, None
    for operand, constant in graph.operands(node):
        found = per_channel(constant, layer.channels, layer.rank)
        if found is not None:
            return operand, found
    return name, None


def _only_signs_of(graph: OnnxGraph, name: str) -> bool:
    return all(_not_negative(graph, node.outputs[0]) is not None for node in graph.consumers(name))


def _is_binary(layer: PackedLayer) -> bool:
    return layer.is_binary


def _take_what_follows(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> None:
    """Extend the layer over the operations behind it; of two layers that are added, only one has the addition."""
    for take in (_take_scale, _take_bias, _take_slope, _take_residual, _take_slope_after):
        nodes = take(graph, layer, claimed)
        if nodes:
            claimed.update(nodes)
            layer.nodes += nodes
            layer.last, layer.value = nodes[-1], nodes[-1].outputs[0]


def _take_scale(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> list[Node]:
    node, factor = _with_constant(graph, layer, "Mul", claimed)
    if node is None or factor is None or layer.has_bias:
        return []
    layer.scale = layer.scale * factor
    return [node]


def _take_bias(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> list[Node]:
    node, summand = _with_constant(graph, layer, "Add", claimed)
    if node is None or summand is None or layer.has_bias:
        return []
    layer.bias = summand
    return [node]


def _with_constant(
    graph: OnnxGraph, layer: PackedLayer, operator: str, claimed: set[Node]
) -> tuple[Node | None, np.ndarray | None]:
    node = graph.sole_consumer(layer.value)
    if node is None or node.operator != operator or node in claimed:
        return None, None
    constants = [constant for _, constant in graph.operands(node)]
    return node, per_channel(constants[0], layer.outputs, layer.rank) if constants else None


def _take_slope(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> list[Node]:
    layer.slope, nodes = _activation(graph, layer)
    return nodes


def _take_residual(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> list[Node]:
    node = graph.sole_consumer(layer.value)
    if node is None or node.operator != "Add" or node in claimed:
        return []
    other = node.inputs[1] if node.inputs[0] == layer.value else node.inputs[0]
    shape, added = graph.shape(layer.value), graph.shape(other)
    if other == layer.value or other in graph.constants or shape is None or added is None:
        return []
    alike = len(shape) == len(added) and shape[1:] == added[1:] and None not in shape[1:]
    if not alike or (isinstance(added[0], int) and added[0] != shape[0]):
        return []
    layer.residual = other
    return [node]


def _take_slope_after(graph: OnnxGraph, layer: PackedLayer, claimed: set[Node]) -> list[Node]:
    layer.slope_after, nodes = _activation(graph, layer)
    return nodes


def _activation(graph: OnnxGraph, layer: PackedLayer) -> tuple[np.ndarray | None, list[Node]]:
    """Return the slopes of `y < 0 ? y * slope : y`, in whatever way it is written, and its nodes; the last one last."""
    node = graph.sole_consumer(layer.value)
    if node is None:
        return _chosen_activation(graph, layer)
    slope: np.ndarray | None = None
    if node.operator == "Relu":
        slope = np.zeros(layer.outputs, np.float32)
    elif node.operator == "LeakyRelu":
        slope = np.full(layer.outputs, node.attributes.get("alpha", 0.01), np.float32)
    elif node.operator == "PRelu" and node.inputs[0] == layer.value and node.inputs[1] in graph.constants:
        slope = per_channel(graph.constants[node.inputs[1]], layer.outputs, layer.rank)
    return (None, []) if slope is None else (slope, [node])


def _chosen_activation(graph: OnnxGraph, layer: PackedLayer) -> tuple[np.ndarray | None, list[Node]]:
    """The same for `Where(y >= 0, y, y * slope)` and its like."""
    nodes = {node.operator: node for node in graph.consumers(layer.value)}
    compare = next((nodes[each] for each in _COMPARISONS if each in nodes), None)
    choose, product = nodes.get("Where"), nodes.get("Mul")
    if len(nodes) != 3 or compare is None or choose is None or product is None or graph.is_output(layer.value):
        return None, []
    if any(graph.sole_consumer(each.outputs[0]) is not choose for each in (compare, product)):
        return None, []
    zero_is_second = compare.inputs[0] == layer.value
    if not _is(graph, compare.inputs[1 if zero_is_second else 0], 0) or choose.inputs[0] != compare.outputs[0]:
        return None, []
    positive_first = compare.operator.startswith("Greater") == zero_is_second
    if choose.inputs[1:] != [layer.value, product.outputs[0]][:: 1 if positive_first else -1]:
        return None, []
    slopes = [per_channel(constant, layer.outputs, layer.rank) for _, constant in graph.operands(product)]
    return (slopes[0], [compare, product, choose]) if slopes and slopes[0] is not None else (None, [])
