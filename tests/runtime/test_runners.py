import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime.bundle import open_bundle
from runtime.errors import BundleError, DataError, EngineError, MissingExtraError, UsageError
from runtime.runners import RUNNERS, open_runner


def test_logits_equal_the_expected_ones(bundle):
    rows = bundle.samples()
    with open_runner(bundle, "onnx", threads=2) as runner:
        for count in (1, 7, 24):
            np.testing.assert_allclose(runner.infer(rows.inputs[:count]), rows.logits[:count], rtol=1e-5, atol=1e-5)
        assert runner.providers == ("CPUExecutionProvider",)
        assert runner.version == onnxruntime.__version__
        assert runner.load_ms > 0


def test_views_that_are_not_contiguous_run(bundle):
    rows = bundle.samples()
    with open_runner(bundle) as runner:
        np.testing.assert_allclose(runner.infer(rows.inputs[::2]), rows.logits[::2], rtol=1e-5, atol=1e-5)


def test_second_output_is_given_by_name(write_bundle, build_model, tmp_path):
    names = ("logits", "subclass_probabilities")
    folder = write_bundle(
        tmp_path / "bundle",
        model=build_model(outputs=names).SerializeToString(),
        outputs=[{"name": name, "dtype": "float32", "shape": [3]} for name in names],
    )
    bundle = open_bundle(folder)
    with open_runner(bundle) as runner:
        outputs = runner.infer_outputs(bundle.samples().inputs)
    assert list(outputs) == list(names)
    np.testing.assert_array_equal(outputs["logits"], outputs["subclass_probabilities"])


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        (np.zeros((2, 4, 3, 1), np.float32), r"float32 \[2, 4, 3, 1\]"),
        (np.zeros((2, 1, 4, 3), np.uint8), r"uint8 \[2, 1, 4, 3\]"),
        (np.zeros((4, 3, 1), np.uint8), r"uint8 \[4, 3, 1\]"),
        (np.zeros((0, 4, 3, 1), np.uint8), r"uint8 \[0, 4, 3, 1\]"),
        (np.uint8(0)[()], "is a uint8"),
        ([[0]], "is a list"),
    ],
)
def test_wrong_input_is_named_before_the_engine_sees_it(bundle, batch, came):
    with (
        open_runner(bundle) as runner,
        pytest.raises(DataError, match=f"input 'input' .*{came}.*expected .*uint8 \\[N, 4, 3, 1\\]"),
    ):
        runner.infer(batch)


def test_closed_runner_says_so(bundle):
    runner = open_runner(bundle)
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="closed"):
        runner.infer(bundle.samples().inputs)


