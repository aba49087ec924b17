"""Grids found again in an exported graph: levels by hand, the form that engines read, what torch computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from compress.layers.quant import QuantConv2d, QuantLinear
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.to_int8 import require_signed
from export.to_onnx import onnx_from_graph
from export.to_qdq import levels_of, qdq_from_onnx
from runtime.engine_build import engine_from_onnx
from runtime.errors import ExportError

IMAGES = InputSignature((9, 8, 3))


class Student(nn.Module):
    """What the zoo has: a norm to fold, one that stays, depthwise, a residual sum, linear layers on 2 and 3 axes."""

    def __init__(self, bits: int) -> None:
        super().__init__()

        def few(layer: nn.Module, weight_bits: int = bits, input_bits: int = bits) -> nn.Module:
            kind = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
            return kind(layer, weight_bits=weight_bits, input_bits=input_bits)  # type: ignore[arg-type]

        self.stem = few(nn.Conv2d(3, 8, 3, bias=False), 8, 8)
        self.norm1 = nn.BatchNorm2d(8)
        self.depthwise = few(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False))
        self.norm2 = nn.BatchNorm2d(8)
        self.norm3 = nn.BatchNorm2d(8)
        self.mixed = few(nn.Linear(8, 8))
        self.classifier = few(nn.Linear(8, 4), 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x))  # (N, 8, 7, 6)
        x = x + self.norm2(self.depthwise(x.relu()))
        x = self.norm3(x).relu().flatten(2).transpose(1, 2)  # (N, 42, 8)
        return self.classifier(self.mixed(x).mean(1))


def images(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *IMAGES.shape), dtype=np.uint8)


def trained(bits: int) -> DeployableGraph:
    torch.manual_seed(0)
    student = Student(bits)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # negative ones as well
            nn.init.normal_(module.bias)
    graph = DeployableGraph(Preprocess(IMAGES, Normalization(1 / 255, (0.4,) * 3, (0.25,) * 3)), student, 4)
    with torch.no_grad():
        for seed in range(3):
            graph.train()(torch.from_numpy(images(16, seed)))
    return graph.eval()


@pytest.fixture(scope="module", params=[2, 4, 8])
def graph(request: pytest.FixtureRequest) -> DeployableGraph:
    return trained(request.param)


@pytest.fixture(scope="module")
def exported(graph: DeployableGraph) -> bytes:
    return onnx_from_graph(graph, IMAGES, metadata={"edgefold.name": "few bits"})


def outputs(model: bytes, *, optimised: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimised:  # ONNX Runtime rounds biases to the grid of the sums
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": images(200, 9)})[0]


def by_torch(graph: DeployableGraph) -> np.ndarray:
    with torch.no_grad():
        return graph(torch.from_numpy(images(200, 9))).numpy()


def test_levels_and_scales_by_hand() -> None:
    weight = np.array([[0.5, -1.0, 0.0], [0.3, 0.2, -0.1], [0.0, 0.0, 0.0], [-3.0, 3.0, 3.0]], np.float32)
    levels, scales = levels_of(weight, 0)
    assert levels.tolist() == [[1, -2, 0], [3, 2, -1], [0, 0, 0], [-1, 1, 1]]
    assert scales.tolist() == pytest.approx([0.5, 0.1, 1.0, 3.0])
    along, same = levels_of(np.ascontiguousarray(weight.T), 1)
    assert np.array_equal(along, levels.T)
    assert np.array_equal(same, scales)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 7, 127]), st.integers(1, 40))
def test_whatever_lies_on_a_grid_is_found_again(seed: int, highest: int, terms: int) -> None:
    random = np.random.default_rng(seed)
    written = random.integers(-highest, highest + 1, (5, terms, 2))
    steps = np.exp(random.normal(0, 3, 5)).astype(np.float32)
    gains = random.normal(0, 1, 5).astype(np.float32)  # of batch norms that were folded in
    weight = written.astype(np.float32) * steps[:, None, None] * gains[:, None, None]
    levels, scales = levels_of(weight, 0)
    assert (scales > 0).all()
    np.testing.assert_allclose(levels * scales[:, None, None], weight, rtol=1e-6, atol=0)
    assert np.abs(levels).max() <= highest


def test_weights_on_no_grid_are_refused() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    weight[:2] = np.rint(weight[:2] * 10)
    with pytest.raises(ExportError, match="4 of 6 channels have weights on no grid of 8 bits"):
        levels_of(weight, 0)


def test_it_computes_what_torch_computes(graph: DeployableGraph, exported: bytes) -> None:
    reference, came = by_torch(graph), outputs(qdq_from_onnx(exported))
    error = np.abs(came - reference).max(axis=1) / reference.std()
    assert np.median(error) < 1e-5  # a value between two levels may fall to the other side, seldom
    assert error.max() < 0.1
    optimised = np.abs(outputs(qdq_from_onnx(exported), optimised=True) - reference).max(axis=1) / reference.std()
    # The classifier's inputs have 8 bits: its bias is rounded, to a fine grid. The others are not.
    assert np.median(optimised) < 0.01
    assert optimised.max() < 0.1


def test_the_form_is_the_one_that_tensorrt_reads(graph: DeployableGraph, exported: bytes) -> None:
    model = onnx.load_model_from_string(qdq_from_onnx(exported))
    require_signed(model)
    found = Counter(node.op_type for node in model.graph.node)
    assert found["QuantizeLinear"] == 4
    assert found["DequantizeLinear"] == 8
    assert found["Round"] == found["Div"] == 0
    assert found["BatchNormalization"] == 1  # the one behind the sum
    bits = graph.student.depthwise.input_bits  # type: ignore[union-attr]
    assert found["Clip"] == (0 if bits == 8 else 2)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    of_weights = [
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    largest = [np.abs(constants[node.input[0]].astype(int)).max() for node in of_weights]
    assert largest[0] <= 127
    assert max(largest[1:3]) <= 2 ** (bits - 1) - 1
    assert {model.opset_import[0].version, model.ir_version} == {20, 10}
    assert {each.key: each.value for each in model.metadata_props} == {"edgefold.name": "few bits"}


def test_weights_of_few_bits_take_half_a_byte_where_asked(graph: DeployableGraph, exported: bytes) -> None:
    wide, narrow = (qdq_from_onnx(exported, int4=int4) for int4 in (False, True))
    assert np.array_equal(outputs(wide), outputs(narrow))
    few = graph.student.depthwise.weight_bits < 8  # type: ignore[union-attr]
    kinds = Counter(each.data_type for each in onnx.load_model_from_string(narrow).graph.initializer)
    assert kinds[TensorProto.INT4] == (4 if few else 0)  # two layers' levels and zero points
    assert onnx.load_model_from_string(narrow).opset_import[0].version == (21 if few else 20)
    assert (wide == narrow) == (not few)
    assert narrow == qdq_from_onnx(exported, int4=True)


def test_odd_numbers_of_half_bytes_are_filled_up() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(7, 3), weight_bits=3, input_bits=8)
    head = DeployableGraph(
        Preprocess(InputSignature((1, 1, 7)), Normalization(1 / 255, (0.5,) * 7, (0.25,) * 7)),
        nn.Sequential(nn.Flatten(), layer),
        3,
    )
    rows = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 7), dtype=np.uint8)
    with torch.no_grad():
        head.train()(torch.from_numpy(rows))
        expected = head.eval()(torch.from_numpy(rows)).numpy()
    model = qdq_from_onnx(onnx_from_graph(head, InputSignature((1, 1, 7)), metadata={}), int4=True)
    came = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": rows})[0]
    np.testing.assert_allclose(came, expected, rtol=0, atol=0.02)


def test_a_float_model_has_no_grids() -> None:
    graph = DeployableGraph(
        Preprocess(IMAGES, Normalization(1 / 255, (0.4,) * 3, (0.25,) * 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(216, 4)),
        4,
    )
    with pytest.raises(ExportError, match="no layer whose inputs are on a grid"):
        qdq_from_onnx(onnx_from_graph(graph, IMAGES, metadata={}))


def test_tensorrt_rtx_builds_it(exported: bytes) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    engine = engine_from_onnx(qdq_from_onnx(exported), compute_capability="sm86", module="tensorrt_rtx")
    assert [each.name for each in engine.outputs] == ["logits"]


def test_tensorrt_rtx_takes_no_convolution_of_four_bits() -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    model = qdq_from_onnx(onnx_from_graph(trained(4), IMAGES, metadata={}), int4=True)
    with pytest.raises(ExportError, match="cannot build the model"):
        engine_from_onnx(model, compute_capability="sm86", module="tensorrt_rtx")
