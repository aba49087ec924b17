"""Packed and portable graphs against the simulation that they are made of, and against torch: bit for bit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import ops_builds
import pytest
import torch
from binary_students import (
    Affine,
    BinaryConv2d,
    BinaryLinear,
    BiRealNet,
    Chain,
    Fixed8Conv2d,
    sign,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from packed_reference import packed_signs, run_packed, run_reference, unpacked
from torch import Tensor, nn
from torch.nn import functional as F

from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.grid_layers import steps_of
from export.layers import binary_layers, with_exported_layers
from export.onnx_graph import OnnxGraph
from export.to_onnx import onnx_from_graph
from export.to_packed import packed_from_onnx, packed_weights, words
from export.to_portable import portable_from_onnx
from runtime.errors import ExportError

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def run_onnx(model: bytes, *inputs: np.ndarray, level: str = "ORT_ENABLE_ALL", library: str = "") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(library)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {each.name: array for each, array in zip(session.get_inputs(), inputs, strict=True)})[0]


def parsed(model: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(model)


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in parsed(model).graph.node)


def constants(model: bytes) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in parsed(model).graph.initializer}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def packed_nodes(model: bytes) -> list[onnx.NodeProto]:
    return [node for node in parsed(model).graph.node if node.domain == "edgefold"]


@dataclass(frozen=True)
class Student:
    """A student with its three graphs; `features` is what comes before the classifier."""

    graph: DeployableGraph
    signature: InputSignature
    simulated: bytes
    packed: bytes
    portable: bytes

    def images(self, rows: int = 3, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (rows, *self.signature.shape), dtype=np.uint8)

    def torch_logits(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.graph(torch.from_numpy(images)).numpy()


def student_of(net: nn.Module, size: int, channels: int = 3, outputs: int = 10) -> Student:
    signature = InputSignature((size, size, channels))
    scaling = Normalization(1 / 255, (0.5,) * channels, (0.25,) * channels)
    graph = DeployableGraph(Preprocess(signature, scaling), net, outputs).eval()
    simulated = onnx_from_graph(graph, signature, metadata={"edgefold.name": "small"})
    layers = binary_layers(graph)
    return Student(
        graph,
        signature,
        simulated,
        packed_from_onnx(simulated, layers=layers),
        portable_from_onnx(simulated, layers=layers, strict=True),
    )


class AsLogits(nn.Module):
    """Flattens (N, C, H, W) to logits, so that a test sees every number that a layer gives."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


def require_equal(student: Student, rows: int = 3) -> None:
    images = student.images(rows)
    expected = student.torch_logits(images)
    np.testing.assert_array_equal(run_packed(student.packed, images), expected)
    for level in LEVELS:
        np.testing.assert_array_equal(run_onnx(student.portable, images, level=level), expected, err_msg=level)


