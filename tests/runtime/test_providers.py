"""ONNX Runtime's providers by name: the one that was asked for runs the model, or an error says why not.

The engine here has a CPU only, so builds with other providers are stood in for by its session with another answer.
"""

import sys
import types

import numpy as np
import onnxruntime
import pytest

from runtime.__main__ import main
from runtime.errors import EngineError, MissingExtraError
from runtime.runners import open_runner
from runtime.runners.choice import PROVIDERS, EngineChoice
from runtime.runners.providers import BY_NAME, CPU

ABSENT = [name for name, each in BY_NAME.items() if each.name not in onnxruntime.get_available_providers()]


class Part:
    """What a session says of a part of the graph."""

    def __init__(self, ep_name, *operators):
        self.ep_name = ep_name
        self.get_nodes = lambda: [types.SimpleNamespace(op_type=each) for each in operators]


@pytest.fixture
def build_with(monkeypatch):
    """Put an onnxruntime in place that has `names` compiled in and answers with `providers` and `parts`."""

    def put(*names, providers=None, parts=None, devices=None):
        seen = {}
        real = onnxruntime.InferenceSession

        class Session:
            def __init__(self, model, sess_options, providers, enable_fallback):
                seen.update(providers=providers, enable_fallback=enable_fallback, options=sess_options)
                self.session = real(model, providers=[CPU])
                self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs
                self.run, self.disable_fallback = self.session.run, self.session.disable_fallback

            def get_providers(self):
                return list(answer)

        if parts is not None:
            Session.get_provider_graph_assignment_info = lambda self: parts
        answer = providers or (*names, CPU)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return seen

    return put


def test_every_name_has_a_provider_and_a_way_to_get_it():
    assert tuple(BY_NAME) == PROVIDERS
    assert all(each.name.endswith("ExecutionProvider") and each.remedy for each in BY_NAME.values())
    known = set(onnxruntime.get_all_providers())
    assert {each.name for each in BY_NAME.values()} <= known


@pytest.mark.parametrize("name", ABSENT)
def test_provider_that_this_build_lacks_is_refused(bundle, name):
    with pytest.raises(MissingExtraError) as caught:
        open_runner(bundle, choice=EngineChoice(provider=name))
    assert f"has no {BY_NAME[name].name}; it has " in caught.value.message
    assert CPU in caught.value.message
    assert caught.value.remedy == BY_NAME[name].remedy


def test_cpu_by_name_is_the_cpu(bundle):
    with open_runner(bundle, choice=EngineChoice("onnxruntime", "cpu")) as runner:
        assert (runner.providers, runner.notes, runner.nodes) == ((CPU,), (), {})


def test_provider_gets_its_options_and_the_whole_model(bundle, build_with):
    seen = build_with("XnnpackExecutionProvider", parts=[Part("XnnpackExecutionProvider", "Cast", "Gemm")])
    with open_runner(bundle, threads=3, choice=EngineChoice(provider="xnnpack")) as runner:
        np.testing.assert_allclose(runner.infer(bundle.samples().inputs), bundle.samples().logits, rtol=1e-5, atol=1e-5)
        assert runner.nodes == {"XnnpackExecutionProvider": 2}
        assert runner.notes == ()
    assert seen["providers"] == [("XnnpackExecutionProvider", {"intra_op_num_threads": "3"})]
    assert seen["enable_fallback"] == 0
    assert seen["options"].get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


def test_fp32_on_cuda_is_fp32(bundle, build_with):
    seen = build_with("CUDAExecutionProvider", parts=[Part("CUDAExecutionProvider", "Gemm")])
    open_runner(bundle, choice=EngineChoice(provider="cuda")).close()
    assert seen["providers"] == [("CUDAExecutionProvider", {"use_tf32": "0"})]


