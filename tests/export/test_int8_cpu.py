"""INT8 as a CPU computes it: numbers by hand, which tensors are 8-bit, and what ONNX Runtime makes of the graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.parity import Gate
from export.to_int8 import Int8Model, int8_from_onnx
from export.to_onnx import onnx_from_graph
from runtime.buildable import require_buildable
from runtime.errors import ExportError

OPEN = Gate(max_error_over_std=1e9, top1_agreement=0.0, metric_drop_points=100.0)
SIGNATURE = InputSignature((12, 10, 3))
SCALING = Normalization(1 / 255, (0.4, 0.5, 0.6), (0.25, 0.2, 0.3))


def exported(student: nn.Module, normalization: Normalization | None = SCALING, channels: int = 3) -> bytes:
    signature = InputSignature((12, 10, channels))
    graph = DeployableGraph(Preprocess(signature, normalization), student.eval(), 4)
    return onnx_from_graph(graph, signature, metadata={})


def images(rows: int = 64, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 12, 10, channels), dtype=np.uint8)


def quantised(model: bytes, rows: np.ndarray | None = None, **options: Any) -> Int8Model:
    rows = images() if rows is None else rows
    labels = np.zeros(len(rows), np.int64)
    options = {"gate": OPEN, "method": "minmax", "form": "cpu"} | options
    return int8_from_onnx(model, rows, rows, labels, **options)


def constants(model: bytes) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load_model_from_string(model).graph.initializer}


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(model).graph.node)


def optimised(model: bytes, folder: Path) -> Counter[str]:
    """Return how many nodes of each operator ONNX Runtime makes of a model on this CPU."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # or it warns that the file is for this machine alone
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def run(model: bytes, rows: np.ndarray, *outputs: str) -> list[np.ndarray]:
    """Run a model as it is written, without what ONNX Runtime makes of it."""
    parsed = onnx.load_model_from_string(model)
    for name in outputs:
        if name != "logits":
            parsed.graph.output.add(name=name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(parsed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"input": rows})


