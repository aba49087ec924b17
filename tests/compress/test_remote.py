"""Runs on a device that is reached by a real sshd on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in_tensorrt
from altered import file_that_changes_once_announced
from ssh_server import SSHD, SshServer, ssh_server
from waiting import processes_below, wait_until

from compress import on_target, remote
from compress.on_target import accuracy_on_target, bench_on_target, doctor_on_target, on_all
from compress.remote import Device
from compress.targets import Target
from runtime import remote_end
from runtime.bundle import Bundle, open_bundle
from runtime.cuda import cuda_devices
from runtime.errors import EdgefoldError, EngineError, MissingExtraError, RunError, UsageError

pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="needs sshd (apt install openssh-server)"),
    pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (apt install openssh-client)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as running:
        yield running


@pytest.fixture
def target(server: SshServer) -> Target:
    shutil.rmtree(server.home / "edgefold", ignore_errors=True)
    return Target(host="127.0.0.1", port=server.port, ssh_config=str(server.config), python=sys.executable)


@pytest.fixture
def bundle(project: Any) -> Bundle:
    return open_bundle(project.bundle)


def quiet(line: str) -> None:
    pass


def kept_files(server: SshServer) -> list[str]:
    return sorted(path.name for path in (server.home / "edgefold" / "files").iterdir())


def left_behind(server: SshServer) -> list[str]:
    """Return what a run left: its folder, and processes that stand in it or below the server's home."""
    return [*map(str, (server.home / "edgefold").glob("run-*")), *processes_below(server.home)]


def test_latency_and_accuracy_come_from_the_device(server: SshServer, target: Target, bundle: Bundle) -> None:
    lines: list[str] = []
    result = bench_on_target("box", target, bundle, quick=True, notify=lines.append)["onnx"]
    assert result["bundle"]["checksum"] == bundle.checksum
    assert result["target"]["name"] == "box"
    assert result["quick"] is True
    assert result["latency"]["calls"] >= 662
    assert any(line.startswith("box: warming up") for line in lines)
    accuracy = accuracy_on_target("box", target, bundle, None, limit=100, notify=quiet)["onnx"]
    assert accuracy["total"] == 100
    assert accuracy["host_agreement"] == {"equal": 100, "total": 100, "rate": 1.0, "differing_row_ids": []}
    samples = bundle.samples()
    assert samples.logits is not None
    expected = (samples.logits[:100].argmax(1) == samples.labels[:100]).sum()
    assert accuracy["correct"] == expected
    assert left_behind(server) == []


def test_a_second_run_sends_only_what_changed(server: SshServer, target: Target) -> None:
    files = {"bundle/a": b"one", "bundle/b": b"two", "c": b"one"}
    with Device("box", target, files) as device:
        assert set(device.sent) == {remote_end.AGENT, "bundle/b", "c"}  # equal content goes over once
    with Device("box", target, files) as device:
        assert device.sent == ()
    with Device("box", target, {**files, "bundle/b": b"three"}) as device:
        assert device.sent == ("bundle/b",)
    assert len(kept_files(server)) == 4
    assert left_behind(server) == []


def test_a_file_that_was_damaged_on_the_device_is_sent_again(server: SshServer, target: Target) -> None:
    with Device("box", target, {"a": b"one"}):
        pass
    for path in (server.home / "edgefold" / "files").iterdir():
        if path.read_bytes() == b"one":
            path.write_bytes(b"own")
    with Device("box", target, {"a": b"one"}) as device:
        assert device.sent == ("a",)


def test_a_file_that_changes_on_the_way_is_refused(
    server: SshServer, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_that_changes_once_announced(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=r"target box: bundle/model.onnx came altered: its sha256 is not"):
        Device("box", target, {"bundle/model.onnx": path}).__enter__()
    assert wait_until(lambda: left_behind(server) == [])
    assert [
        name for name in kept_files(server) if (server.home / "edgefold/files" / name).read_bytes() == b"mode1"
    ] == []


@pytest.mark.parametrize("path", ["/etc/edgefold", "../outside", "a//b", "./a", ""])
def test_a_path_that_leaves_the_run_folder_is_refused(target: Target, path: str) -> None:
    with pytest.raises(UsageError, match="is not a plain path"):
        Device("box", target, {path: b"x"}).__enter__()


def test_an_unknown_host_key_is_refused(server: SshServer, target: Target) -> None:
    stranger = target.model_copy(update={"ssh_config": str(server.forget_host_key())})
    with pytest.raises(UsageError) as caught:
        Device("box", stranger, {}).__enter__()
    assert "target box (127.0.0.1): its host key is not known here" in str(caught.value)
    assert "Connect by hand once (`ssh 127.0.0.1`)" in str(caught.value)


def test_what_cannot_be_reached_is_named(server: SshServer, target: Target, tmp_path: Path) -> None:
    closed = target.model_copy(update={"port": 1})
    with pytest.raises(UsageError, match=r"target box \(127\.0\.0\.1\) cannot be reached.*Connection refused"):
        Device("box", closed, {}).__enter__()
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace("user_key", "host_key"))
    with pytest.raises(UsageError, match=r"Permission denied.*\nOnly keys are used"):
        Device("box", target.model_copy(update={"ssh_config": str(config)}), {}).__enter__()
    nowhere = target.model_copy(update={"python": "/opt/none/python3"})
    with pytest.raises(UsageError, match=r"no Python at '/opt/none/python3'.*\nName the device's Python"):
        Device("box", nowhere, {}).__enter__()


