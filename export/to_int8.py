"""An ONNX model in INT8, quantised after training, in one of two forms.

`signed` is the one that every TensorRT reads, numbers around zero: each quantised layer reads QuantizeLinear →
DequantizeLinear of its activations, one scale for the tensor, and DequantizeLinear of its weights, a scale for each
output channel; zero points are 0 and biases stay float. `cpu` is the one that CPUs compute fast (`export.int8_cpu`).

Only products with constant weights are quantised, and in `cpu` what joins them, so scaling before them and the fold
behind them are float32. `export.to_onnx` has batch norms behind convolutions folded already.

Where the gate fails on rows that were not calibrated with, layers go back to float, those that do most damage first.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx

from export.calibration import LEVELS, METHODS, Magnitudes, magnitudes_of, outputs_of
from export.int8_cpu import cpu_int8, levels_of
from export.int8_layers import Layer, channel_scales, layers_of, quantized, step_of
from export.onnx_graph import Node, OnnxGraph, model_from_parts
from export.parity import Comparison, Gate, compare
from runtime.errors import ExportError

# What the gate allows is cut by this where layers are chosen: other rows go a little further than the ones at hand.
MARGIN = 0.8
KEY = "edgefold.int8"  # among the metadata of a model
# The bias of a convolution without one whose outputs are added to others: OpenVINO (2025.1 to 2026.4) computes the sum
# of two such convolutions in INT8 wrongly. Too small to change a sum, and not 0, which an engine would leave out.
NO_BIAS = 1e-30

_SENSITIVITY_ROWS = 256

Form = Literal["signed", "cpu"]
Place = Literal["first", "last"]
Reason = Literal["", "recipe", "gate"]


@dataclass(frozen=True)
class LayerResult:
    """What became of a layer.

    damage: largest error of the logits with this layer alone in INT8, in standard deviations of theirs; None where it
    was not asked for or is not finite. float_by: who keeps it in float, the recipe or the gate; "" for a layer in INT8.
    """

    name: str
    operator: str
    weights: int
    damage: float | None = None
    float_by: Reason = ""


@dataclass(frozen=True)
class Int8Model:
    """A quantised model and how it was come by.

    method: of `export.calibration.METHODS`; errors: largest error on the calibration rows by each one that was tried.
    all_int8, result: the judged rows with every layer that the recipe allows in INT8, and as the model is now.
    """

    model: bytes
    method: str
    errors: Mapping[str, float | None]
    rows: int
    layers: tuple[LayerResult, ...]
    all_int8: Comparison
    result: Comparison

    @property
    def float_layers(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.layers if each.float_by)

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "errors": dict(self.errors),
            "calibration_rows": self.rows,
            "layers": [dataclasses.asdict(each) for each in self.layers],
            "all_int8": self.all_int8.to_json(),
            "result": self.result.to_json(),
        }


def int8_from_onnx(
    model: bytes,
    rows: np.ndarray,
    judged: np.ndarray,
    labels: np.ndarray,
    *,
    gate: Gate,
    method: str = "auto",
    keep_float: Collection[Place] = (),
    form: Form = "signed",
) -> Int8Model:
    """Quantise a float32 model (`export.to_onnx`).

    rows (N, *shape): real training rows that the ranges are read from. judged (M, *shape), labels (M,): others, by
    which layers go back to float until `gate` holds with `MARGIN`; where no choice of layers makes it hold, all stay
    in INT8. method: one of `METHODS`, or `auto` for the one with the smallest error on `rows`. keep_float: the first
    layer, the last one, or both.
    Raises ExportError where there is nothing to quantise.
    """
    if method not in (*METHODS, "auto"):
        raise ExportError(f"no calibration method '{method}'; expected auto or one of {', '.join(METHODS)}")
    if not len(rows) or not len(judged):
        raise ExportError(f"INT8 needs rows: came {len(rows)} to calibrate with and {len(judged)} to judge by")
    draft = _Draft(model, form)
    allowed = draft.without(keep_float)
    levels = draft.levels(allowed)
    magnitudes = magnitudes_of(draft.graph.model, list(levels), rows)
    errors: dict[str, float | None] = {}
    for each in METHODS if method == "auto" else (method,):
        draft.reach(magnitudes, levels, each)
        errors[each] = draft.compare(allowed, rows, np.zeros(len(rows), np.int64), gate).max_error_over_std
    best = min(errors, key=lambda each: np.inf if errors[each] is None else errors[each])  # type: ignore[arg-type,return-value]
    draft.reach(magnitudes, levels, best)
    allowed_gate = dataclasses.replace(gate, max_error_over_std=MARGIN * gate.max_error_over_std)
    all_int8 = result = draft.compare(allowed, judged, labels, allowed_gate)
    kept = list(allowed)
    damages: dict[str, float | None] = {}
    if not all_int8.passed:
        damages = _damages(draft, allowed, judged[:_SENSITIVITY_ROWS], labels[:_SENSITIVITY_ROWS], gate)
        worst_first = sorted(allowed, key=lambda layer: -np.inf if (d := damages[layer.name]) is None else -d)

        def passes(count: int) -> bool:
            return draft.compare(worst_first[count:], judged, labels, allowed_gate).passed

        count = _fewest(passes, len(worst_first) - 1)
        if count is not None:
            kept = [layer for layer in allowed if layer not in worst_first[:count]]
            result = draft.compare(kept, judged, labels, allowed_gate)
    results = tuple(
        LayerResult(
            layer.name,
            layer.node.operator,
            layer.weight.size,
            damages.get(layer.name),
            "" if layer in kept else "gate" if layer in allowed else "recipe",
        )
        for layer in draft.layers
    )
    note = {"method": best, "rows": len(rows), "float": [each.name for each in results if each.float_by]}
    made = draft.model(kept, {KEY: json.dumps(note)})
    _check(made, form)
    return Int8Model(
        bytes(made.SerializeToString(deterministic=True)), best, errors, len(rows), results, all_int8, result
    )


def _check(model: onnx.ModelProto, form: Form) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        raise ExportError(f"the INT8 graph is not valid ONNX: {' '.join(str(error).split())}") from error
    if form == "signed":
        require_signed(model)


def require_signed(model: onnx.ModelProto) -> None:
    """Raise ExportError unless every quantised number is INT8 around zero: TensorRT reads UINT8 as INT8, and clips."""
    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        point = constants.get(node.input[2]) if len(node.input) > 2 else None
        if point is None:
            raise ExportError(f"{node.op_type} of {node.input[0]} has no constant zero point; expected INT8 zeros")
        values = onnx.numpy_helper.to_array(point)
        if values.dtype != np.int8 or values.any():
            raise ExportError(
                f"{node.op_type} of {node.input[0]} has a zero point of {values.dtype} up to {values.max()}; "
                "expected INT8 zeros, as TensorRT reads all others wrongly",
                remedy="Quantise with signed numbers around zero.",
            )


def _damages(
    draft: _Draft, layers: Sequence[Layer], rows: np.ndarray, labels: np.ndarray, gate: Gate
) -> dict[str, float | None]:
    """Return the largest error of the logits, in their standard deviations, with each layer alone in INT8."""
    return {layer.name: draft.compare([layer], rows, labels, gate).max_error_over_std for layer in layers}


def _fewest(passes: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest count from 1 to `most` that passes, None where `most` does not.

    A larger count is taken to pass where a smaller one does, so that few of them are tried.
    """
    if most < 1 or not passes(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle + 1, high)
    return high


