"""The engine builder: what it refuses and says, by TensorRT-RTX where it is installed and by stand-ins where not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
import stand_in_tensorrt
from onnx import TensorProto, helper, numpy_helper

from runtime import buildable, engine_build, tensorrt_library
from runtime.buildable import require_buildable
from runtime.cuda import CudaDevice
from runtime.engine_build import engine_from_onnx
from runtime.engine_file import EngineTensor
from runtime.errors import BundleError, ExportError, MissingExtraError
from runtime.tensorrt_library import tensorrt_module

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


@pytest.fixture
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")


def model(
    *nodes: onnx.NodeProto,
    axes: tuple[int | str, ...] = ("batch", 4),
    outputs: tuple[int | str, ...] = ("batch", 3),
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    """Return a model of `nodes` from `input` to `logits`; `weight` (4, 3) can be read by them."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["input", "weight"], ["logits"])],
        "graph",
        [helper.make_tensor_value_info("input", dtype, axes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return made.SerializeToString()


@pytest.mark.usefixtures("rtx")
def test_engine_says_what_it_takes_and_gives() -> None:
    engine = engine_from_onnx(model(), batch_sizes=[64, 1, 8], compute_capability="sm86", module="tensorrt_rtx")
    assert engine.inputs == (EngineTensor("input", "float32", (-1, 4)),)
    assert engine.outputs == (EngineTensor("logits", "float32", (-1, 3)),)
    assert engine.batch_sizes == (1, 8, 64)
    assert (engine.module, engine.compute_capability) == ("tensorrt_rtx", "sm86")
    assert all(row.tobytes() in engine.plan for row in WEIGHT)


@pytest.mark.usefixtures("rtx")
def test_same_model_gives_the_same_engine_and_options_change_it() -> None:
    def plan(**options: object) -> bytes:
        return engine_from_onnx(model(), module="tensorrt_rtx", **options).plan  # type: ignore[arg-type]

    reference = plan(compute_capability="sm86")
    # RTX 1.7 numbers something inside a plan anew in one build of twenty or so: four bytes differ then.
    again = plan(compute_capability="sm86")
    assert len(again) == len(reference)
    assert (np.frombuffer(again, np.uint8) != np.frombuffer(reference, np.uint8)).sum() < 100
    others = [plan(), plan(compute_capability="sm89"), plan(compute_capability="sm86", tf32=True)]
    others.append(plan(compute_capability="sm86", batch_sizes=[1]))
    assert len({reference, *others}) == 5


@pytest.mark.usefixtures("rtx")
def test_what_tensorrt_reports_is_in_the_error() -> None:
    # uint8 may be cast, and nothing else be done with it.
    transpose = helper.make_node("Transpose", ["input"], ["turned"], perm=[1, 0])
    cast = helper.make_node("Cast", ["turned"], ["logits"], to=TensorProto.FLOAT)
    with pytest.raises(ExportError, match=r"tensorrt_rtx 1.* cannot (read|build) the model:\n") as caught:
        engine_from_onnx(
            model(transpose, cast, outputs=(4, "batch"), dtype=TensorProto.UINT8),
            compute_capability="sm86",
            module="tensorrt_rtx",
        )
    assert "UInt8" in caught.value.message
    assert "cudaError 35" not in caught.value.message
    lines = caught.value.message.splitlines()
    assert len(lines) == len(set(lines)) >= 2


@pytest.mark.usefixtures("rtx")
def test_operators_without_a_kernel_are_named() -> None:
    node = helper.make_node("StringNormalizer", ["input"], ["logits"])
    with pytest.raises(ExportError, match=r"cannot read the model:\n(.|\n)*StringNormalizer"):
        engine_from_onnx(model(node), compute_capability="sm86", module="tensorrt_rtx")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("axes", [(2, 4), ("batch", "length")])
def test_only_the_batch_may_be_free(axes: tuple[int | str, ...]) -> None:
    with pytest.raises(ExportError, match=r"input input has shape \[.*\] \(-1 is free\); expected a free batch"):
        engine_from_onnx(model(axes=axes, outputs=(axes[0], 3)), module="tensorrt_rtx")


@pytest.mark.usefixtures("rtx")
def test_unknown_capability_names_those_that_are_known() -> None:
    with pytest.raises(ExportError, match=r"does not build for 'sm90'; expected one of .*sm86"):
        engine_from_onnx(model(), compute_capability="sm90", module="tensorrt_rtx")


@pytest.mark.parametrize("sizes", [[], [0, 8]])
def test_batch_sizes_are_positive(sizes: list[int]) -> None:
    with pytest.raises(ExportError, match=r"batch sizes are \[.*\]; expected at least one, all positive"):
        engine_from_onnx(model(), batch_sizes=sizes)


def quantized(*quantizers: onnx.NodeProto, **constants: np.ndarray) -> bytes:
    """Return `model` with a float input that goes through `quantizers` to become `exact`."""
    made = onnx.load_from_string(model(*quantizers, helper.make_node("MatMul", ["exact", "weight"], ["logits"])))
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return made.SerializeToString()


SCALE = np.ones((), np.float32)
TO_INT = helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["whole"], name="to_int")
TO_FLOAT = helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["exact"], name="to_float")


