"""bfloat16: what the file holds, what is refused, and the float32 model that computes what the file does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.parity import GATES, compare
from export.to_bf16 import bf16_from_onnx, widened_from_bf16
from runtime.engine_build import engine_from_onnx
from runtime.engine_file import EngineTensor
from runtime.errors import ExportError


@pytest.fixture(scope="module")
def half(exported: Any) -> bytes:
    return bf16_from_onnx(exported.model)


def run(model: bytes, rows: np.ndarray, *names: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(list(names) or ["logits"], {"input": rows})


def model_of(weight: np.ndarray, *nodes: onnx.NodeProto, opset: int = 20, **others: np.ndarray) -> bytes:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["input", "weight"], ["logits"])],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(each, name) for name, each in {"weight": weight, **others}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def test_products_are_bfloat16_of_opset_22_and_the_ends_are_as_before(exported: Any, half: bytes) -> None:
    before, parsed = (onnx.load_model_from_string(model) for model in (exported.model, half))
    assert [(each.domain, each.version) for each in parsed.opset_import] == [("", 22)]
    assert (list(parsed.graph.input), list(parsed.graph.output)) == (
        list(before.graph.input),
        list(before.graph.output),
    )
    kinds = {each.name: each.data_type for each in parsed.graph.initializer}
    for node in parsed.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [kinds[name] for name in node.input[1:]] == [TensorProto.BFLOAT16] * 2
    assert kinds["preprocess.scale"] == TensorProto.FLOAT
    assert Counter(node.op_type for node in parsed.graph.node)["Cast"] == 3  # of the pixels, in, and out
    assert bf16_from_onnx(exported.model) == half


def test_the_arithmetic_meets_its_gate(exported: Any, half: bytes) -> None:
    images = exported.images(256)
    reference = exported.torch_outputs(images)[0]
    logits, probabilities = run(widened_from_bf16(half), images, "logits", "subclass_probabilities")
    comparison = compare(reference, logits, reference.argmax(axis=1), GATES["bf16"])
    assert comparison.passed, comparison.reasons
    # Eight bits are fewer than the gate of fp16 bears: a widened model that rounds nothing would pass that one.
    assert comparison.max_error_over_std is not None
    assert comparison.max_error_over_std > 2e-3
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_widened_model_computes_what_the_file_says(exported: Any, half: bytes) -> None:
    images = exported.images(32)
    (ours,) = run(widened_from_bf16(half), images)
    (reference,) = ReferenceEvaluator(onnx.load_model_from_string(half)).run(["logits"], {"input": images})
    # The evaluator adds in bfloat16 where ours adds in float32, so they differ by roundings.
    assert np.abs(ours - reference).max() < 2e-2 * reference.std()


def test_every_result_is_rounded() -> None:
    # 257 = 2^8 + 1 is a tie of bfloat16's 8 bits between 256 and 258, and goes to the even 256.
    nodes = [
        helper.make_node("MatMul", ["input", "weight"], ["middle"]),
        helper.make_node("Add", ["middle", "one"], ["sum"]),
        helper.make_node("MatMul", ["sum", "weight"], ["logits"]),
    ]
    model = model_of(np.eye(2, dtype=np.float32), *nodes, one=np.ones(2, np.float32))
    (logits,) = run(widened_from_bf16(bf16_from_onnx(model)), np.array([[256, 4]], np.float32))
    assert logits.tolist() == [[256, 5]]


def test_weights_are_rounded_once_to_the_nearest() -> None:
    weight = np.array([[1 / 3, 1e30], [1e-30, -2.5]], np.float32)
    parsed = onnx.load_model_from_string(bf16_from_onnx(model_of(weight)))
    (found,) = (numpy_helper.to_array(each) for each in parsed.graph.initializer)
    assert (found.astype(np.float32) == weight.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_nan_and_operators_of_another_meaning_are_refused() -> None:
    with pytest.raises(ExportError, match=r"weight has values up to .*, and bfloat16 ends at 3\.38953e\+38") as caught:
        bf16_from_onnx(model_of(np.full((2, 2), np.nan, np.float32)))
    assert "Leave bf16 out of the formats" in caught.value.remedy
    nodes = [
        helper.make_node("MatMul", ["input", "weight"], ["middle"]),
        helper.make_node("GroupNormalization", ["middle", "one", "one"], ["logits"], num_groups=1),
    ]
    with pytest.raises(ExportError, match="GroupNormalization of opset 20 is not the one of opset 22"):
        bf16_from_onnx(model_of(np.eye(2, dtype=np.float32), *nodes, one=np.ones(1, np.float32)))


def test_tensorrt_rtx_builds_it_for_gpus_that_have_it(half: bytes) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    engine = engine_from_onnx(half, compute_capability="sm86", module="tensorrt_rtx")
    assert engine.inputs == (EngineTensor("input", "uint8", (-1, 6, 5, 2)),)
    (convolution,) = (layer for layer in engine.layers if "correlation" in layer.kind)
    assert {*convolution.inputs, *convolution.constants[:1]} == {"BFloat16"}
    with pytest.raises(ExportError, match=r"cannot build the model:\n.*HW-specific datatypes: b16"):
        engine_from_onnx(half, compute_capability="sm75", module="tensorrt_rtx")
