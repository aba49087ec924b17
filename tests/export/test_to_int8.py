"""INT8 after training: scales by hand, the form that TensorRT reads, and layers that go back to float."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.int8_layers import channel_scales, quantized
from export.parity import GATES, Gate, compare
from export.to_int8 import int8_from_onnx, require_signed
from export.to_onnx import onnx_from_graph
from runtime.errors import ExportError

OPEN = Gate(max_error_over_std=1e9, top1_agreement=0.0, metric_drop_points=100.0)
WEIGHT = np.array([[1.27, -0.5], [0.0, 0.0], [0.02, 2.54]], np.float32)
BIAS = np.array([0.1, 0.2, 0.3], np.float32)


def float_model(*, gemm: bool = True, trans: int = 1) -> bytes:
    """Input (N, 2) by one product with WEIGHT to logits (N, 3)."""
    stored = WEIGHT if trans else np.ascontiguousarray(WEIGHT.T)
    if gemm:
        node = helper.make_node("Gemm", ["input", "student.fc.weight", "student.fc.bias"], ["logits"], transB=trans)
    else:
        node = helper.make_node("MatMul", ["input", "student.fc.weight"], ["logits"])
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(stored, "student.fc.weight"), numpy_helper.from_array(BIAS, "student.fc.bias")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made.metadata_props.add(key="edgefold.name", value="by hand")
    return made.SerializeToString()


ROWS = np.array([[12.7, 0.0], [-3.0, 1.0]], np.float32)  # 127 steps of 0.1


def quantise(model: bytes, rows: np.ndarray = ROWS, **options: Any) -> Any:
    judged = options.pop("judged", rows)
    labels = options.pop("labels", np.zeros(len(judged), np.int64))
    return int8_from_onnx(model, rows, judged, labels, gate=options.pop("gate", OPEN), **options)


def parsed(model: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(model)


def constants(model: bytes) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in parsed(model).graph.initializer}


def run(model: bytes, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": rows})[0]


# By hand


def test_scales_and_numbers_by_hand() -> None:
    scales = channel_scales(WEIGHT, 0)
    np.testing.assert_allclose(scales, [0.01, 1.0, 0.02], rtol=1e-6)  # a dead channel has 1, never 0
    assert quantized(WEIGHT, scales, 0).tolist() == [[127, -50], [0, 0], [1, 127]]
    assert quantized(WEIGHT, scales, 0).dtype == np.int8


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_by_hand(trans: int) -> None:
    made = quantise(float_model(trans=trans), method="minmax")
    found = constants(made.model)
    assert found["fc.weight.int8"].tolist() == [[127, -50], [0, 0], [1, 127]]
    np.testing.assert_allclose(found["fc.weight.scales"], [0.01, 1.0, 0.02], rtol=1e-6)
    np.testing.assert_allclose(found["input.scale"], 0.1, rtol=1e-6)
    assert found["student.fc.bias"].dtype == np.float32
    # 0.26 is 2.6 steps of 0.1 and becomes 0.3; -20 is beyond -128 steps.
    came = run(made.model, np.array([[0.26, -20.0]], np.float32))
    weight = np.array([[1.27, -0.5], [0, 0], [0.02, 2.54]])
    np.testing.assert_allclose(came, [weight @ [0.3, -12.8] + BIAS], rtol=1e-5)


def test_channels_of_a_matmul_lie_along_its_last_axis() -> None:
    made = quantise(float_model(gemm=False, trans=0), method="minmax")
    assert constants(made.model)["fc.weight.int8"].T.tolist() == [[127, -50], [0, 0], [1, 127]]
    (weights,) = [node for node in parsed(made.model).graph.node if node.input[0] == "fc.weight.int8"]
    assert [each.i for each in weights.attribute if each.name == "axis"] == [1]


def test_metadata_says_how_it_was_quantised() -> None:
    made = quantise(float_model(), method="percentile")
    metadata = {each.key: each.value for each in parsed(made.model).metadata_props}
    assert metadata["edgefold.name"] == "by hand"
    assert json.loads(metadata["edgefold.int8"]) == {"method": "percentile", "rows": 2, "float": []}


# Real graphs

IMAGES = InputSignature((12, 10, 3))


def graph_of(student: nn.Module, signature: InputSignature = IMAGES, classes: int = 4, subclasses: int = 2) -> bytes:
    scaling = Normalization(1 / 255, (0.5,) * 3, (0.25,) * 3)
    graph = DeployableGraph(Preprocess(signature, scaling), student.eval(), classes, subclasses)
    return onnx_from_graph(graph, signature, metadata={})


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *IMAGES.shape), dtype=np.uint8)


class TwoConvolutions(nn.Module):
    """Convolution, batch norm, ReLU, convolution, ReLU, mean, linear. outlier: how far one inner channel sticks out.

    The next layer takes the factor back, so that the function stays the same whatever it is.
    """

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.classifier = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 8)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        with torch.no_grad():
            self.norm.weight[0] *= outlier
            self.norm.bias[0] *= outlier
            self.conv2.weight[:, 0] /= outlier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        return self.classifier(x.mean((2, 3)))


def exported(outlier: float = 1.0) -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return graph_of(TwoConvolutions(outlier))


@pytest.fixture(scope="module")
def plain() -> bytes:
    return exported()


def test_the_form_is_the_one_that_tensorrt_reads(plain: bytes) -> None:
    model = parsed(quantise(plain, images(64)).model)
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(products) == 3
    for node in products:
        activation, weight = makers[node.input[0]], makers[node.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert makers[activation.input[0]].op_type == "QuantizeLinear"
        assert found[activation.input[1]].shape == ()
        (axis,) = [each.i for each in weight.attribute if each.name == "axis"]
        assert axis == 0
        assert found[weight.input[0]].dtype == np.int8
        assert found[weight.input[1]].shape == (found[weight.input[0]].shape[0],)
        assert (found[weight.input[1]] > 0).all()
        assert found[node.input[2]].dtype == np.float32
    assert not any(each.dtype == np.uint8 for each in found.values())
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_scaling_and_fold_stay_as_they_are(plain: bytes) -> None:
    before, after = (parsed(each).graph.node for each in (plain, quantise(plain, images(64)).model))
    added = Counter(node.op_type for node in after) - Counter(node.op_type for node in before)
    assert added == Counter(QuantizeLinear=3, DequantizeLinear=6)

    def around(nodes: Any) -> list[str]:
        """What comes before the first layer and after the last one."""
        kinds = [node.op_type for node in nodes if "Linear" not in node.op_type]
        return [*kinds[: kinds.index("Conv")], "...", *kinds[kinds.index("Gemm") :]]

    assert around(before) == around(after)
    assert around(after)[-7:] == ["ReduceMax", "Sub", "Exp", "ReduceSum", "Log", "Squeeze", "Add"]


def test_same_rows_give_the_same_bytes_and_no_path_is_in_them(plain: bytes) -> None:
    first, second = (quantise(exported(), images(64)).model for _ in range(2))
    assert first == second
    assert quantise(plain, images(64, seed=1)).model != first
    assert not re.search(rb"/(home|work|tmp|usr)/", first)


@pytest.mark.parametrize("method", ["auto", "minmax", "percentile", "entropy"])
def test_every_method_meets_the_gate(plain: bytes, method: str) -> None:
    made = quantise(plain, images(64), judged=images(256, seed=1), gate=Gate(0.3, 0.9, 100), method=method)
    assert made.result.passed
    assert made.float_layers == ()
    assert set(made.errors) == ({"minmax", "percentile", "entropy"} if method == "auto" else {method})
    assert made.errors[made.method] == min(made.errors.values())
    assert all(layer.damage is None for layer in made.layers)


def test_pixels_reach_as_far_as_they_do_by_any_method(plain: bytes) -> None:
    mostly_dark = np.where(images(64) < 250, 0, 255).astype(np.uint8)
    by_method = [constants(quantise(plain, mostly_dark, method=each).model) for each in ("minmax", "entropy")]
    (pixels,) = {name for name in by_method[0] if name.endswith(".scale") and "add" in name}
    assert by_method[0][pixels] == by_method[1][pixels] == np.float32(2.0 / 127)  # (255 / 255 - 0.5) / 0.25
    assert any((by_method[0][name] != value).any() for name, value in by_method[1].items() if name.endswith(".scale"))


def test_layers_are_named_as_in_the_student(plain: bytes) -> None:
    layers = quantise(plain, images(64)).layers
    assert [(each.name, each.operator, each.weights) for each in layers] == [
        ("conv1", "Conv", 8 * 3 * 9),
        ("conv2", "Conv", 12 * 8 * 9),
        ("classifier", "Gemm", 8 * 12),
    ]


@pytest.mark.parametrize(
    ("places", "kept"),
    [(["first"], ["conv1"]), (["last"], ["classifier"]), (["first", "last"], ["conv1", "classifier"])],
)
def test_recipe_keeps_first_and_last_in_float(plain: bytes, places: list[Any], kept: list[str]) -> None:
    made = quantise(plain, images(64), keep_float=places)
    assert [each.name for each in made.layers if each.float_by == "recipe"] == kept
    found = constants(made.model)
    assert all(found[f"student.{name}.weight"].dtype == np.float32 for name in kept)
    assert sum(name.endswith(".weight.int8") for name in found) == 3 - len(kept)


def test_outlier_channel_is_rescued_by_returning_its_layer_to_float() -> None:
    # Every other channel is less than a step of the range that the one asks for.
    model, rows, judged = exported(outlier=1000.0), images(64), images(256, seed=1)
    labels = run(model, judged).argmax(1)
    made = quantise(model, rows, judged=judged, labels=labels, gate=Gate(0.3, 0.9, 5.0), method="minmax")
    assert not made.all_int8.passed
    assert made.result.passed
    assert made.float_layers == ("conv2",)
    damages = {each.name: each.damage for each in made.layers}
    assert damages["conv2"] > 0.3 > max(damages["conv1"], damages["classifier"])
    comparison = compare(run(model, judged), run(made.model, judged), labels, Gate(0.3, 0.9, 5.0))
    assert comparison.passed, comparison.reasons
    note = {each.key: each.value for each in parsed(made.model).metadata_props}["edgefold.int8"]
    assert json.loads(note)["float"] == ["conv2"]
    document = made.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_gate_that_nothing_meets_leaves_all_in_int8_and_says_so(plain: bytes) -> None:
    made = quantise(plain, images(64), judged=images(64, seed=1), gate=Gate(1e-7, 1.0, 0.0))
    assert not made.result.passed
    assert made.float_layers == ()
    assert all(layer.damage is not None and layer.damage > 0 for layer in made.layers)


# TensorRT


def layer_list(trt: ModuleType, model: bytes, capability: str) -> str:
    """Build an engine and return what the builder says of its final layers; a plan cannot be read without its GPU."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", (1, *shape), (8, *shape), (64, *shape))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    return next(line for line in log.lines if line.startswith("Layers:"))