# --- whole students ---------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """All maps of a student's last stage: nothing after the last sign rounds differently."""

    def __init__(self, net: BiRealNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.body(self.net.stem(x)).flatten(1)


STEMS = {"plain": (8, 16), "seven": (16, 4), "light": (16, 4)}  # size of an image, pixels of a map of the last stage


@pytest.fixture(scope="module", params=STEMS)
def bi_real(request: Any) -> Student:
    size, pixels = STEMS[request.param]
    return student_of(Features(BiRealNet(stem=request.param, widths=(8, 16))), size, outputs=16 * pixels)


@pytest.fixture(scope="module")
def plain() -> Student:
    return student_of(BiRealNet(widths=(8, 40), blocks=2), 8)


def test_features_of_a_bi_real_net_are_those_of_torch_to_the_bit(bi_real: Student) -> None:
    require_equal(bi_real)


def test_library_gives_the_same_bits(bi_real: Student) -> None:
    images = bi_real.images()
    library = str(ops_builds.operators())
    np.testing.assert_array_equal(run_onnx(bi_real.packed, images, library=library), bi_real.torch_logits(images))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_logits_agree_at_any_batch(plain: Student, batch: int) -> None:
    images = plain.images(batch, seed=batch)
    expected = plain.torch_logits(images)
    for logits in (run_packed(plain.packed, images), run_onnx(plain.portable, images)):
        np.testing.assert_allclose(logits, expected, atol=2e-6)


def test_each_layer_with_its_surroundings_is_one_node(plain: Student) -> None:
    counts = operators(plain.packed)
    assert (counts["BinaryConv"], counts["FixedConv"], counts["Pool"]) == (4, 2, 2)
    packed = {"BinaryConv", "FixedConv", "Pool"}
    assert not {node.op_type for node in packed_nodes(plain.packed)} - packed  # the stem gives the first signs
    before, _, behind = (node.op_type for node in parsed(plain.packed).graph.node[1:4]), 0, counts["Gemm"]
    assert (list(before), behind) == (["Squeeze", "Cast", "Mul"], 1)
    first, *_ = [node for node in packed_nodes(plain.packed) if node.op_type == "BinaryConv"]
    assert [bool(name) for name in first.input] == [True, True, True, True, False, True, True]
    assert len(first.output) == 2
    assert attributes(first)["pads"] == [1, 1, 1, 1]


def test_nothing_is_transposed_where_the_whole_network_has_packed_operators(plain: Student) -> None:
    assert "Transpose" not in operators(plain.packed)  # images come channels last
    assert not {"Conv", "MatMul", "Slice", "Round", "Clip"} & set(operators(plain.packed))


def test_layers_on_grids_say_which(plain: Student) -> None:
    stem, shortcut = [node for node in packed_nodes(plain.packed) if node.op_type == "FixedConv"]
    assert (attributes(stem)["input_scale"], attributes(stem)["levels"], attributes(stem)["pads"]) == (64, 255, [1] * 4)
    assert attributes(shortcut)["strides"] == [1, 1]
    pools = [attributes(node) for node in packed_nodes(plain.packed) if node.op_type == "Pool"]
    assert [(each["mode"], each["kernel_shape"]) for each in pools] == [(b"mean", [2, 2]), (b"mean", [0, 0])]


def test_portable_form_transposes_once_and_multiplies_matrices(plain: Student) -> None:
    order = [node.op_type for node in parsed(plain.portable).graph.node]
    last = len(order) - 1 - order[::-1].index("Transpose")
    assert order.count("Transpose") == 2  # the other is of the images
    assert order[last - 1] == "Conv"
    assert "MatMulInteger" not in order[:last]
    counts = operators(plain.portable)
    assert (counts["Conv"], counts["MatMul"], counts["MatMulInteger"]) == (1, 1, 4)
    assert counts["Slice"] == 4 * 9 + 4  # of the average pool each pixel is cut once, along both axes


def test_real_stem_is_left_to_the_engine_and_transposed_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Affine(8)), BinaryConv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.stem(x)).flatten(1)

    order = [node.op_type for node in parsed(student_of(Net(), 4, outputs=32).packed).graph.node]
    assert order[order.index("Conv") :] == ["Conv", "Transpose", "Binarize", "BinaryConv", "Transpose", "Reshape"]


def test_file_says_what_it_needs(plain: Student) -> None:
    model = parsed(plain.packed)
    assert {each.domain: each.version for each in model.opset_import} == {"": 20, "edgefold": 1}
    assert {each.key: each.value for each in model.metadata_props} == {"edgefold.name": "small", "edgefold.ops": "1"}
    assert (model.producer_name, model.ir_version) == ("edgefold", 10)
    portable = parsed(plain.portable)
    assert {each.domain: each.version for each in portable.opset_import} == {"": 20}
    assert {node.domain for node in portable.graph.node} == {""}
    assert "edgefold.ops" not in {each.key for each in portable.metadata_props}
    onnx.checker.check_model(portable, full_check=True)