def python_without_numpy(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def test_a_device_without_numpy_is_told_how_to_get_it(target: Target, tmp_path: Path) -> None:
    bare = python_without_numpy(tmp_path / "bare")
    with pytest.raises(MissingExtraError) as caught:
        Device("box", target.model_copy(update={"python": bare}), {}).__enter__()
    assert caught.value.message == f"target box: {bare} has no numpy"
    assert caught.value.remedy == f"On the device: {bare} -m pip install numpy"


def test_an_old_python_is_told_of(target: Target, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    changed = "import sys; sys.version_info = (3, 8, 10); import runpy; exec(sys.argv.pop())"
    old.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -c '{changed}' \"$1\"\n")
    old.chmod(0o755)
    with pytest.raises(UsageError, match=r"Python 3\.8\.10 is too old\nInstall Python 3\.10 or newer"):
        Device("box", target.model_copy(update={"python": str(old)}), {}).__enter__()


def test_a_login_that_prints_is_told_of(target: Target, tmp_path: Path) -> None:
    chatty = tmp_path / "python3"
    chatty.write_text(f'#!/bin/sh\necho Welcome\nexec {sys.executable} "$@"\n')
    chatty.chmod(0o755)
    with pytest.raises(UsageError, match=r"the device answered 'Welcome'\nSomething prints there at login"):
        Device("box", target.model_copy(update={"python": str(chatty)}), {}).__enter__()


def test_a_library_of_another_machine_is_refused(target: Target, tmp_path: Path) -> None:
    library = tmp_path / "libedgefold_ops.so"
    library.write_bytes(b"\x7fELF\x02\x01" + bytes(12) + (40).to_bytes(2, "little"))
    with pytest.raises(UsageError, match=r"ops_library .* is for armv7l; the device is \w+\nBuild it"):
        Device("box", target.model_copy(update={"ops_library": str(library)}), {}, with_operators=True).__enter__()


def test_a_run_that_fails_says_why_once(target: Target, bundle: Bundle) -> None:
    lines: list[str] = []
    files = {f"bundle/{path.name}": path for path in bundle.path.iterdir()}
    with (
        Device("box", target, files, notify=lines.append) as device,
        pytest.raises(UsageError, match=r"^target box: bundle: no format 'none' in this bundle; it has onnx"),
    ):
        device.run("accuracy", "bundle", "--format", "none")
    assert not any("error" in line for line in lines)


def test_a_run_ends_at_its_time_limit(server: SshServer, target: Target, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"took longer than its limit of 0\.3 s\nRaise time_limit_s"):
        bench_on_target("box", target.model_copy(update={"time_limit_s": 0.3}), bundle, notify=quiet)
    assert wait_until(lambda: left_behind(server) == [])


def test_a_link_that_is_cut_leaves_nothing_running(server: SshServer, target: Target, bundle: Bundle) -> None:
    cut_at: list[str] = []

    def cut(line: str) -> None:
        if "measuring" in line:
            cut_at.append(line)
            assert any(" agent bench " in each for each in left_behind(server))
            (device,) = remote._open
            device._process.send_signal(signal.SIGKILL)

    with pytest.raises((UsageError, RunError), match=r"target box \(127\.0\.0\.1\)"):
        bench_on_target("box", target, bundle, notify=cut)
    assert len(cut_at) == 1
    assert wait_until(lambda: left_behind(server) == [])
    assert all(len(name) == 64 for name in kept_files(server))


def test_a_link_that_is_cut_while_files_go_over_leaves_no_half_file(server: SshServer, target: Target) -> None:
    class Cutting(Device):
        def _write_now(self, data: bytes) -> None:
            super()._write_now(data)
            if len(data) == 1 << 20:
                self._process.kill()

    path = server.folder / "large"
    path.write_bytes(bytes(8 << 20))
    with pytest.raises((UsageError, RunError)):
        Cutting("box", target, {"large": path}).__enter__()
    assert wait_until(lambda: left_behind(server) == [])
    sizes = [(server.home / "edgefold" / "files" / name).stat().st_size for name in kept_files(server)]
    assert max(sizes, default=0) < 1 << 20  # the agent at most


def test_an_interrupt_cleans_up(server: SshServer, target: Target, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text(json.dumps({"box": target.model_dump(exclude_none=True, mode="json")}))
    command = [sys.executable, "-m", "compress", "bench", str(bundle.path), "--target", "box"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=with_checkout(),
        # Where the tests run in the background, a shell has told them, and so what they start, to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "measuring" in line:
                running.send_signal(signal.SIGINT)
                break
        running.stderr.read()
    assert running.returncode == 130
    assert wait_until(lambda: left_behind(server) == [])


def with_checkout() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(remote.__file__).parents[1])}


def test_two_devices_at_once_and_one_failure_stops_no_other(target: Target) -> None:
    inside: list[str] = []

    def work(name: str, each: Target) -> list[str]:
        with Device(name, each, {"a": b"x"}):
            inside.append(name)
            assert wait_until(lambda: len(inside) == 2)  # so both are open at the same time
            return list(inside)

    outcomes = on_all({"one": target, "two": target, "none": target.model_copy(update={"port": 1})}, work)
    assert isinstance(outcomes.pop("none"), EdgefoldError)
    assert {name: sorted(each) for name, each in outcomes.items()} == {"one": ["one", "two"], "two": ["one", "two"]}


def test_a_full_disk_is_said_before_anything_is_sent(
    server: SshServer, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_size", lambda content: 1 << 60)
    with pytest.raises(UsageError, match=r"MB free, and the files need .* MB.*\nFree space on the device"):
        Device("box", target, {"a": b"x"}).__enter__()
    assert kept_files(server) == []


def test_a_disk_that_fills_up_on_the_way_is_named() -> None:
    full = OSError(28, "No space left on device")
    assert (remote_end._in_words(full), remote_end._remedy(full)) == (
        "the device's disk is full",
        "Free space on the device.",
    )
    assert remote_end._in_words(ValueError("x")) == "ValueError: x"


def test_a_result_of_another_bundle_is_refused(target: Target, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Device.run

    def of_another(self: Device, *arguments: object) -> dict[str, Any]:
        result = ran(self, *arguments)
        return {**result, "bundle": {**result["bundle"], "checksum": "ab" * 32}}

    monkeypatch.setattr(Device, "run", of_another)
    with pytest.raises(UsageError, match=r"the result is of bundle abababababab, and .* is .*changed on the way"):
        accuracy_on_target("box", target, bundle, None, limit=8, notify=quiet)


def test_predictions_that_differ_are_listed(target: Target, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bundle.samples()
    here = on_target._predictions_here

    def one_off(*arguments: Any) -> dict[int, int]:
        predictions = here(*arguments)
        first = int(rows.row_ids[0])
        return {**predictions, first: (predictions[first] + 1) % bundle.classes}

    monkeypatch.setattr(on_target, "_predictions_here", one_off)
    result = accuracy_on_target("box", target, bundle, None, limit=8, notify=quiet)["onnx"]
    assert result["host_agreement"]["differing_row_ids"] == [int(rows.row_ids[0])]


def test_a_device_says_what_it_can_run(server: SshServer, target: Target, bundle: Bundle, tmp_path: Path) -> None:
    findings = {each["what"]: each for each in doctor_on_target("box", target, bundle, notify=quiet)}
    assert findings["python"]["found"].endswith(sys.executable)
    assert findings["onnxruntime"]["usable"]
    assert findings["format onnx"]["usable"]
    assert left_behind(server) == []
    bare = target.model_copy(update={"python": python_without_numpy(tmp_path / "bare")})
    lacks = {each["what"]: each for each in doctor_on_target("box", bare, None, notify=quiet)}
    assert lacks["numpy"]["remedy"] == f"{bare.python} -m pip install numpy"
    assert lacks["an engine"]["needed"] is True


# Another engine


def test_a_device_runs_the_engine_that_its_entry_names(server: SshServer, target: Target, bundle: Bundle) -> None:
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    other = target.model_copy(update={"engine": "openvino"})
    result = bench_on_target("box", other, bundle, quick=True, notify=quiet)["onnx"]
    assert (result["engine"]["name"], result["engine"]["chosen"]) == ("openvino", {"engine": "openvino"})
    accuracy = accuracy_on_target("box", other, bundle, None, limit=64, notify=quiet)["onnx"]
    assert accuracy["engine"]["name"] == "openvino"
    assert accuracy["host_agreement"]["equal"] == 64  # onnxruntime's here
    assert left_behind(server) == []


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
def test_a_device_without_a_gpu_says_that_tensorrt_needs_one(
    server: SshServer, target: Target, bundle: Bundle, tmp_path: Path
) -> None:
    other = target.model_copy(update={"engine": "tensorrt"})
    said = r"^target box: bundle/model\.onnx: TensorRT needs an NVIDIA GPU, and this machine has no CUDA device$"
    with pytest.raises(EngineError, match=said):
        bench_on_target("box", other, bundle, notify=quiet)
    with pytest.raises(EngineError, match=said):
        accuracy_on_target("box", other, bundle, None, notify=quiet)
    assert left_behind(server) == []
    bare = other.model_copy(update={"python": python_without_numpy(tmp_path / "bare")})
    findings = {each["what"]: each for each in doctor_on_target("box", bare, bundle, notify=quiet)}
    lacks = {what: each["remedy"] for what, each in findings.items() if each["needed"] and not each["usable"]}
    assert list(lacks) == ["numpy", "tensorrt", "a GPU of NVIDIA's", "an engine"]
    assert lacks["tensorrt"] == f"{bare.python} -m pip install tensorrt"
    assert "format onnx" not in findings  # ONNX Runtime's opset is not TensorRT's


def test_a_format_that_runs_there_alone_is_not_compared(
    target: Target, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise EngineError("onnxruntime has no kernel of it")

    monkeypatch.setattr(on_target, "run_in_own_process", refused)
    lines: list[str] = []
    result = accuracy_on_target("box", target, bundle, None, limit=8, notify=lines.append)["onnx"]
    assert (result["total"], "host_agreement" in result) == (8, False)
    assert "onnx is not compared with this machine: onnxruntime has no kernel of it" in lines


def python_with_a_gpu(folder: Path, bundle: Bundle) -> str:
    """Return a Python that finds a driver, TensorRT and cuda-python: stand-ins, which run on the host."""
    support = Path(stand_in_tensorrt.__file__).parent
    (folder / "cuda" / "bindings").mkdir(parents=True)
    names = "globals().update({name: each for name, each in vars(made).items() if name != '__spec__'})\n"
    outputs = {spec.name: spec.shape[0] for spec in bundle.outputs}
    made = f"made = stand_in_tensorrt.builder_and_runtime([], {bundle.input.shape}, {outputs})\n"
    (folder / "tensorrt.py").write_text(f"import stand_in_tensorrt\n{made}{names}")
    made = "made = stand_in_tensorrt.cuda_runtime([])\n"
    (folder / "cuda/bindings/runtime.py").write_text(f"import stand_in_tensorrt\n{made}{names}")
    (folder / "sitecustomize.py").write_text(
        "import ctypes, stand_in_driver\n"
        "load = ctypes.CDLL\n"
        "ctypes.CDLL = lambda name, *more, **given: "
        "stand_in_driver.Driver() if name == 'libcuda.so.1' else load(name, *more, **given)\n"
    )
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={folder}:{support}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_an_engine_is_built_on_the_device_once(
    server: SshServer, target: Target, bundle: Bundle, tmp_path: Path
) -> None:
    changes = {"engine": "tensorrt", "python": python_with_a_gpu(tmp_path / "device", bundle)}
    other, lines = target.model_copy(update=changes), list[str]()
    build = bench_on_target("box", other, bundle, quick=True, notify=lines.append)["onnx"]["engine_build"]
    said = "box: building a tensorrt 10.3.0 engine of model.onnx for GPU 40, once"
    assert (build["cached"], lines.count(said)) == (False, 1)
    assert [each.name for each in (server.home / "edgefold" / "engines").iterdir()] == [build["key"]]
    accuracy = accuracy_on_target("box", other, bundle, None, limit=100, notify=lines.append)["onnx"]
    assert lines.count(said) == 1
    assert set(accuracy["predictions"].values()) == {bundle.classes - 1}  # what the stand-in computes
    assert accuracy["batch"] == max(bundle.batch_sizes)
    assert left_behind(server) == []
