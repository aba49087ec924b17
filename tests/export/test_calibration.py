"""Ranges of activations, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.calibration import Magnitudes, magnitudes_of, outputs_of
from runtime.errors import ExportError


def doubling(operator: str = "Add") -> onnx.ModelProto:
    """`middle` is input + input (or another operator of it with itself), `logits` its negative."""
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["input", "input"], ["middle"]),
            helper.make_node("Neg", ["middle"], ["logits"]),
        ],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "unused")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_magnitudes_are_counted_over_all_batches_and_without_zeros() -> None:
    rows = np.zeros((70, 2), np.float32)  # more than two batches
    rows[0, 0], rows[40, 1], rows[69, 0] = 1.0, -4.0, 2.0
    found = magnitudes_of(doubling(), ["middle", "logits"], rows)
    assert list(found) == ["middle", "logits"]
    for each in found.values():
        assert each.largest == 8.0
        assert each.counts.sum() == 3
        assert each.counts[-1] == 1  # the largest one itself
        assert each.counts[len(each.counts) // 4] == each.counts[len(each.counts) // 2] == 1


def test_outputs_keep_the_order_of_rows() -> None:
    rows = np.arange(140, dtype=np.float32).reshape(70, 2)
    (logits,) = outputs_of(doubling(), ["logits"], rows)
    assert (logits == -2 * rows).all()


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ExportError, match="calibration: middle is not finite on real rows"):
        magnitudes_of(doubling("Div"), ["middle"], np.zeros((3, 2), np.float32))


def counts(**at: int) -> np.ndarray:
    """2,048 bins that are empty but for those given: `b7=3` puts 3 into bin 7."""
    made = np.zeros(2048, np.int64)
    for name, count in at.items():
        made[int(name[1:])] = count
    return made


def test_minmax_reaches_to_the_largest() -> None:
    assert Magnitudes(3.0, counts(b0=10, b2047=1)).reach("minmax") == 3.0


def test_percentile_leaves_out_one_in_ten_thousand() -> None:
    # 99,990 of 100,000 values are at most in bin 511, a quarter of the way.
    assert Magnitudes(8.0, counts(b3=50_000, b511=49_990, b2047=10)).reach("percentile") == 2.0
    assert Magnitudes(8.0, counts(b3=50_000, b511=49_980, b2047=20)).reach("percentile") == 8.0


def test_entropy_cuts_a_far_outlier_off_and_keeps_what_is_even() -> None:
    bell = np.round(10_000 * np.exp(-np.square(np.arange(2048) / 150))).astype(np.int64)
    bell[2047] = 1
    assert 0.1 < Magnitudes(1.0, bell).reach("entropy") < 0.5
    even = np.full(2048, 100)
    assert Magnitudes(1.0, even).reach("entropy") > 0.9


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_dead_tensor_reaches_nowhere_and_one_value_everywhere(method: str) -> None:
    assert Magnitudes(0.0, counts()).reach(method) == 0.0
    assert Magnitudes(5.0, counts(b2047=7)).reach(method) == 5.0
