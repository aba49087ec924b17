"""Real convolutions on grids and poolings in the packed graph: which become operators, and that no bit changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from binary_students import Affine, BinaryConv2d, GridConv2d
from packed_reference import run_packed
from torch import Tensor, nn
from torch.nn import functional as F

from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.layers import binary_layers
from export.to_onnx import onnx_from_graph
from export.to_packed import packed_from_onnx

SIZE, CHANNELS = 8, 3


class Net(nn.Module):
    """`function` of the images and the layers, as flat logits; a binary layer makes it one that can be packed."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers).flatten(1)


def packed(net: nn.Module, size: int = SIZE) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """Return the packed graph, and torch's and its logits of a few images; they are equal to the bit."""
    signature = InputSignature((size, size, CHANNELS))
    preprocess = Preprocess(signature, Normalization(1 / 255, (0.5, 0.4, 0.6), (0.25, 0.2, 0.3)))
    outputs = net(torch.zeros(1, CHANNELS, size, size)).shape[1]
    graph = DeployableGraph(preprocess, net, outputs).eval()
    model = packed_from_onnx(onnx_from_graph(graph, signature, metadata={}), layers=binary_layers(graph))
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, CHANNELS), dtype=np.uint8)
    with torch.no_grad():
        expected = graph(torch.from_numpy(images)).numpy()
    came = run_packed(model, images)
    np.testing.assert_array_equal(came, expected)
    return onnx.load_model_from_string(model), expected, came


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def binary(inputs: int, outputs: int = 8, stride: int = 1) -> BinaryConv2d:
    return BinaryConv2d(inputs, outputs, 3, stride=stride, padding=1)


def test_a_stem_with_batch_norm_and_pool_is_two_operators() -> None:
    stem = GridConv2d(CHANNELS, 6, 7, stride=2, step=2.0**-6, levels=255, largest=127)
    net = Net(lambda x, s, a, c: c(F.max_pool2d(a(s(x)), 3, 2, 1)), stem, Affine(6), binary(6))
    model, _, _ = packed(net, 16)
    assert operators(model) >= Counter(FixedConv=1, Pool=1, Binarize=1, BinaryConv=1)
    assert not {"Conv", "MaxPool", "Round", "Clip"} & set(operators(model))
    assert operators(model)["Transpose"] == 1  # of what is flattened, at the end
    weights = {each.name: each for each in model.graph.initializer}
    fixed = next(node for node in model.graph.node if node.op_type == "FixedConv")
    assert weights[fixed.input[1]].data_type == onnx.TensorProto.INT8
    assert list(weights[fixed.input[1]].dims) == [6, 7, 7, CHANNELS]


def test_images_are_scaled_by_whole_rows() -> None:
    net = Net(lambda x, s, c: c(s(x)), GridConv2d(CHANNELS, 6, 3), binary(6))
    model, _, _ = packed(net)
    sizes = {each.name: list(each.dims) for each in model.graph.initializer}
    assert [sizes[node.input[1]] for node in model.graph.node if node.op_type in ("Mul", "Add")] == [
        [SIZE, CHANNELS],
        [],  # mean / deviation is 2 in every channel
    ]


def halved(x: Tensor) -> Tensor:
    above, below = x[..., 0::2, :], x[..., 1::2, :]
    return (above[..., 0::2] + above[..., 1::2] + below[..., 0::2] + below[..., 1::2]) * 0.25


def test_a_shortcut_by_mean_and_pointwise_convolution_is_two_operators() -> None:
    net = Net(
        lambda x, s, c, d, a: c(s(x)) + a(d(halved(s(x)))),
        GridConv2d(CHANNELS, 8, 3),
        binary(8, 16, stride=2),
        GridConv2d(8, 16, 1, seed=1),
        Affine(16),
    )
    model, _, _ = packed(net)
    assert operators(model) >= Counter(FixedConv=2, Pool=1, BinaryConv=1)
    assert not {"Conv", "Slice", "MatMul"} & set(operators(model))
    # The sum of both ways is taken by one of them.
    assert operators(model)["Add"] == 1  # that of the images