class _Draft:
    """A float graph of which any choice of layers can be written in INT8. `reaches`: of activations, by name."""

    def __init__(self, model: bytes, form: Form) -> None:
        self.graph = OnnxGraph(onnx.load_model_from_string(model))
        self.form = form
        self.layers = layers_of(self.graph)
        self.reaches: Mapping[str, float] = {}
        self._logits: list[tuple[np.ndarray, np.ndarray]] = []  # rows, and what the float model makes of them
        if not self.layers:
            raise ExportError("the model has no product with constant weights, so there is nothing to quantise")

    def without(self, places: Collection[Place]) -> list[Layer]:
        kept = self.layers[1 if "first" in places else 0 : -1 if "last" in places else None]
        if not kept:
            raise ExportError(
                f"keep_float [{', '.join(places)}] leaves none of the model's {len(self.layers)} layers to INT8",
                remedy="Keep fewer layers in float, or leave int8 out of the formats.",
            )
        return kept

    def levels(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Return how many steps from zero there are in the tensors that are quantised with `layers`."""
        if self.form == "cpu":
            return levels_of(self.graph, layers)
        return dict.fromkeys(sorted({layer.activation for layer in layers}), LEVELS)

    def reach(self, magnitudes: Mapping[str, Magnitudes], levels: Mapping[str, int], method: str) -> None:
        """Set how far the activations reach.

        What no layer has made yet is pixels, whose range is what they are: entropy would cut white off.
        """
        made: set[str] = set()
        layers = {layer.node for layer in self.layers}
        for node in self.graph.nodes:
            if node in layers or not made.isdisjoint(node.inputs):
                made.update(node.outputs)
        self.reaches = {
            name: each.reach(method if name in made else "minmax", levels[name]) for name, each in magnitudes.items()
        }

    def compare(self, layers: Sequence[Layer], rows: np.ndarray, labels: np.ndarray, gate: Gate) -> Comparison:
        """Compare the logits with `layers` in INT8 with those of the float model."""
        (logits,) = outputs_of(self.model(layers, {}), ["logits"], rows)
        return compare(self._reference(rows), logits, labels, gate)

    def _reference(self, rows: np.ndarray) -> np.ndarray:
        for known, logits in self._logits:
            if known is rows:
                return logits
        (logits,) = outputs_of(self.graph.model, ["logits"], rows)
        self._logits.append((rows, logits))
        return logits

    def _is_added(self, name: str) -> bool:
        return any(each.operator == "Add" for each in self.graph.consumers(name))

    def model(self, layers: Sequence[Layer], metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Return the model with `layers` in INT8."""
        if self.form == "cpu":
            return cpu_int8(self.graph, layers, self.reaches, metadata)
        quantised = {layer.node: layer for layer in layers}
        constants = dict(self.graph.constants)
        constants["int8.zero"] = np.array(0, np.int8)
        nodes: list[Node] = []
        activations: dict[str, str] = {}
        for node in self.graph.nodes:
            layer = quantised.get(node)
            if layer is None:
                nodes.append(node)
                continue
            name = layer.activation
            if name not in activations:
                activations[name] = f"{name}.dequantized"
                constants[f"{name}.scale"] = np.array(step_of(self.reaches[name]), np.float32)
                points = [f"{name}.scale", "int8.zero"]
                nodes.append(Node("QuantizeLinear", [name, *points], [f"{name}.int8"]))
                nodes.append(Node("DequantizeLinear", [f"{name}.int8", *points], [activations[name]]))
            weight = f"{layer.name}.weight"
            scales = channel_scales(layer.weight, layer.axis)
            constants[f"{weight}.int8"] = quantized(layer.weight, scales, layer.axis)
            constants[f"{weight}.scales"] = scales
            constants[f"{weight}.zeros"] = np.zeros(len(scales), np.int8)
            parts = [f"{weight}.int8", f"{weight}.scales", f"{weight}.zeros"]
            nodes.append(Node("DequantizeLinear", parts, [f"{weight}.dequantized"], {"axis": layer.axis}))
            inputs = [activations[name], f"{weight}.dequantized", *node.inputs[2:]]
            if node.operator == "Conv" and len(inputs) == 2 and self._is_added(node.outputs[0]):
                constants[f"{layer.name}.no_bias"] = np.full(len(scales), NO_BIAS, np.float32)
                inputs.append(f"{layer.name}.no_bias")
            nodes.append(Node(node.operator, inputs, node.outputs, dict(layer.attributes)))
        return model_from_parts(self.graph.model, nodes, constants, shapes={}, opsets={}, metadata=metadata)
