"""Real layers with packed operators between binary ones: convolutions on grids of powers of two, and poolings.

Such a convolution is `Conv(round(clip(x / step)) * step, W)` where each output's weights are whole numbers of a power
of two. Its sums are exact, so they are those of `FixedConv` whatever the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.binary_layers import NotPackedError, PackedLayer, SignSource, name_of, per_channel, read_geometry
from export.onnx_graph import Node, OnnxGraph

_EXACT = 1 << 24  # whole numbers below it are exact in float32
_MOST_LEVELS = 32767


def find_grid_layers(graph: OnnxGraph) -> list[PackedLayer]:
    """Return the convolutions of `graph` whose inputs and weights lie on grids, in its order."""
    found = []
    for node in graph.nodes:
        layer = _layer(graph, node) if node.operator == "Conv" and node.inputs[1] in graph.constants else None
        if layer is not None:
            try:
                read_geometry(layer, node)
            except NotPackedError:
                continue
            found.append(layer)
    return found


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
    return steps if (np.rint(whole) == whole).all() and np.abs(whole).max() <= 127 else None


def find_mean_pools(graph: OnnxGraph) -> Mapping[Node, str]:
    """Return what is averaged in windows of 2×2, by the last node of `(a + b + c + d) * 0.25` in reading order."""
    found = {}
    for node in graph.nodes:
        pooled = _averaged(graph, node) if node.operator == "Mul" else None
        if pooled is not None:
            found[node] = pooled
    return found


def pool_form(graph: OnnxGraph, node: Node) -> dict[str, Any] | None:
    """Return the attributes of the `Pool` that a pooling of (N, C, H, W) is, None where it is another operation."""
    if node.operator not in ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"):
        return None
    if graph.rank(node.inputs[0]) != 4 or len([name for name in node.outputs if name]) != 1:
        return None
    if node.operator == "GlobalAveragePool" or (node.operator == "ReduceMean" and _over_image(graph, node)):
        return {"mode": "mean", "kernel_shape": (0, 0)}
    attributes = node.attributes
    pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
    plain = not attributes.get("ceil_mode", 0) and set(attributes.get("dilations", (1,))) == {1}
    if node.operator == "ReduceMean" or not plain or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    if node.operator == "AveragePool" and any(pads):
        return None
    kernel = tuple(attributes["kernel_shape"])
    mode = "max" if node.operator == "MaxPool" else "mean"
    strides = tuple(attributes.get("strides", (1, 1)))
    return {"mode": mode, "kernel_shape": kernel, "strides": strides, "pads": pads}


def _over_image(graph: OnnxGraph, node: Node) -> bool:
    axes = graph.constant(node, 1)
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]


def _layer(graph: OnnxGraph, node: Node) -> PackedLayer | None:
    weight = graph.constants[node.inputs[1]]
    steps = steps_of(weight) if weight.ndim == 4 and weight.dtype == np.float32 else None
    snapped = _snapped(graph, node.inputs[0])
    if steps is None or snapped is None or graph.rank(node.inputs[0]) != 4:
        return None
    value, input_scale, levels, step, before = snapped
    whole = np.rint(weight / steps).astype(np.int8)
    most = int(np.abs(whole.astype(np.int64)).reshape(len(whole), -1).sum(1).max()) * levels
    bias = graph.constant(node, 2)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = None if bias is None else per_channel(bias.reshape(1, -1), len(weight), 2)
        if bias is None:
            return None
    if most >= _EXACT:
        return None
    return PackedLayer(
        operator="FixedConv",
        name=name_of(graph, node),
        node=node,
        source=SignSource(value),
        weight=whole,
        scale=(steps.reshape(-1) * np.float32(step)).astype(np.float32),
        bias=np.zeros(len(weight), np.float32) if bias is None else bias,
        value=node.outputs[0],
        last=node,
        nodes=[node],
        has_bias=bias is not None,
        input_scale=input_scale,
        levels=levels,
        before=before,
    )


def _snapped(graph: OnnxGraph, name: str) -> tuple[str, float, int, float, tuple[Node, ...]] | None:
    """Return x, factor, levels, step and the nodes where `name` is round(clip(x * factor, -levels, levels)) * step.

    None where it is something else.
    """
    last = graph.producer(name)
    name, step = _scaled(graph, name)
    first = graph.made_by(name, "Round", "Clip")
    second = graph.made_by(first.inputs[0], "Round", "Clip") if first is not None else None
    if first is None or second is None or first.operator == second.operator:
        return None
    clip = first if first.operator == "Clip" else second
    bounds = [graph.constant(clip, place) for place in (1, 2)]
    if any(each is None for each in bounds):
        return None
    low, high = (float(each.reshape(())) for each in bounds if each is not None)
    if low != -high or high != int(high) or not 1 <= high <= _MOST_LEVELS:
        return None
    begin = graph.producer(second.inputs[0])
    value, factor = _scaled(graph, second.inputs[0])
    scaled = begin if begin is not None and value != second.inputs[0] else None
    return value, factor, int(high), step, tuple(each for each in (scaled, second, first, last) if each is not None)


def _scaled(graph: OnnxGraph, name: str) -> tuple[str, float]:
    """Return x and a power of two where `name` is their product, else `name` and 1."""
    node = graph.made_by(name, "Mul", "Div")
    if node is None:
        return name, 1.0
    for operand, constant in graph.operands(node):
        factor = float(constant.reshape(-1)[0]) if constant.size == 1 else 0.0
        if factor > 0 and np.frexp(factor)[0] == 0.5 and (node.operator == "Mul" or operand == node.inputs[0]):
            return operand, factor if node.operator == "Mul" else 1 / factor
    return name, 1.0


def _averaged(graph: OnnxGraph, node: Node) -> str | None:
    total = next((name for name, constant in graph.operands(node) if constant.size == 1 and constant == 0.25), None)
    parts: list[str] = []
    while total is not None and len(parts) < 3:
        addition = graph.made_by(total, "Add")
        if addition is None:
            return None
        total, part = addition.inputs
        parts.insert(0, part)
    slices = [graph.made_by(name, "Slice") for name in (total or "", *parts)]
    sources = {each.inputs[0] for each in slices if each is not None}
    if None in slices or len(sources) != 1:
        return None
    (source,) = sources
    corners = [_corner(graph, each) for each in slices if each is not None]
    shape = graph.shape(source) or ()
    even = len(shape) == 4 and all(isinstance(size, int) and size % 2 == 0 for size in shape[2:])
    return source if even and corners == [(0, 0), (0, 1), (1, 0), (1, 1)] else None


def _corner(graph: OnnxGraph, node: Node) -> tuple[int, ...] | None:
    """Return (row, column) where a Slice takes every second pixel from there on, else None."""
    starts, ends, axes, steps = (graph.constant(node, place) for place in range(1, 5))
    shape = graph.shape(node.inputs[0]) or ()
    if starts is None or ends is None or axes is None or steps is None or sorted(axes.tolist()) != [2, 3]:
        return None
    sizes = [shape[axis] for axis in axes.tolist()]
    whole = all(isinstance(size, int) and end >= size for size, end in zip(sizes, ends.tolist(), strict=True))
    if not whole or steps.tolist() != [2, 2]:
        return None
    return tuple(int(start) for _, start in sorted(zip(axes.tolist(), starts.tolist(), strict=True)))