class Plain(nn.Module):
    """Convolution, an activation, pool, convolution, mean, linear."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.activation, self.pool, self.classifier = activation(), nn.MaxPool2d(2), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.activation(self.conv1(x)))
        return self.classifier(self.activation(self.conv2(x)).mean((2, 3)))


class Residual(nn.Module):
    """A stem, a block whose batch norm no convolution takes up, a shuffle, halves that are joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.part, self.pool, self.classifier = nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.Linear(8, 4)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.uniform_(self.norm.weight, -1.0, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.conv(self.norm(x).relu())
        x = x.reshape(-1, 2, 4, 12, 10).transpose(1, 2).reshape(-1, 8, 12, 10)
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat([kept, self.part(changed)], dim=1).relu()
        return self.classifier(self.pool(x).mean((2, 3)))


@pytest.fixture(scope="module", autouse=True)
def seed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.fixture(scope="module")
def plain(seed: None) -> bytes:
    return exported(Plain())


@pytest.fixture(scope="module")
def residual(seed: None) -> bytes:
    return exported(Residual())


# What ONNX Runtime makes of it. Without scales on all sides of a node it would be Conv and Add in float.


def test_a_chain_is_computed_on_8_bit_numbers_alone(plain: bytes, tmp_path: Path) -> None:
    assert optimised(quantised(plain).model, tmp_path) == Counter(
        QLinearConv=3, NhwcMaxPool=1, QLinearGlobalAveragePool=1, QGemm=1, Transpose=1, Squeeze=1
    )


def test_so_are_sums_norms_halves_and_shuffles(residual: bytes, tmp_path: Path) -> None:
    found = optimised(quantised(residual).model, tmp_path)
    assert {name: found[name] for name in found if name.startswith(("Q", "D", "Conv", "Fused", "Batch", "Relu"))} == {
        # Scaling, stem, norm, conv and half; the ReLUs are zero points.
        "QLinearConv": 5,
        "QLinearAdd": 1,
        "QLinearConcat": 1,
        "QLinearAveragePool": 1,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
    }


def test_the_signed_form_is_not(residual: bytes, tmp_path: Path) -> None:
    # Why there are two: once it is, this form has no reason any more.
    found = optimised(quantised(residual, form="signed").model, tmp_path)
    assert found["QLinearConv"] < 3
    assert found["Conv"] + found["FusedConv"] > 0


def test_relu6_that_reaches_to_6_is_dropped(tmp_path: Path) -> None:
    student = Plain(nn.ReLU6)
    with torch.no_grad():
        student.conv1.bias += 6  # so that 6 is reached
    made = quantised(exported(student))
    assert operators(made.model)["Clip"] == 2
    assert optimised(made.model, tmp_path)["Clip"] == 0
    scales = [value for name, value in constants(made.model).items() if name.endswith(".scale") and value.shape == ()]
    reached = [value for value in scales if abs(float(value) * 255 - 6) < 1e-3]
    assert reached
    assert all(value * np.float32(255) <= 6 for value in reached)


@pytest.mark.parametrize("model", ["plain", "residual"])
def test_what_it_computes_is_what_is_written(model: str, request: pytest.FixtureRequest) -> None:
    made = quantised(request.getfixturevalue(model))
    rows = images(32, seed=1)
    (written,) = run(made.model, rows, "logits")
    session = onnxruntime.InferenceSession(made.model, providers=["CPUExecutionProvider"])
    (computed,) = session.run(["logits"], {"input": rows})
    # A sum may round to the other neighbour in integers, and a layer behind it sees a step more or less.
    assert np.abs(written - computed).max() < 0.05 * written.std()
    assert (written.argmax(1) == computed.argmax(1)).mean() >= 0.95


# Numbers


def test_tensors_that_cannot_be_negative_have_twice_the_steps(plain: bytes) -> None:
    found = constants(quantised(plain).model)
    (first, second) = (float(found[name]) for name in ("relu.scale", "relu_1.scale"))
    relu, relu_1 = run(plain, images(), "relu", "relu_1")
    np.testing.assert_allclose([first, second], [relu.max() / 255, relu_1.max() / 255], rtol=1e-6)
    assert found["uint8.low"] == 0
    assert found["uint8.middle"] == 128


def test_what_only_moves_numbers_keeps_their_scale(residual: bytes) -> None:
    model = onnx.load_model_from_string(quantised(residual).model)
    scales = {
        node.output[0].removesuffix(".uint8"): node.input[1] for node in model.graph.node if "Quant" in node.op_type
    }
    moved = [node for node in model.graph.node if node.op_type in ("Reshape", "Transpose", "Split")]
    inside = [node for node in moved if node.input[0].removesuffix(".dequantized") in scales]
    assert len(inside) >= 4
    for node in inside:
        for name in node.output:
            assert scales[name] == scales[node.input[0].removesuffix(".dequantized")]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_scaled_as_in_float(channels: int) -> None:
    scaling = Normalization(1 / 255, SCALING.mean[:channels], SCALING.std[:channels])
    model = exported(Plain(channels=channels), scaling, channels)
    rows = images(16, channels)
    made = quantised(model, rows)
    found = constants(made.model)
    (name,) = [each.removesuffix(".pixels.scale") for each in found if each.endswith(".pixels.scale")]
    (scaled,) = run(made.model, rows, f"{name}.dequantized")
    (expected,) = run(model, rows, name)
    step = float(found[f"{name}.scale"])
    assert scaled.shape == (16, 4, 12, 10)
    assert np.abs(scaled[:, :channels] - expected).max() <= 0.51 * step
    assert not scaled[:, channels:].any()
    assert found["conv1.weight.whole"].shape == (8, 4, 3, 3)
    assert not found["conv1.weight.whole"][:, channels:].any()


def test_pixels_that_are_not_shifted_keep_all_their_steps() -> None:
    rows = images()
    rows[0, 0, 0] = 255
    made = quantised(exported(Plain(), Normalization(1 / 255, (0.0,) * 3, (1.0,) * 3)), rows)
    model = onnx.load_model_from_string(made.model)
    (layer,) = [node for node in model.graph.node if "conv1.weight.dequantized" in node.input]
    (reader,) = [node for node in model.graph.node if layer.input[0] in node.output]
    found = constants(made.model)
    assert found[reader.input[1]] == pytest.approx(1 / 255, rel=1e-6)
    assert found[reader.input[2]] == 0


def test_pixels_that_something_else_reads_are_scaled_in_float() -> None:
    class Twice(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.mean((1, 2, 3)).unsqueeze(1)

    made = quantised(exported(Twice()))
    assert not any(name.endswith(".pixels.scale") for name in constants(made.model))
    assert made.result.max_error_over_std is not None
    assert made.result.max_error_over_std < 0.3


def test_batch_norm_becomes_a_convolution_of_its_factors(residual: bytes) -> None:
    source = constants(residual)
    scale, bias, mean, variance = (
        source[f"student.norm.{each}"] for each in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + 1e-5)
    found = constants(quantised(residual).model)
    (name,) = [each for each in found if each.endswith(".weight.whole") and found[each].shape == (8, 1, 1, 1)]
    weight = found[name][:, 0, 0, 0] * found[name.replace("whole", "scales")]
    np.testing.assert_allclose(weight, factor, rtol=1e-5)
    assert (np.abs(found[name]) == 127).all()
    name = name.replace(".weight.", ".bias.")
    assert found[name].dtype == np.int32
    np.testing.assert_allclose(found[name] * found[name.replace("whole", "scales")], bias - mean * factor, atol=1e-3)


def test_bias_beside_weights_of_next_to_nothing_fits_32_bits() -> None:
    student = Plain()
    with torch.no_grad():
        student.conv2.weight[0] *= 1e-12
        student.conv2.bias[0] = 3.0
    found = constants(quantised(exported(student)).model)
    whole, scales = found["conv2.bias.whole"], found["conv2.bias.scales"]
    assert whole[0] * float(scales[0]) == pytest.approx(3.0, rel=1e-6)
    assert abs(int(whole[0])) <= 2**30 + 128
    np.testing.assert_allclose(whole * scales.astype(np.float64), student.conv2.bias.detach().numpy(), atol=1e-4)


# Choice of layers


@pytest.mark.parametrize("place", ["first", "last"])
def test_layers_that_the_recipe_keeps_stay_float(plain: bytes, place: str, tmp_path: Path) -> None:
    made = quantised(plain, keep_float=[place], gate=Gate(0.3, 0.9, 100.0))
    assert made.result.passed, made.result.reasons
    found = optimised(made.model, tmp_path)
    if place == "first":
        assert made.float_layers == ("conv1",)
        assert (found["QLinearConv"], found["QGemm"], found["Conv"] + found["FusedConv"]) == (1, 1, 1)
    else:
        assert made.float_layers == ("classifier",)
        assert (found["QLinearConv"], found["QGemm"], found["Gemm"]) == (3, 0, 1)


def test_outlier_channel_is_rescued_by_returning_layers_to_float() -> None:
    student = Plain()
    with torch.no_grad():  # what one channel makes too large, the next layer makes small again
        student.conv1.weight[0] *= 1000
        student.conv1.bias[0] *= 1000
        student.conv2.weight[:, 0] /= 1000
    made = quantised(exported(student), gate=Gate(0.3, 0.9, 100.0))
    assert not made.all_int8.passed
    assert made.result.passed
    assert 0 < len(made.float_layers) < 3
    assert "conv1" in made.float_layers or "conv2" in made.float_layers


def test_same_rows_give_the_same_bytes(residual: bytes) -> None:
    assert quantised(residual).model == quantised(residual).model


def test_tensorrt_is_not_given_unsigned_numbers(plain: bytes) -> None:
    signed, unsigned = (quantised(plain, form=form).model for form in ("signed", "cpu"))
    require_buildable(signed)
    with pytest.raises(ExportError, match=r"quantises to uint8 in .* TensorRT reads it as int8") as refused:
        require_buildable(unsigned)
    assert "as the format int8 does" in refused.value.remedy