def inputs_of_products(trt: ModuleType, model: bytes) -> list[tuple[str, str]]:
    """Layer type and the data type of the activations that it reads, of convolutions and products of matrices."""
    found = re.findall(
        r"LayerType: (correlation|gemm), Inputs: \[ \{.*?Datatype: (\w+)", layer_list(trt, model, "SM86"), re.DOTALL
    )
    return [(kind, dtype) for kind, dtype in found]


def test_tensorrt_rtx_computes_products_on_int8(plain: bytes) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    quantised = inputs_of_products(trt, quantise(plain, images(64)).model)
    assert quantised == [("correlation", "Int8"), ("correlation", "Int8"), ("gemm", "Int8")]
    assert all(dtype == "Float" for _, dtype in inputs_of_products(trt, plain))


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the width changes."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        stride = 1 if width_in == width else 2
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class Residual(nn.Sequential):
    def __init__(self) -> None:
        blocks = [Block(16, 16), Block(16, 32), Block(32, 32)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8)]
        super().__init__(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, *head)


def test_tensorrt_rtx_computes_a_residual_network_on_int8() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    made = quantise(graph_of(Residual()), images(64))
    assert [layer.operator for layer in made.layers] == ["Conv"] * 8 + ["Gemm"]
    assert sorted(inputs_of_products(trt, made.model)) == [("correlation", "Int8")] * 8 + [("gemm", "Int8")]