def test_means_in_another_order_stay_as_they_are() -> None:
    def columns_first(x: Tensor) -> Tensor:
        left, right = x[..., 0::2], x[..., 1::2]
        return (left[..., 0::2, :] + left[..., 1::2, :] + right[..., 0::2, :] + right[..., 1::2, :]) * 0.25

    net = Net(lambda x, s, c: c(columns_first(s(x))), GridConv2d(CHANNELS, 8, 3), binary(8))
    model, _, _ = packed(net)
    assert "Pool" not in operators(model)


@pytest.mark.parametrize(
    "layer",
    [
        GridConv2d(8, 16, 3, groups=2),
        GridConv2d(8, 8, 3, stride=2, groups=8),
        GridConv2d(8, 12, 3, dilation=2),
        GridConv2d(8, 5, 5, step=2.0**-3),
    ],
    ids=["groups", "channel by channel", "dilation", "wide"],
)
def test_any_form_of_convolution_is_one_operator(layer: GridConv2d) -> None:
    outputs = layer.weight.shape[0]
    net = Net(lambda x, s, m, a, c: c(F.relu(a(m(s(x))))), GridConv2d(CHANNELS, 8, 3), layer, Affine(outputs),
              binary(outputs))  # fmt: skip
    model, _, _ = packed(net)
    assert operators(model)["FixedConv"] == 2
    assert "Conv" not in operators(model)


def test_means_over_all_positions_are_one_operator() -> None:
    net = Net(lambda x, s, c: F.adaptive_avg_pool2d(c(s(x)), 1), GridConv2d(CHANNELS, 8, 3), binary(8))
    with pytest.raises(AssertionError):  # torch adds in an order of its own
        packed(net)
    signature = InputSignature((SIZE, SIZE, CHANNELS))
    graph = DeployableGraph(Preprocess(signature, Normalization(1 / 255, (0.5,) * 3, (0.25,) * 3)), net, 8).eval()
    model = packed_from_onnx(onnx_from_graph(graph, signature, metadata={}), layers=binary_layers(graph))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, CHANNELS), dtype=np.uint8)
    with torch.no_grad():
        expected = graph(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_packed(model, images), expected, rtol=1e-6, atol=1e-6)


class OffGrid(GridConv2d):
    """The same with something that is not exact any more."""

    def __init__(self, spoil: str) -> None:
        super().__init__(8, 8, 3, levels=127 if spoil != "sums" else 4095, largest=127)
        self.spoil = spoil
        if spoil == "weights":
            self.weight = self.weight + 1e-3

    def forward(self, x: Tensor) -> Tensor:
        if self.spoil == "step":
            snapped = (x * (1 / 0.3)).clamp(-127, 127).round() * 0.3
        elif self.spoil == "bounds":
            snapped = (x * 16).clamp(-127, 100).round() * 0.0625
        elif self.spoil == "no rounding":
            snapped = (x * 16).clamp(-127, 127) * 0.0625
        else:
            return super().forward(x)
        return F.conv2d(snapped, self.weight, None, *self.options)


@pytest.mark.parametrize("spoil", ["weights", "sums", "step", "bounds", "no rounding"])
def test_a_convolution_that_is_not_exact_stays_one(spoil: str) -> None:
    net = Net(lambda x, s, m, c: c(s(x)).sum((2, 3)) + m(s(x)).sum((2, 3)), GridConv2d(CHANNELS, 8, 3), OffGrid(spoil),
              binary(8))  # fmt: skip
    signature = InputSignature((SIZE, SIZE, CHANNELS))
    graph = DeployableGraph(Preprocess(signature, Normalization(1 / 255, (0.5,) * 3, (0.25,) * 3)), net, 8).eval()
    model = packed_from_onnx(onnx_from_graph(graph, signature, metadata={}), layers=binary_layers(graph))
    counts = operators(onnx.load_model_from_string(model))
    assert (counts["FixedConv"], counts["Conv"]) == (1, 1)
