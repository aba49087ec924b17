"""The scaling of pixels in front of a first convolution, as a convolution of 8-bit numbers itself.

Pixels are 8-bit numbers already. What scales them, factor × pixel + shift of their channel, is a convolution of 1×1
whose weights are 127 steps of that factor, so nothing is lost by it. It gives channels of zeros in addition, up to a
multiple of 4, for which ONNX Runtime has a faster kernel: scaling and a first convolution of 3×3 to 16 channels on
32×32×3 take 31 µs, with the scaling in float 63 µs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from export.int8_layers import Layer
from export.onnx_graph import Node, OnnxGraph

_CHANNELS = 4  # that the kernel wants a multiple of
_CHANNELS_FIRST = [0, 3, 1, 2]


@dataclass(frozen=True, eq=False)
class Pixels:
    """What is between uint8 images (N, H, W, C) and a layer.

    name: of the scaled images (N, C, H, W), which the layer alone reads. image: of what is scaled. nodes: what does it.
    factor, shift (C,): scaled = factor × pixel + shift.
    """

    name: str
    image: str
    nodes: Collection[Node]
    factor: np.ndarray
    shift: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """(channels to be read, C, 1, 1)."""
        made = np.zeros((self.channels, len(self.factor), 1, 1), np.float32)
        made[range(len(self.factor)), range(len(self.factor)), 0, 0] = self.factor
        return made

    @property
    def bias(self) -> np.ndarray:
        """(channels to be read,)."""
        return np.pad(self.shift, (0, self.channels - len(self.shift))).astype(np.float32)

    @property
    def channels(self) -> int:
        """Channels that the layer is given, the added ones included."""
        return -(-len(self.factor) // _CHANNELS) * _CHANNELS

    def widened(self, weight: np.ndarray) -> np.ndarray:
        """Return the layer's weight (O, C, h, w) with zeros for the added channels."""
        return np.pad(weight, ((0, 0), (0, self.channels - weight.shape[1]), (0, 0), (0, 0)))


def pixels_of(graph: OnnxGraph, layers: Collection[Layer]) -> Pixels | None:
    """Return the scaled pixels that one of `layers` reads; None where there are none of the known form."""
    (image,) = graph.inputs
    for layer in layers:
        reader = graph.sole_consumer(layer.activation)
        if reader is layer.node and reader.operator == "Conv" and reader.attributes.get("group", 1) == 1:
            found = _scaling(graph, layer.activation, channels=layer.weight.shape[1])
            if found and found.image == image.name and image.type.tensor_type.elem_type == TensorProto.UINT8:
                return found
    return None


def _scaling(graph: OnnxGraph, name: str, *, channels: int) -> Pixels | None:
    """Walk from the scaled images to the pixels: additions and products, the transposition, the cast."""
    factor, shift = np.ones(channels), np.zeros(channels)
    nodes: set[Node] = set()
    source = name
    while (node := graph.made_by(source, "Add", "Mul")) is not None:
        operand = next(graph.operands(node), None)
        if operand is None or (source != name and graph.sole_consumer(source) is None):
            return None
        source, constant = operand
        by_channel = _by_channel(constant, channels)
        if by_channel is None:
            return None
        if node.operator == "Add":
            shift = shift + factor * by_channel
        else:
            factor = factor * by_channel
        nodes.add(node)
    transpose = graph.made_by(source, "Transpose")
    cast = graph.made_by(transpose.inputs[0], "Cast") if transpose else None
    if transpose is None or cast is None or list(transpose.attributes.get("perm", [])) != _CHANNELS_FIRST:
        return None
    alone = all(graph.sole_consumer(each) is not None for each in (*transpose.outputs, *cast.outputs, *cast.inputs))
    if not nodes or not alone or not factor.all():
        return None
    return Pixels(name, cast.inputs[0], {*nodes, transpose, cast}, factor.astype(np.float32), shift.astype(np.float32))


def _by_channel(constant: np.ndarray, channels: int) -> np.ndarray | None:
    """Return a constant that is the same over rows and pixels as one number a channel."""
    shape = (1,) * (4 - constant.ndim) + constant.shape
    if shape[:1] + shape[2:] != (1, 1, 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(constant.reshape(shape[1]), channels).astype(np.float64)