def test_unsigned_zero_points_are_refused_wherever_they_stand() -> None:
    refused = pytest.raises(ExportError, match=r"quantises to uint8 in 2 places, first in to_int; .* above 127")
    with refused:
        engine_from_onnx(quantized(TO_INT, TO_FLOAT, scale=SCALE, zero=np.zeros((), np.uint8)))
    constant = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.zeros((), np.uint8)))
    with refused:
        engine_from_onnx(quantized(constant, TO_INT, TO_FLOAT, scale=SCALE))
    # Without a zero point the type is uint8, unless the node says another.
    bare = helper.make_node("QuantizeLinear", ["input", "scale"], ["whole"], name="bare")
    with pytest.raises(ExportError, match=r"quantises to uint8 in 1 places, first in bare"):
        engine_from_onnx(quantized(bare, TO_FLOAT, scale=SCALE, zero=np.zeros((), np.int8)))
    of_weights = helper.make_node("DequantizeLinear", ["bytes", "scale"], ["exact"], name="weights")
    with pytest.raises(ExportError, match=r"quantises to uint8 in 1 places, first in weights"):
        engine_from_onnx(quantized(of_weights, scale=SCALE, bytes=np.zeros((1, 4), np.uint8)))


def test_signed_zero_points_are_not_refused() -> None:
    require_buildable(quantized(TO_INT, TO_FLOAT, scale=SCALE, zero=np.zeros((), np.int8)))
    said = helper.make_node("QuantizeLinear", ["input", "scale"], ["whole"], output_dtype=TensorProto.INT8)
    made = quantized(said, TO_FLOAT, scale=SCALE, zero=np.zeros((), np.int8))
    require_buildable(made)


def test_foreign_operators_are_named() -> None:
    with pytest.raises(ExportError, match=r"has operators of 'com\.example' \(Wobble\); TensorRT builds standard ones"):
        engine_from_onnx(model(helper.make_node("Wobble", ["input"], ["logits"], domain="com.example")))
    with pytest.raises(ExportError, match="has edgefold's packed operators") as caught:
        engine_from_onnx(model(helper.make_node("PackedConv", ["input"], ["logits"], domain="edgefold")))
    assert "--format packed" in caught.value.remedy
    require_buildable(model(helper.make_node("Relu", ["input"], ["logits"], domain="ai.onnx")))


def test_large_models_are_refused_by_their_size() -> None:
    with pytest.raises(ExportError, match=r"m\.onnx has \d+ bytes; expected at most 100"):
        engine_from_onnx(model(), most_bytes=100, origin="m.onnx")
    assert buildable.MOST_BYTES == 2_147_483_647


def test_broken_files_and_weights_outside_are_refused_before_an_engine_sees_them() -> None:
    with pytest.raises(BundleError, match="the model: not a whole ONNX model"):
        engine_from_onnx(model()[:-5])
    made = onnx.load_from_string(model())
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")
    with pytest.raises(ExportError, match=r"keeps weights in \.\./weights\.bin; expected them inside"):
        engine_from_onnx(made.SerializeToString())


# Finding a TensorRT


GPU = CudaDevice("a GPU", "sm87")


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, devices: int = 0) -> None:
    """Make exactly the modules `names` importable, on a machine with so many GPUs."""
    for name in tensorrt_library.MODULES:
        # None makes an import fail as if the module were not there.
        monkeypatch.setitem(sys.modules, name, ModuleType(name) if name in names else None)  # type: ignore[arg-type]
    monkeypatch.setattr(tensorrt_library, "cuda_devices", lambda: (GPU,) * devices)


def test_tensorrt_is_taken_where_there_is_a_gpu_and_rtx_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", "tensorrt_rtx", devices=1)
    assert tensorrt_module().__name__ == "tensorrt"
    assert tensorrt_module("tensorrt_rtx").__name__ == "tensorrt_rtx"
    installed(monkeypatch, "tensorrt", "tensorrt_rtx", devices=0)
    assert tensorrt_module().__name__ == "tensorrt_rtx"


def test_tensorrt_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt")
    with pytest.raises(ExportError, match="tensorrt builds on the GPU that it builds for, and there is none here"):
        tensorrt_module()


def test_without_any_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(MissingExtraError, match="neither tensorrt nor tensorrt_rtx is installed") as caught:
        tensorrt_module()
    assert "pip install 'edgefold[rtx]'" in caught.value.remedy
    with pytest.raises(MissingExtraError, match="tensorrt_rtx is not installed"):
        tensorrt_module("tensorrt_rtx")
    with pytest.raises(ExportError, match="no TensorRT module 'trt'; expected one of tensorrt, tensorrt_rtx"):
        tensorrt_module("trt")


