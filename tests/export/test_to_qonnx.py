"""QONNX: Quant nodes by their specification, and a file that any ONNX Runtime runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.layers.quant import QuantConv2d, QuantLinear
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.to_onnx import onnx_from_graph
from export.to_qonnx import DOMAIN, qonnx_from_onnx

IMAGES = InputSignature((7, 6, 3))


def quant(x: np.ndarray, scale: np.ndarray, zero: float, bits: float, *, signed: int, narrow: int) -> np.ndarray:
    """Compute Quant as its specification has it."""
    if signed:
        lowest, highest = -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    else:
        lowest, highest = 0, 2**bits - 1 - narrow
    return (np.clip(np.rint(x / scale + zero), lowest, highest) - zero) * scale


def trained(weight_bits: int, input_bits: int) -> DeployableGraph:
    torch.manual_seed(0)
    student = nn.Sequential(
        QuantConv2d(nn.Conv2d(3, 6, 3), weight_bits=8, input_bits=8),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        QuantConv2d(nn.Conv2d(6, 5, 3), weight_bits=weight_bits, input_bits=input_bits),
        nn.Flatten(),
        QuantLinear(nn.Linear(5 * 3 * 2, 4), weight_bits=weight_bits, input_bits=input_bits),
    )
    graph = DeployableGraph(Preprocess(IMAGES, Normalization(1 / 255, (0.4,) * 3, (0.25,) * 3)), student, 4)
    with torch.no_grad():
        graph.train()(torch.from_numpy(images(32)))
    return graph.eval()


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, *IMAGES.shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def graph() -> DeployableGraph:
    return trained(3, 4)


@pytest.fixture(scope="module")
def exported(graph: DeployableGraph) -> bytes:
    return qonnx_from_onnx(onnx_from_graph(graph, IMAGES, metadata={}))


def test_any_onnx_runtime_computes_what_torch_computes(graph: DeployableGraph, exported: bytes) -> None:
    with torch.no_grad():
        reference = graph(torch.from_numpy(images(100))).numpy()
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    error = np.abs(session.run(["logits"], {"input": images(100)})[0] - reference).max(axis=1)
    assert np.median(error) < 1e-5 * reference.std()  # seldom, a value falls to the other side of two levels
    assert error.max() < 0.2 * reference.std()


def test_every_grid_says_its_bits(exported: bytes) -> None:
    model = onnx.load_model_from_string(exported)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {"inputs": [], "weights": []}  # type: ignore[var-annotated]
    for node in model.graph.node:
        if node.op_type != "Quant":
            continue
        assert node.domain == DOMAIN
        options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        assert options["rounding_mode"] == b"ROUND"
        scale, zero, bits = (constants[name] for name in node.input[1:])
        assert zero == 0
        said = (float(bits), options["signed"], options["narrow"])
        if node.input[0] in constants:
            values = constants[node.input[0]]
            on_grid = quant(values, scale, 0, bits, signed=options["signed"], narrow=options["narrow"])
            np.testing.assert_allclose(on_grid, values, rtol=1e-6)
            assert scale.size == len(values)
            found["weights"].append(said)
        else:
            assert scale.shape == ()
            found["inputs"].append(said)
    # The first convolution's input is signed, the second's is behind a ReLU, the linear layer's is neither.
    assert found["inputs"] == [(8.0, 1, 0), (4.0, 0, 0), (4.0, 1, 0)]
    assert found["weights"] == [(8.0, 1, 1), (3.0, 1, 1), (3.0, 1, 1)]


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize(("bits", "zero"), [(2, 0), (3, 1), (8, 0)])
def test_the_function_that_comes_along_is_quant(
    exported: bytes, signed: int, narrow: int, bits: int, zero: int
) -> None:
    (definition,) = onnx.load_model_from_string(exported).functions
    node = helper.make_node(
        "Quant", ["x", "scale", "zero", "bits"], ["y"], domain=DOMAIN, signed=signed, narrow=narrow,
        rounding_mode="ROUND",
    )  # fmt: skip
    shapes = {"x": [4, 6], "scale": [4, 1], "zero": [], "bits": []}
    model = helper.make_model(
        helper.make_graph(
            [node],
            "quant",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)],
        functions=[definition],
        ir_version=10,
    )
    scale = np.array([[0.5], [1.0], [2.0], [0.125]], np.float32)
    x = scale * np.array([-300.0, -1.5, 0.5, 1.0, 2.5, 300.0], np.float32)  # beyond the grid, and halves
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": x, "scale": scale, "zero": np.float32(zero), "bits": np.float32(bits)}
    (came,) = session.run(None, {name: np.asarray(value, np.float32) for name, value in feeds.items()})
    np.testing.assert_array_equal(came, quant(x, scale, zero, bits, signed=signed, narrow=narrow))