def test_shapes_of_packed_values_are_declared_with_a_free_batch(plain: Student) -> None:
    described = {
        value.name: (
            value.type.tensor_type.elem_type,
            [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in parsed(plain.packed).graph.value_info
    }
    made = {name for node in packed_nodes(plain.packed) for name in node.output if name}
    assert set(described) == made
    nodes = [node for node in packed_nodes(plain.packed) if node.op_type == "BinaryConv"]
    assert described[nodes[0].output[0]] == (TensorProto.FLOAT, ["batch", 8, 8, 8])
    assert described[nodes[0].output[1]] == (TensorProto.UINT32, ["batch", 8, 1, 8])
    assert described[next(node for node in packed_nodes(plain.packed) if node.op_type == "Pool").output[0]] == (
        TensorProto.FLOAT,
        ["batch", 4, 4, 8],
    )
    assert described[nodes[2].output[1]] == (TensorProto.UINT32, ["batch", 4, 2, 4])  # 40 channels are two words


def test_weights_are_bits_and_eight_bit_numbers(plain: Student) -> None:
    kept = constants(plain.packed)
    assert kept["student.body.3.conv.bits"].dtype == np.uint32
    assert kept["student.body.3.conv.bits"].shape == (40, 3, 3, 2)
    assert kept["student.body.2.down.0.int8"].dtype == np.int8
    assert kept["student.body.2.down.0.int8"].shape == (40, 1, 1, 8)
    assert constants(plain.portable)["student.body.2.down.0.weight.int8"].dtype == np.int8
    assert "DequantizeLinear" not in operators(plain.portable)  # or ONNX Runtime makes it a product of 4-bit blocks
    assert not {"student.body.3.conv.weight", "student.body.2.down.0.weight"} & set(kept)


def test_same_student_gives_the_same_bytes(plain: Student) -> None:
    layers = binary_layers(plain.graph)
    assert packed_from_onnx(plain.simulated, layers=layers) == plain.packed
    assert portable_from_onnx(plain.simulated, layers=layers, strict=True) == plain.portable


def test_packing_leaves_the_student_as_it_was(plain: Student) -> None:
    assert isinstance(plain.graph.student.body[0].conv, BinaryConv2d)
    copied = with_exported_layers(plain.graph)
    assert not binary_layers(copied)
    assert len(binary_layers(plain.graph)) == 4


def test_only_bits_go_between_layers_without_shortcuts() -> None:
    student = student_of(Chain((3, 40, 33, 8)), 7, outputs=4)
    nodes = packed_nodes(student.packed)
    assert [node.op_type for node in nodes] == ["Binarize", "BinaryConv", "BinaryConv", "BinaryConv", "Pool"]
    outputs = [[bool(name) for name in node.output] for node in nodes]
    assert outputs == [[True], [False, True], [False, True], [True], [True]]
    assert len(nodes[1].input) == 9  # the next layer's batch norm is inside
    assert len(nodes[0].input) == 3
    assert "Transpose" not in operators(student.packed)  # images come channels last
    np.testing.assert_allclose(
        run_packed(student.packed, student.images()), student.torch_logits(student.images()), atol=1e-6
    )


# --- surroundings -----------------------------------------------------------------------------------------------------


class Sequence(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers).flatten(1)


class Slopes(nn.Module):
    def __init__(self, channels: int, low: float = -0.5, high: float = 1.5) -> None:
        super().__init__()
        self.register_buffer("slope", torch.linspace(low, high, channels).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, x * self.slope, x)


SEEDS = itertools.count(1)  # equal layers with equal inputs would be one


def conv(**options: Any) -> BinaryConv2d:
    return BinaryConv2d(6, 6, 3, padding=1, **{"seed": next(SEEDS), **options})


def prelu(value: float = 0.3) -> nn.PReLU:
    return nn.PReLU(6, init=value)


BLOCKS: dict[str, tuple[Callable[..., Tensor], tuple[nn.Module, ...]]] = {
    "activation, shortcut, activation": (
        lambda x, a, c, f, g: g(f(c(a(x))) + x),
        (Affine(6), conv(), prelu(), prelu(0.1)),
    ),
    "shortcut first in the sum": (lambda x, c, f: f(x + c(x)), (conv(), prelu())),
    "relu": (lambda x, c: F.relu(c(x)), (conv(),)),
    "leaky": (lambda x, c: F.leaky_relu(c(x), 0.2), (conv(),)),
    "slopes on both sides of 1, as where": (lambda x, c, f: f(c(x)), (conv(), Slopes(6))),
    "two layers added": (lambda x, c, d: c(x) + d(x), (conv(), conv())),
    "sums that two read": (lambda x, c, d: d(c(x)) + c(x) * 2, (conv(), conv())),
    "another batch norm for each reader": (
        lambda x, c, a, b, d, e: d(a(c(x))) + e(b(c(x))),
        (conv(), Affine(6, 1), Affine(6, 2), conv(), conv()),
    ),
    "batch norm that is a shortcut too": (lambda x, a, c: c(a(x)) + a(x), (Affine(6), conv())),
    "no scale": (lambda x, c, d: d(c(x)), (conv(affine=False), conv())),
    "scale by place": (
        lambda x, c: c(x) * torch.linspace(0.1, 2, 5).view(1, 1, 5, 1) * torch.linspace(1, 2, 5).view(1, 1, 1, 5),
        (conv(affine=False),),
    ),
    "max pool behind": (lambda x, c, f: F.max_pool2d(f(c(x)), 2), (conv(), prelu())),
    "steep and falling slopes": (lambda x, c, f: f(c(x)), (conv(), prelu(-1.5))),
    "convolution on a grid": (
        lambda x, c, r, d: d(r(c(x))),
        (conv(), Fixed8Conv2d(6, 6, 3, padding=1), conv()),
    ),
    "slope above one": (lambda x, c, f: f(x) + c(f(x)), (conv(), prelu(1.5))),
}


class AllBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Sequence(function, *layers) for function, layers in BLOCKS.values())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([block(x) for block in self.blocks], 1)


@pytest.fixture(scope="module")
def blocks() -> Student:
    """All blocks side by side, read from one input: an export takes seconds."""
    pools = sum("pool" in name for name in BLOCKS)
    return student_of(AllBlocks(), 5, channels=6, outputs=6 * (25 * (len(BLOCKS) - pools) + 4 * pools))


@pytest.fixture(scope="module")
def results(blocks: Student) -> dict[str, np.ndarray]:
    images = blocks.images()
    found = {level: run_onnx(blocks.portable, images, level=level) for level in LEVELS}
    return {"torch": blocks.torch_logits(images), "packed": run_packed(blocks.packed, images), **found}


@pytest.mark.parametrize("name", BLOCKS)
def test_surroundings_are_right_to_the_bit(results: dict[str, np.ndarray], name: str) -> None:
    widths = [6 * (4 if "pool" in each else 25) for each in BLOCKS]
    place = list(BLOCKS).index(name)
    columns = slice(sum(widths[:place]), sum(widths[: place + 1]))
    for form, logits in results.items():
        np.testing.assert_array_equal(logits[:, columns], results["torch"][:, columns], err_msg=form)


def test_every_layer_is_one_node_and_signs_are_packed_apart_only_where_no_layer_gives_them(blocks: Student) -> None:
    counts = Counter(node.op_type for node in packed_nodes(blocks.packed))
    layers = len(binary_layers(blocks.graph))
    # Of the input; of its batch norm, which is a shortcut too; behind a PReLU; for a second reader.
    assert counts == {"BinaryConv": layers, "Binarize": 4, "Pool": 1, "FixedConv": 1}
    assert not {"GreaterOrEqual", "Where", "PRelu"} & set(operators(blocks.packed))


class XnorNet(nn.Module):
    """XNOR-Net's layer: the map K of mean magnitudes times the binary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.abs().mean(1, keepdim=True)
        k = F.conv2d(mean, torch.full((1, 1, 3, 3), 1 / 9), padding=1)
        return (self.conv(x) * k).flatten(1)


def test_maps_of_magnitudes_stay_around_the_node() -> None:
    student = student_of(XnorNet(), 5, 6, 6 * 25)
    images = student.images()
    expected = student.torch_logits(images)
    assert operators(student.packed)["BinaryConv"] == 1
    np.testing.assert_allclose(run_packed(student.packed, images), expected, atol=1e-5)
    np.testing.assert_allclose(run_onnx(student.portable, images), expected, atol=1e-5)


def test_linear_layers_and_what_is_between_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = BinaryLinear(75, 40), BinaryLinear(40, 40, seed=1), nn.PReLU(40)
            self.norm, self.last = Affine(40, rank=2), nn.Linear(40, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x.flatten(1))
            return self.last(self.act(self.b(self.norm(y)) + y))

    student = student_of(Net(), 5)
    nodes = packed_nodes(student.packed)
    assert [node.op_type for node in nodes] == ["Binarize", "BinaryGemm", "BinaryGemm"]
    assert [len(node.input) for node in nodes] == [1, 9, 7]
    images = student.images()
    np.testing.assert_allclose(run_packed(student.packed, images), student.torch_logits(images), atol=1e-6)
    np.testing.assert_allclose(run_onnx(student.portable, images), student.torch_logits(images), atol=1e-6)


def test_signs_of_maps_that_a_linear_layer_reads() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = conv(), BinaryLinear(150, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).flatten(1))

    require_equal(student_of(Net(), 5, 6))


# --- one layer, of any shape ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One convolution in the form that torch exports, with what surrounds it."""

    batch: int
    groups: int
    channels: int  # of a group
    outputs: int  # of a group
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    pad_value: int
    out_groups: int
    residual: bool
    seed: int


@st.composite
def layers(draw: Any) -> Layer:
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [draw(st.integers(max(1, need - pads[axis] - pads[axis + 2]), need + 5)) for axis, need in enumerate(reach)]
    out_groups = draw(st.sampled_from((1, 1, 2)))
    return Layer(
        batch=draw(st.integers(1, 3)),
        groups=groups,
        channels=draw(st.sampled_from((1, 2, 5, 31, 32, 33, 64, 130)) if groups == 1 else st.integers(1, 40)),
        outputs=draw(st.sampled_from((2, 4, 34))),
        size=(size[0], size[1]),
        kernel=kernel,
        strides=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        dilations=dilations,
        pads=pads,
        pad_value=draw(st.sampled_from((0, 0, 1, -1))),
        out_groups=out_groups,
        residual=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def numbers(layer: Layer) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(layer.seed)
    made = layer.outputs * layer.groups
    per_channel = {
        name: rng.normal(size=(1, made, 1, 1)).astype(np.float32)
        for name in ("scale", "bias", "slope", "slope_after", "sign_scale", "sign_bias")
    }
    shape = (layer.batch, layer.channels * layer.groups, *layer.size)
    x = rng.choice(np.array([-1.5, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan, -1e-40], np.float32), shape)
    return {
        "x": x,
        "weight": rng.choice(np.array([-1, 1], np.float32), (made, layer.channels, *layer.kernel)),
        "next": rng.choice(np.array([-1, 1], np.float32), (layer.out_groups, made // layer.out_groups, 1, 1)),
        "other": rng.normal(size=(layer.batch, made, *output_size(layer))).astype(np.float32),
        **per_channel,
    }


def simulated_layer(layer: Layer, values: dict[str, np.ndarray]) -> bytes:
    """The graph as torch writes it; a second layer behind it reads the signs, so that `B` is there as well."""
    top, left, bottom, right = layer.pads
    spatial = {"strides": layer.strides, "dilations": layer.dilations, "group": layer.groups}
    nodes, name = signs("x"), "x_sign"
    pads = {"pads": np.array([0, 0, top, left, 0, 0, bottom, right]), "value": np.float32(layer.pad_value)}
    if layer.pad_value:
        nodes.append(helper.make_node("Pad", [name, "pads", "value"], ["padded"]))
        name = "padded"
    else:
        spatial["pads"] = layer.pads
    nodes += [
        helper.make_node("Conv", [name, "weight"], ["sums"], **spatial),
        helper.make_node("Mul", ["sums", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["biased"]),
        helper.make_node("PRelu", ["biased", "slope"], ["sloped"]),
    ]
    y = "sloped"
    if layer.residual:
        nodes.append(helper.make_node("Add", [y, "other"], ["summed"]))
        nodes.append(helper.make_node("PRelu", ["summed", "slope_after"], ["after"]))
        y = "after"
    nodes += [
        helper.make_node("Mul", [y, "sign_scale"], ["normal"]),
        helper.make_node("Add", ["normal", "sign_bias"], ["shifted"]),
        *signs("shifted"),
        helper.make_node("Conv", ["shifted_sign", "next"], ["second"], group=layer.out_groups),
        helper.make_node("Identity", [y], ["first"]),
    ]
    kept = {name: value for name, value in values.items() if name not in ("x", "other")} | pads
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *values["x"].shape[1:]])]
    made, high, wide = layer.outputs * layer.groups, *output_size(layer)
    if layer.residual:
        inputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", made, high, wide]))
    outputs = [
        helper.make_tensor_value_info("first", TensorProto.FLOAT, ["batch", made, high, wide]),
        helper.make_tensor_value_info("second", TensorProto.FLOAT, ["batch", layer.out_groups, high, wide]),
    ]
    kept["zero"], kept["plus"], kept["minus"] = np.float32(0), np.float32(1), np.float32(-1)
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "layer", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in kept.items() if n in read]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def signs(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("GreaterOrEqual", [name, "zero"], [f"{name}_test"]),
        helper.make_node("Where", [f"{name}_test", "plus", "minus"], [f"{name}_sign"]),
    ]


def output_size(layer: Layer) -> tuple[int, int]:
    high, wide = (
        (layer.size[axis] + layer.pads[axis] + layer.pads[axis + 2] - (k - 1) * d - 1) // s + 1
        for axis, (k, d, s) in enumerate(zip(layer.kernel, layer.dilations, layer.strides, strict=True))
    )
    return high, wide


def torch_layer(layer: Layer, values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    given = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}
    top, left, bottom, right = layer.pads
    x = F.pad(sign(given["x"]), (left, right, top, bottom), value=layer.pad_value)
    sums = F.conv2d(
        x.double(), given["weight"].double(), stride=layer.strides, dilation=layer.dilations, groups=layer.groups
    )
    assert (sums == sums.round()).all()
    y = sums.float() * given["scale"] + given["bias"]
    y = torch.where(y < 0, y * given["slope"], y)
    if layer.residual:
        y = y + given["other"]
        y = torch.where(y < 0, y * given["slope_after"], y)
    read = sign(y * given["sign_scale"] + given["sign_bias"])
    return y.numpy(), F.conv2d(read, given["next"], groups=layer.out_groups).numpy()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(layers())
def test_any_convolution_is_the_same_in_torch_and_in_every_form(layer: Layer) -> None:
    values = numbers(layer)
    expected = torch_layer(layer, values)
    inputs = [values[name] for name in (("x", "other") if layer.residual else ("x",))]
    simulated = simulated_layer(layer, values)
    packed = packed_from_onnx(simulated, layers={})
    first, *others = [node for node in packed_nodes(packed) if node.op_type == "BinaryConv"]
    assert (len(first.output), len(others)) == (2, 1)  # one node each, and the first gives both
    assert attributes(first).get("out_group", 1) == layer.out_groups
    portable = portable_from_onnx(simulated, layers={}, strict=True)
    for model in (packed, portable):
        for came, wanted in zip(run_reference(model, *inputs), expected, strict=True):
            np.testing.assert_array_equal(came, wanted)
    np.testing.assert_array_equal(run_onnx(portable, *inputs), expected[0])
    np.testing.assert_array_equal(run_onnx(simulated, *inputs, level="ORT_DISABLE_ALL"), expected[0])


# --- words and steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 7, 31, 32, 33, 64, 65, 520])
def test_words_hold_channel_i_in_bit_i(channels: int) -> None:
    weight = np.random.default_rng(channels).choice(np.array([-1, 1], np.int8), (3, channels, 2, 1))
    bits = packed_weights(weight)
    assert (bits.dtype, bits.shape) == (np.dtype("<u4"), (3, 2, 1, words(channels, 1)))
    for o, c, h in itertools.product(range(3), range(channels), range(2)):
        assert (bits[o, h, 0, c // 32] >> (c % 32)) & 1 == (weight[o, c, h, 0] < 0)
    assert (bits >> np.uint32(31) >> np.uint32(1) == 0).all()
    used = channels % 32 or 32
    assert (bits[..., -1].astype(np.uint64) >> np.uint64(used) == 0).all()


def test_words_of_groups_share_no_channel() -> None:
    assert (words(64, 1), words(64, 2), words(66, 2), words(5, 5)) == (2, 2, 4, 5)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 66)).astype(np.float32)
    assert packed_signs(x, 2).shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(unpacked(packed_signs(x, 2), 66, 2), np.where(x >= 0, 1, -1))


def test_steps_are_found_only_where_the_weights_are_whole_numbers_of_them() -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(-127, 128, (5, 4, 3, 3)).astype(np.float32)
    steps = np.exp2(rng.integers(-12, 3, (5, 1, 1, 1))).astype(np.float32)
    found = steps_of(whole * steps)
    assert found is not None
    assert (np.abs(whole * steps / found) <= 127).all()
    np.testing.assert_array_equal(np.rint(whole * steps / found) * found, whole * steps)
    assert steps_of(whole * steps + np.float32(1e-7)) is None
    assert steps_of(rng.normal(size=(8, 8)).astype(np.float32)) is None


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(net: nn.Module, channels: int = 6, outputs: int = 150) -> str:
    with pytest.raises(ExportError) as caught:
        student_of(net, 5, channels, outputs)
    return str(caught.value)


def test_layer_that_would_stay_float_is_named() -> None:
    class Scaled(BinaryConv2d):
        def compute(self, x: Tensor, *, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(sign(x) * 0.5, weight, padding=1) * scale.view(1, -1, 1, 1)

    message = refused(AsLogits(conv(), Scaled(6, 6, 3)))
    assert "2 layers are binary, but 1 are so" in message
    assert "student.layers.1 (BinaryConv)" in message
    assert "student.layers.0" not in message


def test_weights_that_are_not_constant_are_refused() -> None:
    class Latent(BinaryConv2d):
        def for_export(self) -> nn.Module:
            return self  # signs of latent weights, which the exporter folds; but not those that depend on the input

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(sign(x), sign(self.latent * x.mean()), padding=1)

    assert "its weights are not constant" in refused(AsLogits(Latent(6, 6, 3)))


def test_equal_layers_of_one_input_are_one_node() -> None:
    student = student_of(Sequence(lambda x, a, b: a(x) + b(x) * 3, conv(seed=7), conv(seed=7)), 5, 6, 150)
    require_equal(student)
    assert [node.op_type for node in packed_nodes(student.packed)] == ["Binarize", "BinaryConv"]


def test_signs_that_reach_real_weights_are_named() -> None:
    class RealWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(sign(x))

    message = refused(AsLogits(conv(), RealWeights()))
    assert "student.layers.1.conv: its weights are not ± one magnitude per output" in message


@pytest.mark.parametrize(("value", "problem"), [(2.0, "padded with 2; expected 0, 1 or -1"), (0.5, "padded with 0.5")])
def test_padding_with_other_numbers_is_refused(value: float, problem: str) -> None:
    assert problem in refused(AsLogits(conv(pad_value=value)))


def test_student_without_binary_layers_is_refused() -> None:
    assert "no binary layers, so there is nothing to pack" in refused(AsLogits(nn.Conv2d(6, 6, 3, padding=1)))


def test_branches_are_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "b", [], [helper.make_tensor_value_info("y", 1, ["n"])]
    )
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n"]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", 1, ["n"])],
    )
    with pytest.raises(ExportError, match="a branch or a loop"):
        OnnxGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
