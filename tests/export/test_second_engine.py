"""Every form of a bundle in a second engine, by the gates that hold for it in the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle import OnnxForm, write_bundle
from export.engines import FP32_GATE
from export.parity import GATES, looser
from export.to_bf16 import bf16_from_onnx
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.verify import NotRun, ParityReport, _gate, cases_of, verify_bundle, verify_formats
from runtime import engine_cache
from runtime.bare_model import open_model
from runtime.bundle import Bundle, open_bundle
from runtime.cuda import CudaDevice, cuda_devices
from runtime.errors import DeviceError, MissingExtraError, UsageError
from runtime.runners import open_runner
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.runners.openvino import OpenVinoRunner

OPENVINO = EngineChoice("openvino")
BF16 = EngineChoice("openvino", precision="bf16")
CUDA = EngineChoice(provider="cuda")
FORMS = {"onnx": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Any]) -> Path:
    """A bundle with every form of ONNX that is not packed."""
    model, inputs = parts["onnx"], parts["inputs"]
    int8 = int8_from_onnx(model, inputs[:64], inputs[64:], parts["labels"][64:], gate=GATES["int8"], method="minmax")
    made = {"fp16": fp16_from_onnx(model), "bf16": bf16_from_onnx(model), "int8": int8.model}
    folder = tmp_path_factory.mktemp("forms") / "bundle"
    write_bundle(folder, **parts, forms=[OnnxForm(*each) for each in made.items()])
    return folder


def rows_of(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    samples = bundle.samples()
    assert samples.logits is not None
    return samples.inputs, samples.logits, samples.labels


@pytest.mark.parametrize("choice", [OPENVINO, BF16], ids=lambda choice: choice.label)
def test_every_form_passes_its_gate_in_openvino(choice: EngineChoice, folder: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    if choice == BF16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no instructions for bf16")
    reports = {report.format: report for report in verify_bundle(folder, choice=choice)}
    assert list(reports) == list(FORMS)
    for format, precision in FORMS.items():
        report = reports[format]
        assert isinstance(report, ParityReport)
        own = GATES[precision]
        assert report.gate == (looser(own, GATES["bf16"]) if choice == BF16 else own)
        assert report.passed, report.reasons
        assert (report.name, report.not_run) == (f"{format}@{choice.label}", None)
        assert report.engine.startswith("openvino 20")
        assert report.comparison.max_error_over_std is not None
        # What is computed in bf16, by the file or by the engine, is not float32's.
        assert (report.comparison.max_error_over_std > 1e-4) == ((format, choice) != ("onnx", OPENVINO))


def residual_model() -> bytes:
    """Convolution y, ReLU, convolution z, z + y, mean: no bias in either, as in a pre-activation ResNet."""
    random = np.random.default_rng(0)
    weights = {
        "y_weight": random.normal(size=(16, 3, 3, 3)).astype(np.float32) / 5,
        "z_weight": random.normal(size=(16, 16, 3, 3)).astype(np.float32) / 10,
    }
    nodes = [
        helper.make_node("Conv", ["input", "y_weight"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Conv", ["r", "z_weight"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["z", "y"], ["sum"]),
        helper.make_node("ReduceMean", ["sum"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_sums_of_int8_convolutions_are_right_in_both_engines(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    model, rows = residual_model(), np.random.default_rng(1).normal(size=(192, 3, 8, 8)).astype(np.float32)
    made = int8_from_onnx(model, rows[:64], rows[64:], np.zeros(128, np.int64), gate=GATES["int8"], method="minmax")
    logits = {}
    for name, data, choice in (
        ("float", model, DEFAULT),
        ("onnxruntime", made.model, DEFAULT),
        ("openvino", made.model, OPENVINO),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with open_runner(open_model(path), choice=choice) as runner:
            logits[name] = runner.infer(rows)
    spread = logits["float"].std()
    assert np.abs(logits["onnxruntime"] - logits["float"]).max() / spread < 0.1
    assert np.abs(logits["openvino"] - logits["float"]).max() / spread < 0.1


def test_cases_are_formats_times_the_engines_that_run_them(folder: Path) -> None:
    bundle = open_bundle(folder)
    cases = cases_of(bundle, [DEFAULT, EngineChoice("onnxruntime"), OPENVINO, OPENVINO])
    names = [choice.key(format) for format, choice in cases]
    assert names == [name for format in FORMS for name in (format, f"{format}@openvino")]


def test_an_engine_that_is_not_here_is_not_run_beside_one_that_is(folder: Path) -> None:
    bundle = open_bundle(folder)
    ran, absent = verify_formats(bundle, *rows_of(bundle), cases=[("onnx", DEFAULT), ("onnx", CUDA)])
    assert isinstance(ran, ParityReport)
    assert isinstance(absent, NotRun)
    assert ran.passed
    assert absent.name == "onnx@onnxruntime-cuda"
    assert "has no CUDAExecutionProvider" in absent.to_json()["not_run"]
    with pytest.raises(MissingExtraError, match="has no CUDAExecutionProvider"):
        verify_bundle(folder, choice=CUDA)


def test_an_engine_whose_logits_are_wrong_misses_the_gate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    infer = OpenVinoRunner.infer
    monkeypatch.setattr(OpenVinoRunner, "infer", lambda runner, batch: infer(runner, batch) * 1.01)
    bundle = open_bundle(folder)
    own, other = verify_formats(bundle, *rows_of(bundle), cases=[("onnx", DEFAULT), ("onnx", OPENVINO)])
    assert isinstance(own, ParityReport)
    assert isinstance(other, ParityReport)
    assert (own.passed, other.passed) == (True, False)
    assert "max error / std is" in other.reasons[0]


def test_a_bundle_of_nothing_that_the_engine_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.verify.runs_on", lambda format, choice: False)
    with pytest.raises(UsageError, match="none of onnx, fp16, bf16, int8 runs on openvino"):
        verify_bundle(folder, choice=OPENVINO)


def test_looser_takes_what_either_allows() -> None:
    gate = looser(GATES["fp16"], GATES["int8"])
    assert gate == GATES["int8"]
    assert looser(GATES["bf16"], GATES["fp32"]) == GATES["bf16"]


@pytest.mark.parametrize("format", FORMS)
def test_every_form_is_built_into_an_engine_where_it_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine_cache, "cuda_devices", lambda: (CudaDevice("RTX 4090", "sm89"),))
    kept = engine_cache.engine_here(open_bundle(folder), format, "tensorrt_rtx", None, print)
    types = {kind for layer in kept.description.layers for kind in layer.inputs}
    assert {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}[FORMS[format]] in types
    assert {each.dtype for each in kept.description.inputs} == {"uint8"}


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU, so nothing is left out")
def test_an_engine_that_cannot_be_built_here_is_not_run(folder: Path) -> None:
    bundle, tensorrt = open_bundle(folder), EngineChoice("tensorrt")
    rows = rows_of(bundle)
    one, other = verify_formats(bundle, *rows, cases=[("onnx", DEFAULT), ("onnx", tensorrt)])
    assert isinstance(one, ParityReport)
    assert isinstance(other, NotRun)
    assert other.name == "onnx@tensorrt"
    assert other.reason == "TensorRT needs an NVIDIA GPU, and this machine has no CUDA device"
    with pytest.raises(DeviceError, match="this machine has no CUDA device"):
        verify_bundle(folder, choice=tensorrt)
    # An engine adds in another order: its float32 has the gate that engines in a bundle have, other forms keep theirs.
    assert _gate(bundle.format("onnx"), tensorrt) == FP32_GATE
    assert _gate(bundle.format("int8"), tensorrt) == GATES["int8"]
