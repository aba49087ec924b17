"""OpenVINO beside ONNX Runtime: the same logits from the same file, its precision always said."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.__main__ import main
from runtime.bench import benchmark
from runtime.bundle import open_bundle
from runtime.errors import BundleError, DataError, EngineError, MissingExtraError, UsageError
from runtime.measure import BenchPlan
from runtime.runners import open_runner, runs_on
from runtime.runners.choice import EngineChoice

OPENVINO = EngineChoice("openvino")
BF16 = EngineChoice("openvino", precision="bf16")


@pytest.fixture
def openvino():
    return pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")


@pytest.fixture
def compiled(openvino, monkeypatch):
    """Return what the engine was asked for, by name, once a runner was opened."""
    seen = {}
    compile_model = openvino.Core.compile_model

    def spy(self, model, device, settings):
        seen.update(settings, device=device)
        return compile_model(self, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    return seen


def test_logits_equal_the_expected_ones(openvino, bundle):
    rows = bundle.samples()
    with open_runner(bundle, threads=2, choice=OPENVINO) as runner:
        for count in (1, 7, 24):
            np.testing.assert_allclose(runner.infer(rows.inputs[:count]), rows.logits[:count], rtol=1e-5, atol=1e-5)
        assert (runner.engine, runner.providers) == ("openvino", ("CPU",))
        assert openvino.__version__.startswith(runner.version)
        assert runner.load_ms > 0
        kept = runner.infer(rows.inputs[:2])
        runner.infer(rows.inputs[2:4])
        np.testing.assert_allclose(kept, rows.logits[:2], rtol=1e-5, atol=1e-5)  # not overwritten by the next call


def test_precision_and_threads_are_always_said(compiled, bundle):
    open_runner(bundle, threads=2, choice=OPENVINO).close()
    assert compiled == {
        "device": "CPU",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 2,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }


def test_bf16_computes_in_bf16_or_is_refused(openvino, compiled, bundle):
    rows = bundle.samples()
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match="has no instructions for bf16"):
            open_runner(bundle, choice=BF16)
        return
    with open_runner(bundle, choice=BF16) as runner:
        error = np.abs(runner.infer(rows.inputs) - rows.logits).max() / rows.logits.std()
    assert compiled["INFERENCE_PRECISION_HINT"] == "bf16"
    assert 1e-4 < error < 0.1  # eight bits of mantissa: not float32's logits, and not far from them


def test_engine_that_computes_in_another_precision_is_refused(openvino, bundle, monkeypatch):
    compile_model = openvino.Core.compile_model

    def other(self, model, device, settings):
        return compile_model(self, model, device, {**settings, "INFERENCE_PRECISION_HINT": "bf16"})

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has only one precision")
    monkeypatch.setattr(openvino.Core, "compile_model", other)
    with pytest.raises(EngineError, match="computes in bf16 here, expected f32"):
        open_runner(bundle, choice=OPENVINO)


def test_second_output_is_given_by_name(openvino, write_bundle, build_model, tmp_path):
    names = ("logits", "subclass_probabilities")
    folder = write_bundle(
        tmp_path / "bundle",
        model=build_model(outputs=names[::-1]).SerializeToString(),  # the file's order is not the manifest's
        outputs=[{"name": name, "dtype": "float32", "shape": [3]} for name in names],
    )
    bundle = open_bundle(folder)
    rows = bundle.samples()
    with open_runner(bundle, choice=OPENVINO) as runner:
        outputs = runner.infer_outputs(rows.inputs)
    assert list(outputs) == list(names)
    np.testing.assert_allclose(outputs["logits"], rows.logits, rtol=1e-5, atol=1e-5)


def test_wrong_input_is_named_before_the_engine_sees_it(openvino, bundle):
    with (
        open_runner(bundle, choice=OPENVINO) as runner,
        pytest.raises(DataError, match=r"input 'input' came as float32 \[2, 4, 3, 1\], expected uint8 \[N, 4, 3, 1\]"),
    ):
        runner.infer(np.zeros((2, 4, 3, 1), np.float32))


def test_input_that_a_cast_gives_a_second_name(openvino, write_bundle, build_model, tmp_path):
    model = build_model()
    cast = helper.make_node("Cast", ["input"], ["again"], to=TensorProto.UINT8)  # changes nothing, and goes
    model.graph.node[0].input[0] = "again"
    nodes = [cast, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    bundle = open_bundle(write_bundle(tmp_path / "bundle", model=model.SerializeToString()))
    rows = bundle.samples()
    with open_runner(bundle, choice=OPENVINO) as runner:
        np.testing.assert_allclose(runner.infer(rows.inputs), rows.logits, rtol=1e-5, atol=1e-5)
        assert {"input", "again"} <= runner._model.inputs[0].get_names()


def test_model_that_is_not_as_the_manifest_says(openvino, write_bundle, build_model, tmp_path):
    tensor = {"name": "input", "dtype": "uint8", "shape": [4, 3, 1]}
    logits = {"name": "logits", "dtype": "float32", "shape": [3]}
    cases = [
        ({"input": {**tensor, "name": "image"}}, "inputs are input, expected image"),
        ({"input": {**tensor, "shape": [3, 4, 1]}}, r"'input' is u8 .* expected u8 \[N, 3, 4, 1\] as in manifest"),
        ({"input": {**tensor, "dtype": "float32"}}, r"'input' is u8 .*expected f32"),
        ({"outputs": [logits, {**logits, "name": "other"}]}, "output 'other' .* not in the model; it has logits"),
        ({"model": build_model(batch=1).SerializeToString()}, "with a free N"),
    ]
    for index, (change, message) in enumerate(cases):
        bundle = open_bundle(write_bundle(tmp_path / str(index), **change))
        with pytest.raises(BundleError, match=message):
            open_runner(bundle, choice=OPENVINO)


def test_refused_model_gives_one_line_with_versions(openvino, write_bundle, build_model, tmp_path):
    model = build_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    bundle = open_bundle(write_bundle(tmp_path / "bundle", model=model.SerializeToString()))
    expected = r"openvino 20\d\d.*cannot load this model \(opset 20, IR 10\): .*NoSuchOperator"
    with pytest.raises(EngineError, match=expected) as caught:
        open_runner(bundle, choice=OPENVINO)
    assert "\n" not in caught.value.message
    assert ".cpp" not in caught.value.message


def test_external_data_never_reaches_the_engine(openvino, write_bundle, build_model, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino.Core, "read_model", None)
    model = build_model()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../secret.bin")
    bundle = open_bundle(write_bundle(tmp_path / "bundle", model=model.SerializeToString()))
    with pytest.raises(BundleError, match=r"wants its data from '../secret\.bin'"):
        open_runner(bundle, choice=OPENVINO)


def test_failing_call_is_an_engine_error(openvino, bundle):
    with open_runner(bundle, choice=OPENVINO) as runner:
        runner._request = None
        with pytest.raises(EngineError, match=r"model\.onnx: openvino .* failed: "):
            runner.infer(bundle.samples().inputs)


def test_missing_engine_says_what_to_install(bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="OpenVINO is not installed") as caught:
        open_runner(bundle, choice=OPENVINO)
    assert caught.value.remedy == "pip install 'edgefold[openvino]'"
    assert main(["accuracy", str(bundle.path), "--engine", "openvino"]) == 2
    assert "pip install 'edgefold[openvino]'" in capsys.readouterr().err


def test_bench_and_accuracy_say_which_engine_it_was(openvino, bundle, capsys):
    plan = BenchPlan(quick=True, seconds=0.01, calls=20, warm_up_seconds=0.01, warm_up_most_seconds=0.05)
    engine = benchmark(bundle, batch=8, choice=OPENVINO, plan=plan).to_json()["engine"]
    assert (engine["name"], engine["providers"], engine["chosen"]) == ("openvino", ["CPU"], {"engine": "openvino"})
    assert main(["accuracy", str(bundle.path), "--engine", "openvino"]) == 0
    out = capsys.readouterr().out
    assert "tiny: onnx on openvino 20" in out
    assert "22 of 24 rows" in out


def test_formats_of_one_engine_do_not_run_on_another(write_bundle, build_model, tmp_path):
    assert [runs_on("packed", each) for each in (EngineChoice(), EngineChoice("onnxruntime"), OPENVINO)] == [
        True,
        True,
        False,
    ]
    assert [runs_on("int8", each) for each in (OPENVINO, EngineChoice(provider="cuda"))] == [True, True]
    assert not runs_on("packed", EngineChoice(provider="cuda"))  # its operators are for the CPU
    assert runs_on("packed", EngineChoice(provider="cpu"))
    model = build_model().SerializeToString()
    form = {"file": "model.onnx", "size_bytes": len(model), "opset": 20, "ir_version": 10}
    formats = {"packed": {"precision": "packed", **form}, "onnx": {"precision": "fp32", **form}}
    bundle = open_bundle(write_bundle(tmp_path / "both", model=model, formats=formats))
    expected = "format 'packed' does not run on openvino; it is for onnxruntime on the CPU"
    with pytest.raises(UsageError, match=expected) as caught:
        open_runner(bundle, "packed", choice=OPENVINO)
    assert caught.value.remedy == "Choose --format onnx, or leave the engine out."


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"engine": "tvm"}, "engine is 'tvm', expected onnxruntime, openvino, tensorrt, tensorrt_rtx"),
        ({"provider": "CUDAExecutionProvider"}, "provider is 'CUDAExecutionProvider', expected cpu, cuda, tensorrt"),
        ({"engine": "openvino", "precision": "fp8"}, "precision is 'fp8', expected fp32, bf16"),
        ({"engine": "openvino", "provider": "cuda"}, "provider cuda with engine openvino"),
        ({"precision": "bf16"}, "precision bf16 without engine openvino"),
    ],
)
def test_choices_that_make_no_sense(choice, message):
    with pytest.raises(UsageError, match=message):
        EngineChoice(**choice)


def test_a_choice_names_its_results():
    assert [EngineChoice(), EngineChoice("onnxruntime"), EngineChoice(provider="cpu")] == [
        each for each in (EngineChoice(), EngineChoice("onnxruntime"), EngineChoice(provider="cpu")) if not each.label
    ]
    assert EngineChoice(provider="nv-tensorrt-rtx").key("fp16") == "fp16@onnxruntime-nv-tensorrt-rtx"
    assert (OPENVINO.key("int8"), BF16.key("int8")) == ("int8@openvino", "int8@openvino-bf16")
    assert EngineChoice("openvino", precision="fp32").key("onnx") == "onnx@openvino"
    assert BF16.to_json() == {"engine": "openvino", "precision": "bf16"}
