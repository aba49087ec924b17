"""A device's disk that fills up, and this machine's: a small file system that really is full."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adb import StandInBridge, stand_in_bridge
from small_disk import SmallDisk, small_disk

from compress import remote
from compress.commands import targets as commands
from compress.remote import Device
from compress.targets import Target
from runtime import files, remote_end
from runtime.bundle import Bundle, open_bundle
from runtime.errors import EngineError, RunError, UsageError
from runtime.files import sha256_of_file

FULL = r"^target phone: the device's disk is full\nFree space on the device\.$"


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInBridge:
    bridge = stand_in_bridge(tmp_path / "bridge")
    monkeypatch.setenv("PATH", f"{bridge.path}{os.pathsep}{os.environ['PATH']}")
    return bridge


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, megabytes=20) as disk:
        yield disk


@pytest.fixture
def target(bridge: StandInBridge, disk: SmallDisk) -> Target:
    return Target(serial=bridge.add("emulator-5554"), python=str(disk.python))


def bundle_files(bundle: Bundle) -> dict[str, Any]:
    return {f"bundle/{path.name}": path for path in bundle.path.iterdir()}


def assert_only_whole_files(disk: SmallDisk) -> None:
    """Nothing of a run is left, and each file that is kept is what its name says."""
    assert [path.name for path in (disk.seen / "edgefold").iterdir()] == ["files"]
    for path in (disk.seen / "edgefold" / "files").iterdir():
        assert sha256_of_file(path) == path.name


def test_a_disk_that_fills_up_while_a_file_is_received(
    target: Target, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Device._send
    content = os.urandom(2 << 20)

    def filling(device: Device, message: dict[str, Any], *content: Any) -> None:
        if message.get("size", 0) > 1 << 20:
            disk.fill(leaving=1 << 20)  # enough for the half of it
        send(device, message, *content)

    with monkeypatch.context() as patched:
        patched.setattr(Device, "_send", filling)
        with pytest.raises(UsageError, match=FULL):
            Device("phone", target, {"a": b"small", "large": content}).__enter__()
    assert_only_whole_files(disk)
    with pytest.raises(
        UsageError, match=r"disk/edgefold/files has 1 MB free, and the files need 2\.1 MB and some room"
    ):
        Device("phone", target, {"large": content}).__enter__()
    disk.free()
    with Device("phone", target, {"a": b"small", "large": content}) as device:
        assert device.sent == ("large",)  # what had arrived before was kept
    assert_only_whole_files(disk)


def test_a_disk_that_fills_up_while_the_files_are_laid_out(
    target: Target, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Device._send
    room = len(remote.agent.agent_bytes()) + (64 << 10)  # for the one file that is sent, and not for what is in it

    def filling(device: Device, message: dict[str, Any], *content: Any) -> None:
        if "sha256" in message:
            disk.fill(leaving=room)
        send(device, message, *content)

    with monkeypatch.context() as patched:
        patched.setattr(Device, "_send", filling)
        with pytest.raises(UsageError, match=FULL):
            Device("phone", target, {}).__enter__()
    assert_only_whole_files(disk)
    disk.free()
    with Device("phone", target, {}) as device:
        assert device.sent == ()


def test_a_disk_that_is_full_when_the_result_is_written(target: Target, disk: SmallDisk, project: Any) -> None:
    bundle = open_bundle(project.bundle)
    with Device("phone", target, bundle_files(bundle)) as device:
        disk.fill()
        with pytest.raises(EngineError, match=r"^target phone: result\.json cannot be written: the disk is full\nFree"):
            device.run("accuracy", "bundle", "--format", "onnx", "--limit", 8)
        disk.free()
        assert device.run("accuracy", "bundle", "--format", "onnx", "--limit", 8)["total"] == 8  # the same session
    assert_only_whole_files(disk)


def test_an_operators_library_is_refused_where_nothing_can_be_loaded(bridge: StandInBridge, tmp_path: Path) -> None:
    with small_disk(tmp_path, megabytes=20, options=",noexec") as disk:
        target = Target(serial=bridge.add("emulator-5554"), python=str(disk.python))
        with Device("phone", target, {"a": b"x"}):
            pass
        with pytest.raises(UsageError, match=r"disk/edgefold/files is on a file system mounted noexec, .*\nSet XDG"):
            Device("phone", target, {remote_end.OPS_LIBRARY: b"x"}).__enter__()


def test_this_machines_full_disk_loses_no_result(disk: SmallDisk, capsys: pytest.CaptureFixture[str]) -> None:
    disk.fill()
    results = {"phone": {"onnx": {"kind": "bench", "padding": "x" * 5000}}}
    errors = [UsageError("target pi4 cannot be reached")]
    with pytest.raises(UsageError, match="target pi4 cannot be reached"):
        commands._finish(results, errors, disk.seen / "result.json")
    assert "result.json cannot be written: the disk is full\nFree space there." in capsys.readouterr().err
    with pytest.raises(RunError, match=r"result\.json cannot be written: the disk is full\nFree space there\."):
        commands._finish(results, [], disk.seen / "result.json")
    assert [path.name for path in disk.seen.iterdir()] == ["filler"]  # no half of a file
    disk.free()
    commands._finish(results, [], disk.seen / "result.json")
    assert json.loads((disk.seen / "result.json").read_text()) == results


def test_what_is_measured_here_is_printed_before_it_is_written(disk: SmallDisk, project: Any) -> None:
    disk.fill()
    command = [disk.python, "-m", "runtime", "accuracy", project.bundle, "--limit", "8", "--json"]
    done = subprocess.run(
        [*map(str, command), "--output", str(disk.mount / "accuracy.json")],
        env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["total"] == 8
    assert "accuracy.json cannot be written: the disk is full" in done.stderr