# Refusals


def test_unsigned_and_shifted_zero_points_are_refused() -> None:
    made = parsed(quantise(float_model(), method="minmax").model)
    require_signed(made)
    for value, said in ((np.array(0, np.uint8), "uint8 up to 0"), (np.array(3, np.int8), "int8 up to 3")):
        other = onnx.ModelProto()
        other.CopyFrom(made)
        (point,) = [each for each in other.graph.initializer if each.name == "int8.zero"]
        point.CopyFrom(numpy_helper.from_array(value, "int8.zero"))
        with pytest.raises(ExportError, match=f"QuantizeLinear of input has a zero point of {said}; expected INT8"):
            require_signed(other)
    del made.graph.node[0].input[2:]
    with pytest.raises(ExportError, match="QuantizeLinear of input has no constant zero point"):
        require_signed(made)


def test_requests_that_cannot_be_met_should_fail(plain: bytes) -> None:
    with pytest.raises(ExportError, match="no calibration method 'mse'; expected auto or one of minmax, percentile"):
        quantise(plain, images(4), method="mse")
    with pytest.raises(ExportError, match="came 0 to calibrate with and 4 to judge by"):
        quantise(plain, images(0), judged=images(4))
    with pytest.raises(ExportError, match=r"keep_float \[first\] leaves none of the model's 1 layers to INT8"):
        quantise(float_model(), keep_float=["first"])
    without = parsed(float_model())
    del without.graph.node[:]
    without.graph.node.append(helper.make_node("Concat", ["input", "input"], ["logits"], axis=1))
    with pytest.raises(ExportError, match="no product with constant weights, so there is nothing to quantise"):
        quantise(without.SerializeToString())


def test_gate_of_the_design_is_the_default_of_a_recipe() -> None:
    assert GATES["int8"] == Gate(0.3, 0.97, 1.0)
