"""A graph with layers in INT8 as engines on a CPU want it: 8-bit numbers go in and come out of whole blocks.

ONNX Runtime computes a convolution on 8-bit numbers only where its output is quantised too, and on x86 only where
activations are unsigned: it makes signed ones unsigned, but not those that two nodes read. And it drops a ReLU only in
front of a zero point that is the smallest number, which the 0 of signed numbers is not. So:

- Tensors that cannot be negative are UINT8 from 0 on, with 255 steps; others UINT8 around 128. Weights are INT8 around
  zero, a scale for each output channel; biases INT32, in steps of the sums that they are added to.
- Outputs of convolutions are quantised, behind the ReLU or ReLU6 that follows. Additions, concatenations, pools, moves
  and batch norms that read such tensors alone give such tensors; what only moves numbers keeps their scale.
- A batch norm that no convolution took up is a convolution of 1×1, a channel by itself, each weight exactly 127 steps.
- Pixels are scaled by a convolution (`export.int8_pixels`).
- A mean over the image is written as GlobalAveragePool, the form of it that has 8-bit kernels.

TensorRT reads UINT8 as INT8 (`export.to_int8.require_signed`); for it is the signed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from export.calibration import LEVELS
from export.int8_layers import Layer, channel_scales, quantized, step_of
from export.int8_pixels import Pixels, pixels_of
from export.int8_tensors import Tensors, never_negative, source_of
from export.onnx_graph import Node, OnnxGraph, model_from_parts

UNSIGNED_LEVELS = 255

_LARGEST_BIAS = 2.0**30  # of INT32, with room for the sum that is added to it


def levels_of(graph: OnnxGraph, layers: Sequence[Layer]) -> dict[str, int]:
    """Return how many steps from zero there are in each tensor whose range `cpu_int8` wants to know."""
    positive = never_negative(graph)
    tensors = Tensors(graph, layers)
    names = {source_of(graph, name) for name in tensors.made | tensors.read}
    return {name: _levels(name in positive) for name in sorted(names)}


def cpu_int8(
    graph: OnnxGraph, layers: Sequence[Layer], reaches: Mapping[str, float], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the model with `layers` in INT8. reaches: how far each tensor of `levels_of` goes from zero."""
    writer = _Writer(graph, layers, reaches)
    for node in graph.nodes:
        writer.write(node)
    return model_from_parts(graph.model, writer.nodes, writer.constants, shapes={}, opsets={}, metadata=metadata)


