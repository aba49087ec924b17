"""Models broken on purpose, and where they are found to part from the whole ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.alignment import Value, aligned
from export.bisect import Bisection, bisect
from export.to_fp16 import fp16_from_onnx
from runtime.errors import ExportError

LAYERS, WIDTH = 4, 6
TOLERANCE = 1e-4


def chain(
    *, suffix: str = "", change: Callable[[dict[str, np.ndarray]], None] | None = None, epsilon: float = 1e-5
) -> bytes:
    """Float images (N, 6, 5, 5), then Conv, BatchNormalization, Relu four times, and a Gemm: `y0`, `n0`, `r0`, ..."""
    generator = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}
    nodes = []
    value = "input"
    for k in range(LAYERS):
        constants[f"w{k}"] = generator.normal(scale=0.2, size=(WIDTH, WIDTH, 3, 3)).astype(np.float32)
        for part, low in (("scale", 0.5), ("bias", -0.5), ("mean", -0.5), ("var", 1e-4)):
            constants[f"{part}{k}"] = generator.uniform(low, low + 1, WIDTH).astype(np.float32)
        nodes.append(helper.make_node("Conv", [value, f"w{k}"], [f"y{k}{suffix}"], pads=[1] * 4))
        norm = [f"{part}{k}" for part in ("scale", "bias", "mean", "var")]
        attributes = {"epsilon": epsilon if k == 2 else 1e-5}
        nodes.append(helper.make_node("BatchNormalization", [f"y{k}{suffix}", *norm], [f"n{k}{suffix}"], **attributes))
        nodes.append(helper.make_node("Relu", [f"n{k}{suffix}"], [f"r{k}{suffix}"]))
        value = f"r{k}{suffix}"
    nodes.append(helper.make_node("Flatten", [value], [f"flat{suffix}"]))
    constants["w"] = generator.normal(scale=0.1, size=(WIDTH * 25, 3)).astype(np.float32)
    nodes.append(helper.make_node("Gemm", [f"flat{suffix}", "w"], ["logits"]))
    if change:
        change(constants)
    return model_of(nodes, constants, (WIDTH, 5, 5))


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(10, WIDTH, 5, 5)).astype(np.float32)


def first_of(found: Bisection) -> tuple[str, str]:
    assert found.first is not None
    return found.first.value, found.first.operator


def test_equal_models_agree_everywhere(rows: np.ndarray) -> None:
    found = bisect(chain(), chain(), rows, tolerance=TOLERANCE)
    assert found.first is None
    assert found.written_agree
    assert (found.traced, found.nodes, found.unpaired) == (10, 14, 0)
    assert {each.error for each in found.values} == {0.0}
    np.testing.assert_array_equal(found.outputs, found.reference_outputs)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("suffix", ["", "_of_another_exporter"])
def test_one_changed_weight_is_found_in_its_layer(rows: np.ndarray, layer: int, suffix: str) -> None:
    def change(constants: dict[str, np.ndarray]) -> None:
        constants[f"w{layer}"][4, 2, 1, 0] += 3

    found = bisect(chain(change=change, suffix=suffix), chain(), rows, tolerance=TOLERANCE)
    assert first_of(found) == (f"y{layer}{suffix}", "Conv")
    assert found.first is not None
    assert (found.first.reference, found.first.node) == (f"y{layer}", 3 * layer)
    (said,) = found.differences
    assert said.startswith(f"its constant 'w{layer}' (input 1) differs in 1 of 324 numbers, most at [4, 2, 1, 0]: ")
    assert not found.written_agree
    # What leads there agrees.
    assert [each.value for each in found.inputs] == ([f"r{layer - 1}{suffix}"] if layer else [])
    assert not any(each.departs for each in found.inputs)


def test_the_error_is_over_the_standard_deviation_of_the_counterpart() -> None:
    def plus(name: str, number: float) -> bytes:
        nodes = [helper.make_node("Add", ["input", "c"], ["sum"]), helper.make_node("Relu", ["sum"], ["logits"])]
        return model_of(nodes, {"c": np.array(number, np.float32)}, (3,))

    rows = np.array([[1, 3, 1], [3, 1, 3]], np.float32)  # deviation 1, all above zero
    found = bisect(plus("c", 0.5), plus("c", 0.25), rows, tolerance=0.2)
    assert first_of(found) == ("sum", "Add")
    assert [(each.error, each.rms_error) for each in found.values] == [(0.25, 0.25)] * 2
    assert bisect(plus("c", 0.5), plus("c", 0.25), rows, tolerance=0.25).first is None


def test_another_epsilon_is_named(rows: np.ndarray) -> None:
    found = bisect(chain(epsilon=1e-3), chain(), rows, tolerance=TOLERANCE)
    assert first_of(found) == ("n2", "BatchNormalization")
    assert found.differences == ("epsilon is 0.001 here and 1e-05 there",)


def transposed(permutation: list[int]) -> bytes:
    nodes = [
        helper.make_node("Transpose", ["input"], ["turned"], perm=permutation),
        helper.make_node("Flatten", ["turned"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"]),
    ]
    weight = np.random.default_rng(0).normal(size=(5 * 5 * WIDTH, 3)).astype(np.float32)
    return model_of(nodes, {"w": weight}, (5, 5, WIDTH))


def test_a_transposed_input_is_found_at_its_transposition() -> None:
    rows = np.random.default_rng(1).normal(size=(6, 5, 5, WIDTH)).astype(np.float32)
    found = bisect(transposed([0, 3, 2, 1]), transposed([0, 3, 1, 2]), rows, tolerance=TOLERANCE)
    assert first_of(found) == ("turned", "Transpose")
    assert found.differences == ("perm is [0, 3, 2, 1] here and [0, 3, 1, 2] there",)
    other = bisect(transposed([0, 1, 2, 3]), transposed([0, 3, 1, 2]), rows, tolerance=TOLERANCE)
    assert other.first is not None
    assert (other.first.error, other.first.shape) == (np.inf, (2, 5, 5, 6))
    json.dumps(other.to_json(), allow_nan=False)


def test_a_folded_batch_norm_is_no_departure(rows: np.ndarray) -> None:
    """The convolution alone differs, and nothing that follows; the broken layer behind it is still found."""
    model = onnx.load_model_from_string(chain())
    constants = {each.name: numpy_helper.to_array(each).copy() for each in model.graph.initializer}
    factor = constants["scale1"] / np.sqrt(constants["var1"] + 1e-5)
    constants["w1"] = constants["w1"] * factor[:, None, None, None]
    constants["b1"] = constants["bias1"] - constants["mean1"] * factor
    nodes = [each for each in model.graph.node if list(each.output) != ["n1"]]
    nodes[3] = helper.make_node("Conv", ["r0", "w1", "b1"], ["y1"], pads=[1] * 4)
    nodes[4] = helper.make_node("Relu", ["y1"], ["r1"])
    folded = bisect(model_of(nodes, constants, (WIDTH, 5, 5)), chain(), rows, tolerance=TOLERANCE)
    assert folded.first is None
    assert [each.value for each in folded.values if each.departs] == ["y1"]
    constants["w3"][0, 0, 0, 0] += 3
    assert first_of(bisect(model_of(nodes, constants, (WIDTH, 5, 5)), chain(), rows, tolerance=TOLERANCE))[0] == "y3"


def test_a_node_that_the_reference_lacks_is_named(rows: np.ndarray) -> None:
    model = onnx.load_model_from_string(chain())
    nodes = list(model.graph.node)
    nodes[5:5] = [helper.make_node("Mul", ["n1", "two"], ["twice"])]
    nodes[6].input[0] = "twice"
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    broken = model_of(nodes, constants | {"two": np.array(2, np.float32)}, (WIDTH, 5, 5))
    found = bisect(broken, chain(), rows, tolerance=TOLERANCE)
    assert first_of(found) == ("r1", "Relu")
    assert found.between == ("Mul 'twice'",)
    assert [each.value for each in found.inputs] == ["n1"]


def test_values_that_are_not_finite_depart(rows: np.ndarray) -> None:
    def change(constants: dict[str, np.ndarray]) -> None:
        constants["var2"][1] = -1

    found = bisect(chain(change=change), chain(), rows, tolerance=1e9)
    assert first_of(found) == ("n2", "BatchNormalization")
    assert found.first is not None
    assert found.first.error == np.inf


def test_half_precision_copies_are_paired_by_their_names(exported: Any) -> None:
    half, rows = fp16_from_onnx(exported.model), exported.images(8)
    found = bisect(half, exported.model, rows, tolerance=2e-2)
    assert found.first is None
    assert {each.how for each in found.values} == {"name", "suffix"}
    assert 1e-6 < max(each.error for each in found.values) < 2e-2
    broken = onnx.load_model_from_string(half)
    weight = next(each for each in broken.graph.initializer if "classifier.weight" in each.name)
    changed = numpy_helper.to_array(weight).copy()
    changed[0] *= -1
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    found = bisect(broken.SerializeToString(), exported.model, rows, tolerance=2e-2)
    assert found.first is not None
    assert found.first.operator == "Gemm"
    assert found.first.value == f"{found.first.reference}.half"


def test_the_table_keeps_first_and_last(rows: np.ndarray) -> None:
    def change(constants: dict[str, np.ndarray]) -> None:
        constants["w0"][0, 0, 1, 1] += 3

    found = bisect(chain(change=change), chain(), rows, tolerance=TOLERANCE)
    largest = found.largest(5)
    assert [each.value for each in (largest[0], largest[-1])] == ["y0", "logits"]
    assert len(largest) == 5
    assert [each.node for each in largest] == sorted(each.node for each in largest)


def test_models_of_other_inputs_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"takes tensor\(float\) .* and b takes .*: they cannot run on the same rows"):
        bisect(chain(), transposed([0, 3, 1, 2]), rows, tolerance=TOLERANCE, names=("a", "b"))
    with pytest.raises(ExportError, match="a: not a whole ONNX model"):
        bisect(b"\x08\x0a\x12", chain(), rows, tolerance=TOLERANCE, names=("a", "b"))
    with pytest.raises(ExportError, match=r"a: does not run on float32 \[4, 7\]"):
        bisect(chain(), chain(), np.zeros((4, 7), np.float32), tolerance=TOLERANCE, names=("a", "b"))


def test_whole_numbers_of_a_quantised_value_stand_for_no_real_ones() -> None:
    ours = [Value("y.int8", "QuantizeLinear", (2, 3), real=False), value("y.float", "DequantizeLinear", 2, 3)]
    assert [(each.value, each.reference) for each in aligned(ours, [value("y", "Relu", 2, 3)])] == [(1, 0)]


def test_all_rows_are_judged_and_the_worst_are_traced() -> None:
    def less(threshold: float) -> bytes:
        nodes = [helper.make_node("Clip", ["input", "", "most"], ["logits"])]
        return model_of(nodes, {"most": np.array(threshold, np.float32)}, (3,))

    rows = np.zeros((200, 3), np.float32)
    rows[150] = [0, 0, 9]  # the only one that is cut
    found = bisect(less(5), less(10), rows, tolerance=TOLERANCE)
    assert (len(found.outputs), found.traced) == (200, 64)
    assert first_of(found) == ("logits", "Clip")


def value(name: str, operator: str, *shape: int) -> Value:
    return Value(name, operator, shape)


def test_order_pairs_one_operator_before_one_shape() -> None:
    ours = [value("a", "Conv", 2, 3), value("b", "Relu", 2, 3), value("c", "Gemm", 2, 5)]
    theirs = [
        value("1", "Conv", 2, 3), value("2", "BatchNormalization", 2, 3), value("3", "Relu", 2, 3),
        value("4", "MatMul", 2, 5), value("5", "Add", 2, 5),
    ]  # fmt: skip
    pairs = [(ours[each.value].name, theirs[each.reference].name, each.how) for each in aligned(ours, theirs)]
    # Of a product and the sum that follows, both of one shape, it is the sum that a Gemm is.
    assert pairs == [("a", "1", "order"), ("b", "3", "order"), ("c", "5", "order")]


def test_equal_names_of_unlike_values_are_an_accident() -> None:
    ours = [value("7", "Conv", 2, 3), value("8", "Relu", 2, 3)]
    theirs = [value("6", "Conv", 2, 3), value("7", "Relu", 2, 4), value("8", "Relu", 2, 3)]
    assert [(each.value, each.reference, each.how) for each in aligned(ours, theirs)] == [
        (0, 0, "order"),
        (1, 2, "name"),
    ]