def test_session_that_fell_back_is_refused(bundle, build_with, capsys):
    build_with("CUDAExecutionProvider", providers=(CPU,))
    expected = r"model\.onnx: onnxruntime runs on CPUExecutionProvider, expected CUDAExecutionProvider"
    with pytest.raises(EngineError, match=expected):
        open_runner(bundle, choice=EngineChoice(provider="cuda"))
    assert main(["accuracy", str(bundle.path), "--provider", "cuda"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "expected CUDAExecutionProvider" in captured.err


def test_operations_left_on_the_cpu_are_counted(bundle, build_with, capsys):
    parts = [Part("CUDAExecutionProvider", "Gemm"), Part(CPU, "Cast", "Flatten"), Part(CPU, "Cast")]
    build_with("CUDAExecutionProvider", parts=parts)
    with open_runner(bundle, choice=EngineChoice(provider="cuda")) as runner:
        assert runner.nodes == {"CUDAExecutionProvider": 1, CPU: 3}
    note = "3 of 4 operations run on the CPU and not on CUDAExecutionProvider: 2 Cast, 1 Flatten"
    assert runner.notes == (note,)
    assert main(["accuracy", str(bundle.path), "--provider", "cuda"]) == 0
    captured = capsys.readouterr()
    assert f"note: {note}" in captured.err
    assert "(cuda), batch" in captured.out


def test_provider_that_took_nothing_is_refused(bundle, build_with):
    build_with("CUDAExecutionProvider", parts=[Part(CPU, "Cast", "Flatten", "Gemm")])
    with pytest.raises(EngineError, match="took none of the model's 3 operations; all would run on the CPU"):
        open_runner(bundle, choice=EngineChoice(provider="cuda"))


def test_engine_too_old_to_count_says_so(bundle, build_with):
    build_with("CUDAExecutionProvider")
    with open_runner(bundle, choice=EngineChoice(provider="cuda")) as runner:
        assert runner.nodes == {}
        assert "does not say which operations run on CUDAExecutionProvider" in runner.notes[0]


def test_failure_to_load_names_the_provider(bundle, build_with, monkeypatch):
    build_with("CUDAExecutionProvider")

    def fail(*arguments, **options):
        print("Falling back to ['CPUExecutionProvider'] and retrying.")
        raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(EngineError, match=r"model on CUDAExecutionProvider .*: libcudnn\.so\.9: cannot open"):
        open_runner(bundle, choice=EngineChoice(provider="cuda"))


def test_what_the_engine_prints_is_no_result(bundle, build_with, monkeypatch, capsys):
    test_failure_to_load_names_the_provider(bundle, build_with, monkeypatch)
    captured = capsys.readouterr()
    assert (captured.out, "Falling back" in captured.err) == ("", True)


@pytest.fixture
def plugin(monkeypatch, build_with):
    """Put a plugin package in place, and an engine that takes it; `devices` are there once it is registered."""
    devices, registered = [], []
    package = types.SimpleNamespace(
        get_ep_name=lambda: "QNNExecutionProvider", get_library_path=lambda: "/where/libqnn.so"
    )

    class Options(onnxruntime.SessionOptions):
        def add_provider_for_devices(self, chosen, options):
            registered.append(("session", [each.ep_name for each in chosen], options))

    seen = build_with(parts=[Part("QNNExecutionProvider", "Gemm")], providers=("QNNExecutionProvider", CPU))
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", package)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(
        onnxruntime,
        "register_execution_provider_library",
        lambda *given: registered.append(given),
        raising=False,
    )
    known = [types.SimpleNamespace(ep_name=CPU)]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: known + (devices if registered else []), raising=False)
    return types.SimpleNamespace(devices=devices, registered=registered, session=seen)


def test_plugin_is_registered_and_given_one_device(bundle, plugin):
    plugin.devices += [types.SimpleNamespace(ep_name="QNNExecutionProvider")] * 2
    with open_runner(bundle, choice=EngineChoice(provider="qnn")) as runner:
        assert runner.nodes == {"QNNExecutionProvider": 1}
    assert plugin.registered == [
        ("QNNExecutionProvider", "/where/libqnn.so"),
        ("session", ["QNNExecutionProvider"], {}),
    ]
    assert plugin.session["providers"] is None  # or the session would forget its options' devices


def test_plugin_without_a_device_is_refused(bundle, plugin):
    with pytest.raises(EngineError, match="QNNExecutionProvider finds no device here"):
        open_runner(bundle, choice=EngineChoice(provider="qnn"))


def test_plugin_that_does_not_load_says_why(bundle, plugin, monkeypatch):
    def fail(name, path):
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(EngineError, match=r"onnxruntime_qnn does not load here: libcuda\.so\.1"):
        open_runner(bundle, choice=EngineChoice(provider="qnn"))


def test_plugin_needs_an_engine_that_takes_plugins(bundle, plugin, monkeypatch):
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(EngineError, match="takes no plugins") as caught:
        open_runner(bundle, choice=EngineChoice(provider="qnn"))
    assert caught.value.remedy == "pip install 'onnxruntime>=1.23'"
