"""Runs on a device that is reached by adb: a stand-in for the client, and the real one where it is installed.

The device is a stand-in in both (`tests/support/adb_device.py`), with Android's ways: a home that cannot be written, no
environment but the shell's, and a SIGHUP where the client goes away.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from adb import stand_in_bridge
from adb_real import real_bridge
from altered import file_that_changes_once_announced
from waiting import processes_below, wait_until

from compress import remote
from compress.link import link_error
from compress.on_target import accuracy_on_target, bench_on_target, doctor_on_target, on_all
from compress.remote import Device
from compress.targets import Target
from runtime import custom_ops, remote_end
from runtime.bundle import Bundle, open_bundle
from runtime.errors import EdgefoldError, MissingExtraError, RunError, UsageError


@dataclass(frozen=True)
class Phone:
    """A device that is ready. environment: what makes `adb` find it."""

    serial: str
    temporary: Path
    environment: dict[str, str]
    unplug: Callable[[], None]
    real: bool

    @property
    def kept(self) -> Path:
        return self.temporary / f"edgefold-{os.geteuid()}" / "files"

    def left_behind(self) -> list[str]:
        return [*map(str, self.kept.parent.glob("run-*")), *processes_below(self.temporary)]


def path_with(folder: Path) -> str:
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module", params=["stand-in", "real"])
def any_phone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    folder = tmp_path_factory.mktemp("adb") / "bridge"
    if request.param == "stand-in":
        bridge = stand_in_bridge(folder)
        yield Phone(
            bridge.add("emulator-5554"), bridge.temporary, {"PATH": path_with(bridge.path)}, bridge.unplug, False
        )
    elif shutil.which("adb") is None:
        pytest.skip("needs adb (apt install adb)")
    else:
        folder.mkdir()
        with real_bridge(folder) as real:
            serial = real.add()
            yield Phone(serial, real.temporary, real.environment, real.devices[serial].unplug, True)


@pytest.fixture
def phone(any_phone: Phone, monkeypatch: pytest.MonkeyPatch) -> Phone:
    for name, value in any_phone.environment.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(any_phone.kept.parent, ignore_errors=True)
    return any_phone


@pytest.fixture
def target(phone: Phone) -> Target:
    return Target(serial=phone.serial, python=sys.executable)


@pytest.fixture
def bundle(project: Any) -> Bundle:
    return open_bundle(project.bundle)


def quiet(line: str) -> None:
    pass


def test_latency_and_accuracy_come_from_the_device(phone: Phone, target: Target, bundle: Bundle) -> None:
    lines: list[str] = []
    accuracy = accuracy_on_target("phone", target, bundle, None, limit=100, notify=lines.append)["onnx"]
    assert accuracy["host_agreement"] == {"equal": 100, "total": 100, "rate": 1.0, "differing_row_ids": []}
    why = "/proc/.cache cannot be made or written: No such file or directory"
    assert lines[0] == f"phone: files are kept in {phone.kept.parent}: {why}"
    if not phone.real:  # of the two once: it takes seconds
        result = bench_on_target("phone", target, bundle, quick=True, notify=lines.append)["onnx"]
        assert result["bundle"]["checksum"] == bundle.checksum
        assert result["target"]["name"] == "phone"
        assert result["latency"]["calls"] >= 662
        assert any(line.startswith("phone: warming up") for line in lines)
    assert phone.left_behind() == []


def test_every_byte_goes_over_and_a_second_run_sends_only_what_changed(phone: Phone, target: Target) -> None:
    files = {"a": bytes(range(256)) * 8192, "b": b"\n~.\r\n\x03\x04\x1a", "bundle/c": b"one"}
    with Device("phone", target, files) as device:
        assert set(device.sent) == {remote_end.AGENT, *files}
    with Device("phone", target, {**files, "bundle/c": b"two"}) as device:
        assert device.sent == ("bundle/c",)
    kept = {path.read_bytes() for path in phone.kept.iterdir()}
    assert {*files.values(), b"two"} < kept
    assert phone.left_behind() == []


def test_a_file_that_changes_on_the_way_is_refused(
    phone: Phone, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_that_changes_once_announced(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=r"target phone: bundle/model.onnx came altered: its sha256 is not"):
        Device("phone", target, {"bundle/model.onnx": path}).__enter__()
    assert wait_until(lambda: phone.left_behind() == [])
    assert b"mode1" not in {path.read_bytes() for path in phone.kept.iterdir()}


def test_a_client_that_is_killed_leaves_nothing_running(phone: Phone, target: Target, bundle: Bundle) -> None:
    cut_at: list[str] = []

    def cut(line: str) -> None:
        if "measuring" in line:
            cut_at.append(line)
            assert any(" bench " in each for each in phone.left_behind())
            (device,) = remote._open
            device._process.send_signal(signal.SIGKILL)

    with pytest.raises(RunError, match=rf"target phone \({phone.serial}\): the link ended"):
        bench_on_target("phone", target, bundle, notify=cut)
    assert len(cut_at) == 1
    assert wait_until(lambda: phone.left_behind() == [])


def test_a_cable_that_is_pulled_is_said_and_ends_the_run(phone: Phone, target: Target, bundle: Bundle) -> None:
    def pull(line: str) -> None:
        if "measuring" in line:
            phone.unplug()

    with pytest.raises(RunError, match=r"the link broke: the device went away\n`adb devices` lists"):
        bench_on_target("phone", target, bundle, notify=pull)
    assert wait_until(lambda: phone.left_behind() == [])
    assert wait_until(lambda: reaches(target))  # the server connects again by itself


def reaches(target: Target) -> bool:
    try:
        with Device("phone", target, {}):
            return True
    except EdgefoldError:
        return False


def test_an_interrupt_cleans_up(phone: Phone, target: Target, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text(json.dumps({"phone": target.model_dump(exclude_none=True, mode="json")}))
    command = [sys.executable, "-m", "compress", "bench", str(bundle.path), "--target", "phone"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(remote.__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "measuring" in line:
                running.send_signal(signal.SIGINT)
                break
        running.stderr.read()
    assert running.returncode == 130
    assert wait_until(lambda: phone.left_behind() == [])


def test_a_phone_without_python_is_told_of_termux(phone: Phone, target: Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Device("phone", target.model_copy(update={"python": "python3.99"}), {}).__enter__()
    assert caught.value.message.startswith(f"target phone ({phone.serial}): no Python at 'python3.99': ")
    assert "Termux's is not one: run `sshd` in Termux" in caught.value.remedy
    forbidden = tmp_path / "python3"
    forbidden.touch(mode=0o600)
    with pytest.raises(UsageError, match=r"'.*/python3' cannot be run: .*Permission denied"):
        Device("phone", target.model_copy(update={"python": str(forbidden)}), {}).__enter__()


def test_a_phone_without_numpy_is_told_how_to_get_it(target: Target, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    bare = target.model_copy(update={"python": str(tmp_path / "bare" / "bin" / "python")})
    with pytest.raises(
        MissingExtraError, match=r"target phone: .* has no numpy\nOn the device: .* -m pip install numpy"
    ):
        Device("phone", bare, {}).__enter__()
    found = {each["what"]: each for each in doctor_on_target("phone", target, None, notify=quiet)}
    assert found["numpy"]["usable"]


def python_that(folder: Path, does: str) -> str:
    """Return a Python that runs the line `does` first."""
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; {does}; exec(sys.argv.pop())' \"$2\"\n")
    path.chmod(0o755)
    return str(path)


def test_no_library_of_linux_goes_to_android(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / custom_ops.FILE_NAME
    shutil.copy(sys.executable, library)  # a file of this machine
    monkeypatch.setattr(custom_ops, "FOLDER", tmp_path)
    with Device("phone", target, {}, with_operators=True) as device:
        assert remote_end.OPS_LIBRARY in device.sent
    android = target.model_copy(update={"python": python_that(tmp_path, "sys.getandroidapilevel = lambda: 34")})
    with Device("phone", android, {"a": b"x"}, with_operators=True) as device:
        assert device.about["system"] == "Android"
        assert device.sent == ("a",)


def test_a_device_that_hangs_is_given_up(
    phone: Phone, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = target.model_copy(update={"python": python_that(tmp_path, "import time; time.sleep(20)")})
    with monkeypatch.context() as patched:
        patched.setattr(remote, "_GREETING_S", 0.5)
        with pytest.raises(
            RunError, match=r"^target phone: no answer within 0\.5 s\nLook whether the device still runs"
        ):
            Device("phone", slow, {}).__enter__()
    monkeypatch.setattr(remote, "_SPARE_S", 0.2)
    hanging = target.model_copy(update={"time_limit_s": 0.3})
    with Device("phone", hanging, {}) as device:
        device._process.send_signal(signal.SIGSTOP)  # the link is there, and nothing comes
        with pytest.raises(RunError, match=r"^target phone: no answer within 0\.5 s"):
            device.run("doctor")
    assert wait_until(lambda: phone.left_behind() == [])


def test_two_devices_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = stand_in_bridge(tmp_path)
    monkeypatch.setenv("PATH", path_with(bridge.path))
    targets = {name: Target(serial=bridge.add(name), python=sys.executable) for name in ("one", "two")}
    targets["off"] = Target(serial=bridge.add("off", "offline"))
    inside: list[str] = []

    def work(name: str, each: Target) -> list[str]:
        with Device(name, each, {"a": b"x"}):
            inside.append(name)
            assert wait_until(lambda: len(inside) == 2)  # so both are open at the same time
            return list(inside)

    outcomes = on_all(targets, work)
    assert isinstance(outcomes.pop("off"), UsageError)
    assert {name: sorted(each) for name, each in outcomes.items()} == {"one": ["one", "two"], "two": ["one", "two"]}


@pytest.mark.parametrize(
    ("state", "said", "remedy"),
    [
        ("unauthorized", "device unauthorized", "Unlock the device and allow debugging from this computer"),
        ("authorizing", "device still authorizing", "Unlock the device and allow debugging from this computer"),
        ("connecting", "device still connecting", "Run the command again in a moment."),
        ("offline", "device offline", "Plug it in anew, or try `adb reconnect offline`"),
        ("no permissions", "insufficient permissions for device", "This user may not open the USB device"),
    ],
)
def test_a_device_that_is_not_ready_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, said: str, remedy: str
) -> None:
    bridge = stand_in_bridge(tmp_path)
    monkeypatch.setenv("PATH", path_with(bridge.path))
    bridge.add("emulator-5554", state)
    with pytest.raises(UsageError) as caught:
        Device("phone", Target(serial="emulator-5554"), {}).__enter__()
    assert caught.value.message.startswith(f"target phone (emulator-5554) cannot be reached: {said}")
    assert "daemon" not in caught.value.message
    assert caught.value.remedy.startswith(remedy)


def test_a_device_that_is_not_there_is_named(phone: Phone) -> None:
    with pytest.raises(
        UsageError, match=r"target phone \(nowhere\) cannot be reached: device 'nowhere' not found\n`adb dev"
    ):
        Device("phone", Target(serial="nowhere"), {}).__enter__()


def test_the_real_client_speaks_of_its_devices_as_the_stand_in_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("adb") is None:
        pytest.skip("needs adb (apt install adb)")
    with real_bridge(tmp_path) as bridge:
        for name, value in bridge.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=r"cannot be reached: device (unauthorized|still authorizing)\nUnlock"):
            Device("phone", Target(serial=bridge.add(authorized=False)), {}).__enter__()
        with pytest.raises(UsageError, match="only supports allocating a pty\nAndroid 7 or newer is needed"):
            Device("phone", Target(serial=bridge.add(features="cmd")), {}).__enter__()


def test_an_old_android_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = stand_in_bridge(tmp_path)
    monkeypatch.setenv("PATH", path_with(bridge.path))
    with pytest.raises(UsageError, match="only supports allocating a pty\nAndroid 7 or newer is needed"):
        Device("phone", Target(serial=bridge.add("old", features="cmd")), {}).__enter__()


def test_a_bridge_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingExtraError, match=r"^adb is not installed; target phone is reached by it\nInstall it: apt"
    ):
        Device("phone", Target(serial="emulator-5554"), {}).__enter__()


PHONE = Target(serial="emulator-5554")


@pytest.mark.parametrize(
    ("status", "lines", "kind", "message"),
    [
        (
            1,
            ["adb: device 'emulator-5554' not found"],
            UsageError,
            "cannot be reached: device 'emulator-5554' not found",
        ),
        (1, ["error: more than one device/emulator"], UsageError, "cannot be reached: more than one device/emulator"),
        (1, ["adb: no devices/emulators found"], UsageError, "cannot be reached: no devices/emulators found"),
        (1, ["* failed to start daemon", "error: cannot connect to daemon"], UsageError, "cannot connect to daemon"),
        (255, [], RunError, "the link broke: the device went away"),
        (0, [], RunError, "the link broke: the device went away"),
        (
            1,
            ["Traceback", "error: Segmentation fault"],
            RunError,
            "the link ended: Traceback error: Segmentation fault",
        ),
    ],
)
def test_the_end_of_a_link_in_words(status: int, lines: list[str], kind: type[EdgefoldError], message: str) -> None:
    started = ["* daemon not running; starting now at tcp:5037", "* daemon started successfully"]
    error = link_error("phone", PHONE, status, [*started, *lines])
    assert type(error) is kind
    assert error.message.endswith(message)
    assert "starting now" not in error.message
