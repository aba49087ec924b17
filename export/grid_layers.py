"""Finds the real convolutions of a simulated graph whose input and weights lie on grids of powers of two.

Such a convolution reads `Mul(1 / step) → Clip(±levels) → Round → Mul(step)` with a power of two as the step, and its
weights are an output's power of two times -127 to 127, so its sums are integers times a power of two, and exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from export.binary_layers import BinaryLayer, SignSource, name_of, read_convolution
from export.onnx_graph import Node, OnnxGraph

EXACT = 1 << 24  # integers up to here are exact in float32
MOST_LEVELS = 127


@dataclass(eq=False)
class GridLayer(BinaryLayer):
    """A layer whose weight is int8 (outputs, C/G, height, width), with the steps of weights and input in `scale`.

    source.value: the real input, which is multiplied by `input_scale`, clipped to ±`levels` and rounded.
    """

    input_scale: float = 1.0
    levels: int = 1

    @property
    def operator(self) -> str:
        return "FixedConv"


def grid_layer(graph: OnnxGraph, node: Node) -> GridLayer | None:
    """Return the convolution `node` as a layer on a grid, or None where it is none."""
    weight = graph.constant(node, 1)
    if node.operator != "Conv" or weight is None or weight.ndim != 4 or weight.dtype != np.float32:
        return None
    if len(node.inputs) > 2 and node.inputs[2]:
        return None
    steps, snapped = steps_of(weight), _snapped(graph, node.inputs[0])
    if steps is None or snapped is None or node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    x, input_scale, levels, nodes = snapped
    whole = np.rint(weight / steps).astype(np.int8)
    if np.abs(whole.astype(np.int64)).reshape(len(whole), -1).sum(1).max() * levels >= EXACT:
        return None
    layer = GridLayer(
        name=name_of(graph, node),
        node=node,
        source=SignSource(x),
        weight=whole,
        scale=(steps.reshape(-1) / np.float32(input_scale)).astype(np.float32),
        bias=np.zeros(len(whole), np.float32),
        value=node.outputs[0],
        last=node,
        nodes=[node, *nodes],
        input_scale=input_scale,
        levels=levels,
    )
    read_convolution(layer, node)
    return layer


def steps_of(weight: np.ndarray) -> np.ndarray | None:
    """Return powers of two, one per output, of which `weight` holds multiples from -127 to 127; None where there are
    none.

    weight: (outputs, ...), or a matrix (inputs, outputs). The result is broadcast with it.
    """
    axes = (0,) if weight.ndim == 2 else tuple(range(1, weight.ndim))
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    exponents = np.frexp(np.where(largest > 0, largest, 1))[1] - 7  # largest / step is from 64 to 127
    steps = np.ldexp(np.float32(1), exponents).astype(np.float32)
    whole = weight / steps
    return steps if (np.rint(whole) == whole).all() and np.abs(whole).max() <= MOST_LEVELS else None


def _snapped(graph: OnnxGraph, name: str) -> tuple[str, float, int, list[Node]] | None:
    """Return x, 1 / step, levels and the nodes where `name` is x on a grid that only one convolution reads."""
    back = graph.made_by(name, "Mul")
    step = _factor(graph, back)
    if back is None or step is None:
        return None
    rounded = graph.made_by(step[0], "Round")
    clipped = graph.made_by(rounded.inputs[0], "Clip") if rounded is not None else None
    scaled = graph.made_by(clipped.inputs[0], "Mul") if clipped is not None else None
    scale = _factor(graph, scaled)
    if rounded is None or clipped is None or scaled is None or scale is None or scale[1] * step[1] != 1:
        return None
    bounds = [graph.constant(clipped, place) for place in (1, 2)]
    if any(each is None or each.size != 1 for each in bounds):
        return None
    low, high = (float(each.reshape(())) for each in bounds if each is not None)
    nodes = [scaled, clipped, rounded, back]
    alone = all(graph.sole_consumer(each.outputs[0]) is not None for each in nodes)
    if not alone or low != -high or high != int(high) or not 1 <= high <= np.iinfo(np.int16).max:
        return None
    return scale[0], scale[1], int(high), nodes


def _factor(graph: OnnxGraph, node: Node | None) -> tuple[str, float] | None:
    """Return value and factor of a product with one positive power of two."""
    for value, constant in graph.operands(node) if node is not None else ():
        factor = float(constant.reshape(())) if constant.size == 1 else 0.0
        if factor > 0 and math.frexp(factor)[0] == 0.5:
            return value, factor
    return None