def test_tensorrt_builds_for_the_gpu_at_hand_and_keeps_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in_tensorrt.builder(calls))
    for module in (tensorrt_library, engine_build):
        monkeypatch.setattr(module, "cuda_devices", lambda: (GPU,))
    cache = tmp_path / "timing.cache"
    engine = engine_from_onnx(model(), batch_sizes=[1, 8], workspace_mib=2, timing_cache=cache, name="tiny")
    assert engine.plan == b"plan of tiny, detailed"
    assert (engine.module, engine.compute_capability, engine.device) == ("tensorrt", "sm87", "a GPU")
    # 2 is the flag 1 << STRONGLY_TYPED.
    assert calls == [
        "network 2", "clear tf32", f"workspace {2 << 20}", "input ((1, 4), (8, 4), (8, 4))", "cache of 0 bytes",
    ]  # fmt: skip
    assert cache.read_bytes() == b"new"
    engine_from_onnx(model(), timing_cache=cache)
    assert "cache of 3 bytes" in calls
    assert cache.read_bytes() == b"newnew"
    # Its log has no layers; where there is the GPU, the engine itself tells.
    brief, layer = engine.layers
    assert (brief.name, brief.inputs) == ("brief", ())
    assert (layer.kind, layer.inputs, layer.constants, layer.outputs) == ("gemm", ("Half",), ("Half",), ("Float",))
    assert layer.nodes == ("node_a", "node_b")
    # A capability is asked of RTX, which knows any, whatever else is there.
    with pytest.raises(ExportError, match="tensorrt builds for the GPU at hand, not for sm86"):
        engine_from_onnx(model(), compute_capability="sm86", module="tensorrt")


@pytest.mark.usefixtures("rtx")
def test_rtx_leaves_the_timing_cache_alone(tmp_path: Path) -> None:
    engine_from_onnx(model(), compute_capability="sm86", timing_cache=tmp_path / "timing.cache")
    assert list(tmp_path.iterdir()) == []


def test_capability_is_for_rtx_alone() -> None:
    classic = SimpleNamespace(__name__="tensorrt")
    with pytest.raises(ExportError, match="tensorrt builds for the GPU at hand, not for sm86"):
        engine_build._set_capability(classic, None, "sm86")  # type: ignore[arg-type]
    engine_build._set_capability(classic, None, None)  # type: ignore[arg-type]


# Profiles, memory, and what became of the layers


@pytest.mark.usefixtures("rtx")
def test_several_profiles_are_in_one_engine() -> None:
    engine = engine_from_onnx(
        model(), batch_sizes=[1], further_profiles=[[8, 64, 16]], compute_capability="sm86", module="tensorrt_rtx"
    )
    assert [each.batch_sizes for each in engine.profiles] == [(1, 1, 1), (8, 16, 64)]
    assert engine.profiles[1].most == {"input": (64, 4)}
    one = engine_from_onnx(model(), batch_sizes=[1], compute_capability="sm86", module="tensorrt_rtx")
    assert len(engine.plan) > len(one.plan)
    with pytest.raises(ExportError, match=r"batch sizes are \[\]"):
        engine_from_onnx(model(), further_profiles=[[]])


@pytest.mark.usefixtures("rtx")
def test_limits_and_names_reach_the_plan() -> None:
    named, limited = (
        engine_from_onnx(model(), compute_capability="sm86", **options)  # type: ignore[arg-type]
        for options in ({"name": "a-name-of-its-own"}, {"workspace_mib": 256})
    )
    assert named.module == "tensorrt_rtx"  # a capability is asked of the module that knows any
    assert b"a-name-of-its-own" in named.plan
    assert named.flags == {"strongly_typed": True, "tf32": False, "workspace_mib": None}
    assert limited.flags["workspace_mib"] == 256
    with pytest.raises(ExportError, match="within workspace limit"):
        engine_from_onnx(model(), compute_capability="sm86", workspace_mib=1)


@pytest.mark.usefixtures("rtx")
def test_sm75_has_no_float32_products() -> None:
    with pytest.raises(ExportError, match=r"cannot build the model:\n(.|\n)*FP32 GEMM is not supported"):
        engine_from_onnx(model(), compute_capability="sm75", module="tensorrt_rtx")


@pytest.mark.usefixtures("rtx")
def test_layers_tell_int8_from_float() -> None:
    zero = np.zeros((), np.int8)
    made = quantized(TO_INT, TO_FLOAT, scale=SCALE, zero=zero)
    parsed = onnx.load_from_string(made)
    parsed.graph.node.insert(0, helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["exact_weight"]))
    parsed.graph.initializer.append(numpy_helper.from_array((8 * WEIGHT).astype(np.int8), "rounded"))
    next(node for node in parsed.graph.node if node.op_type == "MatMul").input[1] = "exact_weight"

    def products(data: bytes) -> set[tuple[str, ...]]:
        layers = engine_from_onnx(data, compute_capability="sm86", module="tensorrt_rtx", batch_sizes=[16]).layers
        assert layers
        return {layer.inputs for layer in layers if layer.kind in ("gemm", "runtime_fusion", "correlation")}

    assert ("Int8",) in products(parsed.SerializeToString())
    assert all("Int8" not in each for each in products(model()))


def test_neither_torch_nor_onnx_is_imported() -> None:
    code = "import sys, runtime.engine_build; print(*{'torch', 'onnx', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
