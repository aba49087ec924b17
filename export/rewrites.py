"""Rewrites of a graph that spare work and change no bit of its results."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from export.binary_layers import per_channel, products_of_signs
from export.onnx_graph import Node, OnnxGraph


def pool_before_affine(graph: OnnxGraph, *, but: Collection[Node] = ()) -> None:
    """Put max pools before the batch norm and the activation of the real convolution in front of them.

    Rounding never turns an order around, so `max(x) * a + b` is `max(x * a + b)` to the bit where `a` is not negative.
    Where it is, the convolution gives -x, just as exactly, and the factor is -a. It is a quarter of the work, and the
    pool then stands between the convolution and a factor that an engine could fold into its weights. but: convolutions
    after which nothing is moved.
    """
    binary = products_of_signs(graph)
    for pool in [node for node in graph.nodes if node.operator == "MaxPool"]:
        chain = _chain_before(graph, pool)
        if chain and chain[0] not in binary and chain[0] not in but:
            _move(graph, chain, pool)


def _chain_before(graph: OnnxGraph, pool: Node) -> list[Node]:
    """Return convolution, factor, summand and activations in front of `pool`; nothing where there is another order."""
    chain: list[Node] = []
    name = pool.inputs[0]
    while True:
        node = graph.producer(name)
        if node is None or graph.sole_consumer(name) is None:
            return []
        chain.insert(0, node)
        if node.operator == "Conv":
            names = [each for each in node.inputs[1:] if each]
            constant = all(each in graph.constants for each in names)
            return chain if constant and len(chain) > 1 else []
        if not _keeps_order(graph, node, sum(each.operator == "Mul" for each in chain)):
            return []
        name = node.inputs[0] if node.inputs[0] not in graph.constants else node.inputs[1]


def _keeps_order(graph: OnnxGraph, node: Node, factors: int) -> bool:
    if node.operator == "PRelu":
        slope = graph.constants.get(node.inputs[1])
        return slope is not None and bool((slope >= 0).all())
    if node.operator == "LeakyRelu":
        return bool(node.attributes.get("alpha", 0.01) >= 0)
    if node.operator == "Mul" and factors > 1:
        return False
    if node.operator in ("Mul", "Add"):
        channels = (graph.shape(node.outputs[0]) or (0, 0))[1]
        constants = [constant for _, constant in graph.operands(node)]
        return bool(constants) and isinstance(channels, int) and per_channel(constants[0], channels, 4) is not None
    return node.operator == "Relu"


def _move(graph: OnnxGraph, chain: list[Node], pool: Node) -> None:
    convolution, *rest = chain
    for node in rest:
        if node.operator == "Mul":
            _make_factor_positive(graph, convolution, node)
    pooled_input, pooled_output = pool.inputs[0], pool.outputs[0]
    first = rest[0]
    from_convolution = convolution.outputs[0]
    shape = graph.shapes.get(pooled_output)
    pool.inputs[0], pool.outputs[0] = from_convolution, f"{from_convolution}_pooled"
    first.inputs = [pool.outputs[0] if name == from_convolution else name for name in first.inputs]
    rest[-1].outputs[0] = pooled_output
    graph.shapes.pop(pooled_input, None)
    for name in (pool.outputs[0], *(node.outputs[0] for node in rest)):
        if shape is not None:
            graph.shapes[name] = shape
    graph.nodes.remove(pool)
    graph.nodes.insert(graph.nodes.index(convolution) + 1, pool)
    graph.index()


def _make_factor_positive(graph: OnnxGraph, convolution: Node, factor: Node) -> None:
    position = 0 if factor.inputs[0] in graph.constants else 1
    values = graph.constants[factor.inputs[position]]
    weight = graph.constants[convolution.inputs[1]]
    signs = np.where(np.broadcast_to(values.reshape(-1), (len(weight),)) < 0, -1, 1).astype(np.float32)
    if (signs > 0).all():
        return
    for place in range(1, len(convolution.inputs)):
        old = graph.constants[convolution.inputs[place]]
        _replace(graph, convolution, place, old * signs.reshape(-1, *(1,) * (old.ndim - 1)))
    _replace(graph, factor, position, np.abs(values))


def _replace(graph: OnnxGraph, node: Node, position: int, value: np.ndarray) -> None:
    """Give `node` a constant of its own; others may read the old one."""
    name = node.inputs[position]
    if len(graph.consumers(name)) > 1:
        name = f"{name}_{node.outputs[0]}"
    graph.constants[name] = value
    node.inputs[position] = name


def merge_slices(graph: OnnxGraph) -> None:
    """Cut once where a graph cuts along one axis and then along another: nothing is copied that is cut away."""
    for node in [node for node in graph.nodes if node.operator == "Slice"]:
        before = graph.made_by(node.inputs[0], "Slice")
        if before is None or graph.is_output(before.outputs[0]):
            continue
        if any(each.operator != "Slice" for each in graph.consumers(before.outputs[0])):
            continue
        bounds, inner = _bounds(graph, before), _bounds(graph, node)
        if bounds is None or inner is None or set(bounds[2]) & set(inner[2]):
            continue
        names = [f"{node.outputs[0]}_{part}" for part in ("starts", "ends", "axes", "steps")]
        graph.constants.update(zip(names, map(np.concatenate, zip(bounds, inner, strict=True)), strict=True))
        node.inputs = [before.inputs[0], *names]
    graph.index()


def _bounds(graph: OnnxGraph, node: Node) -> tuple[np.ndarray, ...] | None:
    """Return starts, ends, axes and steps of a Slice whose axes count from the front; None where one is unknown."""
    starts, ends, axes, steps = (graph.constant(node, place) for place in range(1, 5))
    absent = [place for place in (3, 4) if len(node.inputs) <= place or not node.inputs[place]]
    if (
        starts is None
        or ends is None
        or any(each is None and place not in absent for place, each in ((3, axes), (4, steps)))
    ):
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts)) if steps is None else steps
    bounds = tuple(each.astype(np.int64) for each in (starts, ends, axes, steps))
    return bounds if (bounds[2] >= 0).all() else None
