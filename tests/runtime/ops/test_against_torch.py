"""Packed layers in ONNX Runtime against PyTorch's float convolutions of signs, on every instruction set: to the bit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import onnx
import ops_builds
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from packed_reference import packed_signs
from torch.nn import functional as F

from export.to_packed import packed_weights

INSTRUCTION_SETS = ("avx512_vpopcntdq", "avx512", "avx2", "popcnt", "neon", "portable")
# EDGEFOLD_CASES=2000 for a longer search than the tests of every day have time for.
CASES = int(os.environ.get("EDGEFOLD_CASES", "40"))
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45], np.float32)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request, monkeypatch):
    import onnxruntime

    monkeypatch.setenv("EDGEFOLD_ISA", request.param)
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(ops_builds.operators()))
    except Exception as error:
        pytest.skip(str(error))
    return request.param


@dataclass(frozen=True)
class Case:
    """A convolution; sizes and pads are (height, width) and (top, left, bottom, right)."""

    batch: int
    size: tuple[int, int]
    group: int
    each: int
    outputs_each: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    pad_value: int
    threads: int
    seed: int

    @property
    def fits(self) -> bool:
        top, left, bottom, right = self.pads
        room = (self.size[0] + top + bottom, self.size[1] + left + right)
        return all(d * (k - 1) < r for d, k, r in zip(self.dilations, self.kernel, room, strict=True))


def pairs(most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, most), st.integers(1, most))


CONVOLUTIONS = st.builds(
    Case,
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(1, 16), st.integers(1, 33)),
    group=st.sampled_from((1, 1, 1, 2, 3)),
    each=st.one_of(st.integers(1, 70), st.integers(1, 520)),
    outputs_each=st.integers(1, 40),
    kernel=pairs(7),
    strides=pairs(3),
    dilations=pairs(2),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    pad_value=st.sampled_from((0, 0, 1, -1)),
    threads=st.sampled_from((1, 2)),
    seed=st.integers(0, 2**32 - 1),
).filter(lambda case: case.fits)


def run(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], x: np.ndarray, threads: int) -> list[np.ndarray]:
    import onnxruntime

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * x.ndim)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim),
            helper.make_tensor_value_info("signs", TensorProto.UINT32, [None] * x.ndim),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edgefold", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(ops_builds.operators()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def sign(x: np.ndarray) -> torch.Tensor:
    return torch.where(torch.from_numpy(x) >= 0, 1.0, -1.0)


@given(case=CONVOLUTIONS)
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_are_those_of_a_float_convolution_of_signs(isa: str, case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    channels, outputs = case.group * case.each, case.group * case.outputs_each
    x = rng.standard_normal((case.batch, *case.size, channels)).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.1, rng.choice(SPECIAL, x.shape), x)
    weight = rng.choice(np.float32([-1, 1]), (outputs, case.each, *case.kernel))
    constants = {
        "w": packed_weights(weight), "one": np.ones(outputs, np.float32), "zero": np.zeros(outputs, np.float32),
    }  # fmt: skip
    convolution = helper.make_node(
        "BinaryConv", ["bits", "w", "one", "zero"], ["y", "signs"], domain="edgefold", channels=channels,
        strides=case.strides, dilations=case.dilations, pads=case.pads, pad_value=case.pad_value, group=case.group,
    )  # fmt: skip
    binarize = helper.make_node("Binarize", ["x"], ["bits"], domain="edgefold", group=case.group)
    y, signs = run([binarize, convolution], constants, x, case.threads)

    top, left, bottom, right = case.pads
    image = F.pad(sign(x).permute(0, 3, 1, 2), (left, right, top, bottom), value=float(case.pad_value))
    expected = F.conv2d(
        image, torch.from_numpy(weight), stride=case.strides, dilation=case.dilations, groups=case.group
    )
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(signs, packed_signs(expected, 1))


@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 520),
    outputs=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_linear_layers_are_those_of_signs(isa: str, batch: int, channels: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, channels)).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.1, rng.choice(SPECIAL, x.shape), x)
    weight = rng.choice(np.float32([-1, 1]), (outputs, channels))
    scale, bias = rng.standard_normal((2, outputs)).astype(np.float32)
    constants = {"w": packed_weights(weight), "scale": scale, "bias": bias}
    nodes = [
        helper.make_node("Binarize", ["x"], ["bits"], domain="edgefold"),
        helper.make_node(
            "BinaryGemm", ["bits", "w", "scale", "bias"], ["y", "signs"], domain="edgefold", channels=channels
        ),
    ]
    y, signs = run(nodes, constants, x, 1)
    expected = (sign(x) @ torch.from_numpy(weight).T).numpy() * scale
    expected = expected + bias
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(signs, packed_signs(expected, 1))
