"""The products of a graph that can be written in INT8, and their weights as 8-bit numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.calibration import LEVELS
from export.onnx_graph import Node, OnnxGraph


@dataclass(frozen=True, eq=False)
class Layer:
    """A product with constant weights. `axis`: of its output channels, in `weight` as it is written."""

    name: str
    node: Node
    weight: np.ndarray
    axis: int

    @property
    def activation(self) -> str:
        """The tensor that it reads."""
        return self.node.inputs[0]

    @property
    def attributes(self) -> dict[str, object]:
        """Those of its node with `weight` in the place of the one that it had."""
        return {**self.node.attributes, "transB": 1} if self.node.operator == "Gemm" else self.node.attributes


def layers_of(graph: OnnxGraph) -> list[Layer]:
    """Return the products with constant weights, in the order of the graph."""
    layers: list[Layer] = []
    names: set[str] = set()
    for node in graph.nodes:
        if node.operator not in ("Conv", "Gemm", "MatMul") or node.inputs[0] in graph.constants:
            continue
        weight = graph.constant(node, 1)
        if weight is None or weight.ndim < 2 or weight.dtype != np.float32 or node.attributes.get("transA"):
            continue
        axis = 0
        if node.operator == "Gemm" and not node.attributes.get("transB"):
            weight = np.ascontiguousarray(weight.T)
        if node.operator == "MatMul":
            axis = weight.ndim - 1
        name = node.inputs[1].removeprefix("student.").removesuffix(".weight")
        if name in names:  # weights that two layers share
            name = f"{name} ({node.outputs[0]})"
        names.add(name)
        layers.append(Layer(name, node, weight, axis))
    return layers


def channel_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return the scale of each channel of `weight` along `axis`, float32: its largest magnitude over 127."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    return np.array([step_of(reach) for reach in np.abs(weight).max(axis=others)], np.float32)


def quantized(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Return `weight` as INT8 with a scale for each channel along `axis`."""
    shape = [-1 if each == axis else 1 for each in range(weight.ndim)]
    return np.clip(np.rint(weight / scales.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)


def step_of(reach: float, levels: int = LEVELS) -> float:
    """Return the step of `levels` steps up to `reach`. A dead tensor has 1: TensorRT refuses a scale of 0."""
    step = reach / levels
    return float(step) if step >= np.finfo(np.float32).tiny else 1.0
