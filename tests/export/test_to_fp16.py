"""Half precision: what becomes float16, what stays, and what does not fit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.parity import GATES, compare
from export.to_fp16 import fp16_from_onnx
from runtime.engine_build import engine_from_onnx
from runtime.engine_file import EngineTensor
from runtime.errors import ExportError


def parsed(model: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(model)


def constants(model: bytes) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in parsed(model).graph.initializer}


def run(model: bytes, rows: np.ndarray, *names: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(list(names) or ["logits"], {"input": rows})


def types_of(model: bytes) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(parsed(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {each.name: each.type.tensor_type.elem_type for each in values}


@pytest.fixture(scope="module")
def half(exported: Any) -> bytes:
    return fp16_from_onnx(exported.model)


def test_it_meets_the_gate_and_has_the_same_inputs_and_outputs(exported: Any, half: bytes) -> None:
    images = exported.images(256)
    reference = exported.torch_outputs(images)[0]
    logits, probabilities = run(half, images, "logits", "subclass_probabilities")
    comparison = compare(reference, logits, reference.argmax(axis=1), GATES["fp16"])
    assert comparison.passed, comparison.reasons
    assert logits.dtype == probabilities.dtype == np.float32
    assert list(parsed(half).graph.input) == list(parsed(exported.model).graph.input)
    assert list(parsed(half).graph.output) == list(parsed(exported.model).graph.output)


def test_products_are_float16_and_scaling_and_fold_float32(half: bytes) -> None:
    types, found = types_of(half), constants(half)
    for node in parsed(half).graph.node:
        if node.op_type in ("Conv", "Gemm", "Relu"):
            assert types[node.output[0]] == TensorProto.FLOAT16
        if node.op_type in ("Conv", "Gemm"):
            assert found[node.input[1]].dtype == found[node.input[2]].dtype == np.float16
        if node.op_type in ("Mul", "ReduceMax", "Sub", "Exp", "ReduceSum", "Log", "Softmax"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.op_type
    assert found["preprocess.scale"].dtype == np.float32
    assert Counter(node.op_type for node in parsed(half).graph.node)["Cast"] == 3  # of the pixels, in, and out


def test_bytes_are_the_same_each_time_and_fewer(exported: Any, half: bytes) -> None:
    assert fp16_from_onnx(exported.model) == half
    weights = constants(exported.model)["student.classifier.weight"].nbytes
    assert len(half) < len(exported.model) - weights / 2


def model_of(weight: np.ndarray, *nodes: onnx.NodeProto, **others: np.ndarray) -> bytes:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["input", "student.weight"], ["logits"])],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(each, name) for name, each in {"student.weight": weight, **others}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_weights_are_rounded_once_to_the_nearest() -> None:
    weight = np.array([[1 / 3, 2.0], [1e-3, -65504.0]], np.float32)
    found = constants(fp16_from_onnx(model_of(weight)))
    assert (found["student.weight.half"] == weight.astype(np.float16)).all()


@pytest.mark.parametrize("value", [65536.0, -70000.0, np.nan])
def test_weights_beyond_float16_are_refused(value: float) -> None:
    weight = np.array([[1.0, 2.0], [3.0, value]], np.float32)
    with pytest.raises(ExportError, match=r"student\.weight has values up to .*, and float16 ends at 65504") as caught:
        fp16_from_onnx(model_of(weight))
    assert "Leave fp16 out of the formats" in caught.value.remedy


def test_masks_of_minus_infinity_stay_finite() -> None:
    # As in attention: a softmax of a row that is masked as a whole gives equal shares and not NaN.
    lowest = np.array(np.finfo(np.float32).min, np.float32)
    nodes = [
        helper.make_node("MatMul", ["input", "student.weight"], ["scores"]),
        helper.make_node("Less", ["input", "zero"], ["masked"]),
        helper.make_node("Where", ["masked", "lowest", "zero"], ["mask"]),
        helper.make_node("Add", ["scores", "mask"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["shares"], axis=1),
        helper.make_node("MatMul", ["shares", "student.weight"], ["logits"]),
    ]
    half = fp16_from_onnx(model_of(np.eye(2, dtype=np.float32), *nodes, zero=np.zeros((), np.float32), lowest=lowest))
    (logits,) = run(half, np.array([[-1, -1], [-1, 3]], np.float32))
    np.testing.assert_allclose(logits, [[0.5, 0.5], [0.0, 1.0]], atol=1e-3)


def test_operators_without_float16_are_named() -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "student.weight"], ["middle"]),
        helper.make_node("StringConcat", ["middle", "middle"], ["strange"]),
        helper.make_node("MatMul", ["strange", "student.weight"], ["logits"]),
    ]
    with pytest.raises(ExportError, match=r"cannot be written in float16: .*StringConcat"):
        fp16_from_onnx(model_of(np.eye(2, dtype=np.float32), *nodes))


@pytest.mark.parametrize("capability", ["sm75", "sm86"])
def test_tensorrt_rtx_builds_it(half: bytes, capability: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    engine = engine_from_onnx(half, compute_capability=capability, module="tensorrt_rtx")
    assert engine.inputs == (EngineTensor("input", "uint8", (-1, 6, 5, 2)),)
    assert {each.dtype for each in engine.outputs} == {"float32"}