def test_unknown_format_and_threads(bundle, write_bundle, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no format 'int8'"):
        open_runner(bundle, "int8")
    with pytest.raises(UsageError, match="threads is 0"):
        open_runner(bundle, threads=0)
    entry = {
        "file": "model.onnx",
        "size_bytes": (bundle.path / "model.onnx").stat().st_size,
        "precision": "x",
    }
    other = open_bundle(write_bundle(tmp_path / "other", formats={"new_kind": entry}))
    with pytest.raises(
        UsageError, match="no engine for format 'new_kind'; there are engines for packed, tensorrt, onnx"
    ):
        open_runner(other, "new_kind")
    assert "onnx" in RUNNERS


def test_threads_reach_the_engine(bundle, monkeypatch):
    seen = {}
    session = onnxruntime.InferenceSession

    def spy(model, sess_options, providers, enable_fallback):
        seen.update(
            model=type(model),
            intra=sess_options.intra_op_num_threads,
            inter=sess_options.inter_op_num_threads,
            mode=sess_options.execution_mode,
            providers=providers,
            fallback=enable_fallback,
        )
        return session(model, sess_options=sess_options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    open_runner(bundle, threads=3).close()
    assert seen == {
        "model": bytes,  # the checked bytes, not a path that may change
        "intra": 3,
        "inter": 1,
        "mode": onnxruntime.ExecutionMode.ORT_SEQUENTIAL,
        "providers": ["CPUExecutionProvider"],
        "fallback": 0,
    }


def test_another_provider_is_refused(bundle, monkeypatch):
    class Session(onnxruntime.InferenceSession):
        def get_providers(self):
            return ["AzureExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(EngineError, match="runs on AzureExecutionProvider, CPUExecutionProvider, expected CPU"):
        open_runner(bundle)


def test_engine_may_not_change_its_provider_later(bundle, monkeypatch):
    class Session(onnxruntime.InferenceSession):
        fallback = True

        def disable_fallback(self):
            self.fallback = False

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with open_runner(bundle) as runner:
        assert not runner._session.fallback


def test_missing_engine_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        open_runner(bundle)
    assert "pip install 'edgefold[onnxruntime]'" in caught.value.remedy


def test_file_altered_after_opening_never_reaches_the_engine(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(__version__="0"))
    path = bundle.file_of("onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"model\.onnx is altered"):
        open_runner(bundle)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "beside.bin"])
def test_external_data_never_reaches_the_engine(write_bundle, build_model, tmp_path, monkeypatch, location):
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    model = build_model()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    bundle = open_bundle(write_bundle(tmp_path / "bundle", model=model.SerializeToString()))
    with pytest.raises(BundleError, match=f"tensor 'weight' wants its data from '{location}'"):
        open_runner(bundle)


def test_refused_model_gives_one_line_with_versions(write_bundle, build_model, tmp_path):
    model = build_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    bundle = open_bundle(write_bundle(tmp_path / "bundle", model=model.SerializeToString()))
    with pytest.raises(EngineError, match=r"cannot load this model \(opset 20, IR 10\).*NoSuchOperator") as caught:
        open_runner(bundle)
    assert "\n" not in caught.value.message


def test_model_newer_than_the_engine(write_bundle, build_model, tmp_path):
    bundle = open_bundle(write_bundle(tmp_path / "b", model=build_model(ir_version=99).SerializeToString()))
    with pytest.raises(EngineError, match="IR 99") as caught:
        open_runner(bundle)
    assert "newer onnxruntime" in caught.value.remedy


def test_model_for_which_this_engine_is_known_to_be_too_old(write_bundle, build_model, tmp_path, monkeypatch):
    model = build_model(ir_version=99)
    model.metadata_props.add(key="edgefold.name", value="pets")
    model.metadata_props.add(key="edgefold.recipe", value="name: pets\nstages: {}\n")
    bundle = open_bundle(write_bundle(tmp_path / "b", model=model.SerializeToString()))
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    with pytest.raises(EngineError, match=r"onnxruntime 1\.16\.3 cannot load this model \(opset 20, IR 99\)") as caught:
        open_runner(bundle)
    assert caught.value.remedy == (
        "pip install --upgrade onnxruntime, or export it again for this engine: edgefold export pets --opset 17 "
        "(or `opset: 17` in the recipe's export)"
    )


def test_versions_that_are_known_to_fail_are_kept_from_it(write_bundle, build_model, tmp_path, monkeypatch):
    model = build_model(opset=17, ir_version=8).SerializeToString()
    form = {"file": "model.onnx", "size_bytes": len(model), "precision": "fp16", "opset": 17, "ir_version": 8}
    bundle = open_bundle(write_bundle(tmp_path / "b", model=model, formats={"fp16": form}))
    monkeypatch.setattr(onnxruntime, "__version__", "1.14.1")
    with pytest.raises(EngineError, match=r"onnxruntime 1\.14\.1 crashes on fp16 on a CPU") as caught:
        open_runner(bundle, "fp16")
    assert caught.value.remedy == "pip install 'onnxruntime>=1.15'"
    levels = {}
    for version in ("1.13.1", "1.15.1"):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        with monkeypatch.context() as patch:
            real = onnxruntime.InferenceSession
            patch.setattr(
                onnxruntime, "InferenceSession",
                lambda *a, sess_options, **k: levels.update({version: sess_options.graph_optimization_level})  # noqa: B023
                or real(*a, sess_options=sess_options, **k),  # noqa: B023
            )  # fmt: skip
            open_runner(bundle, "fp16").close()
    every = onnxruntime.GraphOptimizationLevel
    assert levels == {"1.13.1": every.ORT_ENABLE_EXTENDED, "1.15.1": every.ORT_ENABLE_ALL}


def test_model_that_is_not_as_the_manifest_says(write_bundle, build_model, tmp_path):
    tensor = {"name": "input", "dtype": "uint8", "shape": [4, 3, 1]}
    logits = {"name": "logits", "dtype": "float32", "shape": [3]}
    cases = [
        ({"input": {**tensor, "name": "image"}}, "inputs are input, expected image"),
        ({"input": {**tensor, "shape": [3, 4, 1]}}, r"'input' is .*\[N, 3, 4, 1\] as in manifest"),
        ({"input": {**tensor, "dtype": "float32"}}, r"'input' is tensor\(uint8\).*expected tensor\(float\)"),
        (
            {"outputs": [logits, {**logits, "name": "other"}]},
            "output 'other' .* not in the model; it has logits",
        ),
        ({"model": build_model(batch=1).SerializeToString()}, "with a free N"),
    ]
    for index, (change, message) in enumerate(cases):
        bundle = open_bundle(write_bundle(tmp_path / str(index), **change))
        with pytest.raises(BundleError, match=message):
            open_runner(bundle)


def test_failing_call_is_an_engine_error(bundle, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("\n  out of memory  \nat somewhere")

    with open_runner(bundle) as runner:
        monkeypatch.setattr(runner._session, "run", fail)
        with pytest.raises(EngineError, match=r"model\.onnx: onnxruntime .* failed: out of memory$"):
            runner.infer(bundle.samples().inputs)
