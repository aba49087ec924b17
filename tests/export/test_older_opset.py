"""Models in earlier opsets: the same values, valid files, and refusals that say what is in the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

from export.calibration import outputs_of
from export.older_operators import REWRITES
from export.older_opset import _FUNCTIONS_SINCE, at_opset
from export.opsets import LEAST_OPSET, OPSET
from export.parity import GATES, compare
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.to_qonnx import DOMAIN, _definition
from runtime import onnx_support
from runtime.errors import ExportError

IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}  # of the releases of onnx that brought them
DTYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.int64: TensorProto.INT64}


def model_of(
    operator: str,
    *,
    dtype: Any = np.float32,
    result: Any = None,
    outputs: int = 1,
    constants: Any = (),
    **attributes: Any,
) -> bytes:
    """Return a model of one node: `x` (N, 3, 4), then constants, of which None is an absent input."""
    named = {f"c{i}": np.asarray(each) for i, each in enumerate(constants) if each is not None}
    inputs = ["x", *("" if each is None else f"c{i}" for i, each in enumerate(constants))]
    names = [f"y{i}" for i in range(outputs)]
    kind, given = DTYPES[result or dtype], DTYPES[dtype]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, names, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", given, ["N", 3, 4])],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
        [numpy_helper.from_array(value, name) for name, value in named.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {"edgefold.name": "one"})
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def run(model: bytes, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, {"x": x})
    return results


SCALE, BIAS = np.array([1.0, -2.0, 0.5, 3.0], np.float32), np.array([0.5, 0.0, -1.0, 2.0], np.float32)
NEW = {
    "LayerNormalization": model_of("LayerNormalization", constants=[SCALE, BIAS], epsilon=1e-3),
    "LayerNormalization, no bias": model_of("LayerNormalization", constants=[SCALE]),
    "LayerNormalization, two axes": model_of("LayerNormalization", constants=[np.ones((3, 4), np.float32)], axis=1),
    "LayerNormalization, half": model_of(
        "LayerNormalization", dtype=np.float16, constants=[SCALE.astype(np.float16), BIAS.astype(np.float16)]
    ),
    "Gelu": model_of("Gelu"),
    "Gelu, tanh": model_of("Gelu", approximate="tanh"),
    "Gelu, half": model_of("Gelu", dtype=np.float16),
    "Gelu, tanh, half": model_of("Gelu", dtype=np.float16, approximate="tanh"),
    "HardSwish": model_of("HardSwish"),
    "Mish": model_of("Mish"),
    "ReduceMax": model_of("ReduceMax", constants=[np.array([2])], keepdims=0),
    "ReduceMean, two axes": model_of("ReduceMean", constants=[np.array([-1, 1])]),
    "ReduceMean, all": model_of("ReduceMean", keepdims=0),
    "ReduceMin, none": model_of("ReduceMin", constants=[np.array([], np.int64)], noop_with_empty_axes=1),
    "ReduceSum": model_of("ReduceSum", constants=[np.array([1])]),
    "Split, uneven": model_of("Split", outputs=2, axis=1, num_outputs=2),
    "Split, from behind": model_of("Split", outputs=2, axis=-1, num_outputs=2),
    "Split, by sizes": model_of("Split", constants=[np.array([1, 3])], outputs=2, axis=2),
    "Pad": model_of("Pad", constants=[np.array([1, 0, 2, 1]), np.array(7, np.float32), np.array([1, 2])]),
    "Pad, from behind": model_of("Pad", constants=[np.array([1, 2]), None, np.array([-1])]),
    "Pad, reflected": model_of("Pad", constants=[np.array([0, 0, 1, 0, 0, 2])], mode="reflect"),
    "Shape": model_of("Shape", result=np.int64),
    "Shape, a piece": model_of("Shape", result=np.int64, start=1, end=-1),
    "Shape, to the end": model_of("Shape", result=np.int64, start=-2),
    "Reshape": model_of("Reshape", constants=[np.array([-1, 12])], allowzero=1),
    "Cast": model_of("Cast", result=np.float16, to=TensorProto.FLOAT16, saturate=1),
    "Relu": model_of("Relu"),
    "Where": model_of("PRelu", constants=[SCALE]),
}  # fmt: skip


@pytest.mark.parametrize("opset", sorted(IR_VERSIONS))
@pytest.mark.parametrize("name", NEW)
def test_an_operator_gives_the_same_values_in_every_opset(name: str, opset: int) -> None:
    x = np.random.default_rng(0).normal(scale=2, size=(5, 3, 4))
    x = x.astype(np.float16 if "half" in name else np.float32)
    older = at_opset(NEW[name], opset)
    written = onnx.load_model_from_string(older)
    assert ([each.version for each in written.opset_import], written.ir_version) == ([opset], IR_VERSIONS[opset])
    operators = {node.op_type: node for node in written.graph.node}
    for operator, node in operators.items():  # nothing of a later opset, though engines may not mind
        assert {each.name for each in node.attribute} <= set(defs.get_schema(operator, opset).attributes)
    assert {each.name for each in written.graph.initializer} <= {name for n in written.graph.node for name in n.input}
    assert {each.key: each.value for each in written.metadata_props} == {"edgefold.name": "one"}
    for came, expected in zip(run(older, x), run(NEW[name], x), strict=True):
        assert (came.dtype, came.shape) == (expected.dtype, expected.shape)
        tolerance = {"rtol": 2e-3, "atol": 2e-3} if came.dtype == np.float16 else {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(came, expected, **tolerance)
    assert at_opset(NEW[name], opset) == older


def test_layer_normalization_is_the_formula() -> None:
    x = np.random.default_rng(1).normal(3, 2, (2, 3, 4)).astype(np.float32)
    expected = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-3) * SCALE + BIAS
    np.testing.assert_allclose(run(at_opset(NEW["LayerNormalization"], 13), x)[0], expected, rtol=1e-5, atol=1e-5)


def test_half_precision_takes_its_statistics_in_float32() -> None:
    # The squares of such differences are beyond float16.
    x = np.array([[[-600.0, 600.0, -600.0, 600.0]] * 3], np.float16)
    came = run(at_opset(NEW["LayerNormalization, half"], 13), x)[0]
    np.testing.assert_allclose(came[0, 0], np.array([-1, 1, -1, 1]) * SCALE + BIAS, rtol=1e-3)


def test_a_gemm_without_bias_gets_one() -> None:
    weight = np.arange(8, dtype=np.float32).reshape(2, 4)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    x = np.ones((3, 4), np.float32)
    for opset, inputs in ((17, 3), (18, 2)):
        older = at_opset(model.SerializeToString(), opset)
        assert len(onnx.load_model_from_string(older).graph.node[0].input) == inputs
        np.testing.assert_array_equal(run(older, x)[0], x @ weight.T)


@pytest.mark.parametrize(
    ("model", "opset", "said"),
    [
        (model_of("Trilu"), 13, "Trilu is an operator from opset 14 on, and opset 13 is asked for"),
        (model_of("Pad", constants=[np.array([1, 1]), None, np.array([1])], mode="wrap"), 17, "Pad wraps around"),
        (
            model_of("AveragePool", kernel_shape=[2], dilations=[2]),
            18,
            "AveragePool's dilations is an attribute from opset 19 on",
        ),
        (model_of("Reshape", constants=[np.array([0, 3, 4])], allowzero=1), 13, "allowzero"),
        (
            model_of("ReduceL1", constants=[np.array([], np.int64)], noop_with_empty_axes=1),
            17,
            "ReduceL1 reduces no axis",
        ),
        (model_of("LayerNormalization", constants=[SCALE], outputs=2), 13, "gives its statistics"),
        (model_of("Relu"), 12, "opset 12 for a model of opset 20"),
        (model_of("Relu"), 21, "opset 21 for a model of opset 20"),
    ],
)
def test_what_has_no_equal_is_refused(model: bytes, opset: int, said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        at_opset(model, opset)
    assert caught.value.remedy


def test_an_operator_of_another_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.older_opset._SAME", frozenset())
    with pytest.raises(ExportError, match="Relu has its meaning from opset 14 on"):
        at_opset(model_of("Relu"), 13)


def test_rewrites_begin_where_the_operator_changed() -> None:
    for operator, (first, _) in REWRITES.items():
        since = defs.get_schema(operator, OPSET).since_version
        assert first <= since or operator in ("Gemm", "Reshape"), operator  # those for engines that take them amiss
        assert LEAST_OPSET < first <= OPSET


@pytest.mark.parametrize("opset", [13, 17, 19])
def test_every_form_of_a_classifier_meets_its_gate(parts: dict[str, Any], opset: int) -> None:
    inputs, labels = parts["inputs"], parts["labels"]
    forms = {"fp32": parts["onnx"], "fp16": fp16_from_onnx(parts["onnx"])}
    for form in ("signed", "cpu"):
        forms[f"int8 {form}"] = int8_from_onnx(
            parts["onnx"], inputs, inputs, labels, gate=GATES["int8"], method="minmax", form=form
        ).model
    for name, model in forms.items():
        older = at_opset(model, opset)
        before, after = onnx.load_model_from_string(model), onnx.load_model_from_string(older)
        assert (list(after.graph.input), list(after.graph.output)) == (
            list(before.graph.input),
            list(before.graph.output),
        )
        logits = outputs_of(older, ["logits"], inputs)[0]
        assert compare(parts["logits"], logits, labels, GATES[name.split(" ")[0]]).reasons == ()


def test_the_device_side_offers_nothing_that_cannot_be_exported() -> None:
    assert onnx_support._LEAST_OPSET == LEAST_OPSET
    assert onnx_support.LEAST_OPSETS["qonnx"][0] == _FUNCTIONS_SINCE
    assert LEAST_OPSET <= onnx_support._OFFERED <= OPSET


def test_functions_of_a_model_come_along() -> None:
    constants = {"step": 0.5, "zero": 0.0, "bits": 3.0}
    graph = helper.make_graph(
        [helper.make_node("Quant", ["x", *constants], ["y"], domain=DOMAIN, signed=1, narrow=0, rounding_mode="ROUND")],
        "quant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.functions.append(_definition(OPSET))
    older = at_opset(model.SerializeToString(), 15)
    (function,) = onnx.load_model_from_string(older).functions
    assert [(each.domain, each.version) for each in function.opset_import] == [("", 15)]
    x = np.array([[-9.0, -0.6, 0.3, 9.0]], np.float32)
    np.testing.assert_array_equal(run(older, x)[0], [[-2.0, -0.5, 0.5, 1.5]])
    with pytest.raises(ExportError, match="Quant, a function, can be part of a model from opset 15 on"):
        at_opset(model.SerializeToString(), 14)