class _Writer:
    """Writes the nodes of a graph anew, with 8-bit numbers in between."""

    def __init__(self, graph: OnnxGraph, layers: Sequence[Layer], reaches: Mapping[str, float]) -> None:
        self.graph = graph
        self.tensors = Tensors(graph, layers)
        self.pixels = pixels_of(graph, layers)
        self.reaches = reaches
        self.positive = never_negative(graph)
        self.constants = dict(graph.constants)
        self.constants["uint8.low"] = np.array(0, np.uint8)
        self.constants["uint8.middle"] = np.array(128, np.uint8)
        self.nodes: list[Node] = []
        self._dequantized: dict[str, str] = {}

    def write(self, node: Node) -> None:
        if self.pixels and node in self.pixels.nodes:
            if self.pixels.name in node.outputs:
                self._write_pixels(self.pixels)
            return
        layer = self.tensors.layers.get(node)
        inputs = [self._read(name, layer) for name in node.inputs]
        if layer is not None:
            bias, weight = self.graph.constant(node, 2), layer.weight
            if self.pixels and layer.activation == self.pixels.name:
                weight = self.pixels.widened(weight)
            step = self._step(layer.activation)
            inputs = [inputs[0], *self._weights(layer.name, weight, layer.axis, bias, step=step)]
            self.nodes.append(Node(node.operator, inputs, node.outputs, dict(layer.attributes)))
        elif self.tensors.is_norm(node):
            self._write_norm(node, inputs[0])
        elif self.tensors.is_mean(node):
            self._write_mean(node, inputs[0])
        else:
            self.nodes.append(Node(node.operator, inputs, node.outputs, node.attributes, node.domain))
        for name in node.outputs:
            if name in self.tensors.made:
                self._quantise(name)

    def _read(self, name: str, layer: Layer | None) -> str:
        if layer is not None and name == layer.activation and name not in self._dequantized:
            self._quantise(name)
        if name in self.tensors.made or (layer is not None and name == layer.activation):
            return self._dequantized[name]
        return name

    def _quantise(self, name: str) -> None:
        scale, point = self._scale(name)
        self._dequantized[name] = f"{name}.dequantized"
        self.nodes.append(Node("QuantizeLinear", [name, scale, point], [f"{name}.uint8"]))
        self.nodes.append(Node("DequantizeLinear", [f"{name}.uint8", scale, point], [self._dequantized[name]]))

    def _scale(self, name: str) -> tuple[str, str]:
        """Return the constants that are the scale and the zero point of a tensor."""
        source = source_of(self.graph, name)
        scale = f"{source}.scale"
        positive = source in self.positive
        if scale not in self.constants:
            levels = _levels(positive)
            step = np.float32(step_of(self.reaches[source], levels))
            limit = _limit(self.graph, source)
            if limit is not None and step * levels > limit:  # by rounding, and then ONNX Runtime keeps the Clip
                step = np.nextafter(step, np.float32(0))
            self.constants[scale] = np.array(step, np.float32)
        return scale, "uint8.low" if positive else "uint8.middle"

    def _step(self, name: str) -> float:
        return float(self.constants[self._scale(name)[0]])

    def _weights(
        self, name: str, weight: np.ndarray, axis: int, bias: np.ndarray | None, *, step: float
    ) -> Iterator[str]:
        """Write weights and bias of a product that reads numbers of `step`; yield what stands for them."""
        scales = channel_scales(weight, axis)
        if bias is not None:
            # Weights that are next to nothing beside their bias take longer steps, or it would not fit.
            scales = np.maximum(scales, (np.abs(bias) / (step * _LARGEST_BIAS)).astype(np.float32))
        yield self._constant(f"{name}.weight", quantized(weight, scales, axis), scales, axis)
        if bias is not None:
            sums = (scales.astype(np.float64) * step).astype(np.float32)
            whole = np.rint(bias.astype(np.float64) / sums).astype(np.int32)
            yield self._constant(f"{name}.bias", whole, sums, 0)

    def _constant(self, name: str, whole: np.ndarray, scales: np.ndarray, axis: int) -> str:
        parts = {f"{name}.whole": whole, f"{name}.scales": scales, f"{name}.zeros": np.zeros(len(scales), whole.dtype)}
        self.constants.update(parts)
        self.nodes.append(Node("DequantizeLinear", list(parts), [f"{name}.dequantized"], {"axis": axis}))
        return f"{name}.dequantized"

    def _write_pixels(self, pixels: Pixels) -> None:
        """Write the images as 8-bit numbers with steps of 1, which they are, and scale these."""
        name = f"{pixels.name}.pixels"
        self.constants[f"{name}.scale"] = np.array(1, np.float32)
        points = [f"{name}.scale", "uint8.low"]
        first, moved = f"{name}.first", f"{name}.moved"
        self.nodes.append(Node("DequantizeLinear", [pixels.image, *points], [first]))
        self.nodes.append(Node("Transpose", [first], [moved], {"perm": [0, 3, 1, 2]}))
        self.nodes.append(Node("QuantizeLinear", [moved, *points], [f"{moved}.uint8"]))
        self.nodes.append(Node("DequantizeLinear", [f"{moved}.uint8", *points], [name]))
        parts = self._weights(name, pixels.weight, 0, pixels.bias, step=1.0)
        self.nodes.append(Node("Conv", [name, *parts], [pixels.name], {"kernel_shape": [1, 1]}))
        self._quantise(pixels.name)

    def _write_norm(self, node: Node, given: str) -> None:
        scale, bias, mean, variance = (self.graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
        factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        weight = factor.astype(np.float32).reshape(-1, 1, 1, 1)
        shift = (bias - mean * factor).astype(np.float32)
        parts = self._weights(node.outputs[0], weight, 0, shift, step=self._step(node.inputs[0]))
        attributes = {"group": len(factor), "kernel_shape": [1, 1]}
        self.nodes.append(Node("Conv", [given, *parts], node.outputs[:1], attributes))

    def _write_mean(self, node: Node, given: str) -> None:
        (name,) = node.outputs
        if node.attributes.get("keepdims", 1):
            self.nodes.append(Node("GlobalAveragePool", [given], [name]))
            return
        pooled, (scale, point) = f"{name}.pooled", self._scale(name)
        self.constants["height and width"] = np.array([2, 3], np.int64)
        self.nodes.append(Node("GlobalAveragePool", [given], [pooled]))
        self.nodes.append(Node("QuantizeLinear", [pooled, scale, point], [f"{pooled}.uint8"]))
        self.nodes.append(Node("DequantizeLinear", [f"{pooled}.uint8", scale, point], [f"{pooled}.dequantized"]))
        self.nodes.append(Node("Squeeze", [f"{pooled}.dequantized", "height and width"], [name]))


def _levels(positive: bool) -> int:
    return UNSIGNED_LEVELS if positive else LEVELS


def _limit(graph: OnnxGraph, name: str) -> np.ndarray | None:
    """Return the largest number of a tensor that a Clip made."""
    node = graph.made_by(name, "Clip")
    return None if node is None else graph.constant(node, 2)
