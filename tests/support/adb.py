"""A stand-in for the client `adb`, on PATH: it knows the devices that a file beside it names.

It does what platform-tools do, as far as edgefold calls them: `adb -s SERIAL shell -T COMMAND` with stdin, stdout and
stderr as they are, the command's exit status, 255 where the device goes away; the lines about its server on stderr at
the first call; the same words for a device that is not there or not ready. The device's end is a process of its own,
as it would be on a device (`adb_device.serve_shell`): what ends it is that the client is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from adb_device import CLOSE_STDIN, EXIT, STDERR, STDIN, STDOUT, android_environment, packets, send_packet, serve_shell

# What the client says of a device in each state; "device" is one that is ready.
SAYS = {
    "unauthorized": "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
    "Try 'adb kill-server' if that seems wrong.\nOtherwise check for a confirmation dialog on your device.",
    "authorizing": "device still authorizing",
    "connecting": "device still connecting",
    "offline": "device offline",
    "no permissions": "insufficient permissions for device: user in plugdev group; are your udev rules wrong?\n"
    "See [http://developer.android.com/tools/device.html] for more information",
}


@dataclass(frozen=True)
class StandInBridge:
    """`path` goes first on PATH. `temporary` is the device's only folder that its shell can write."""

    folder: Path
    devices: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "bin"

    @property
    def temporary(self) -> Path:
        return Path(android_environment(self.folder)["TMPDIR"])

    def add(self, serial: str, state: str = "device", *, features: str = "shell_v2") -> str:
        environment = android_environment(self.folder)
        self.devices[serial] = {"state": state, "features": features, "environment": environment}
        (self.path / "devices.json").write_text(json.dumps(self.devices))
        return serial

    def unplug(self) -> None:
        """End the links of all devices, as a cable that is pulled does."""
        for path in self.path.glob("link-*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name.removeprefix("link-")), signal.SIGUSR1)


def stand_in_bridge(folder: Path) -> StandInBridge:
    """Return a bridge whose client lies in `folder / "bin"`."""
    bridge = StandInBridge(folder)
    bridge.path.mkdir(parents=True)
    program = bridge.path / "adb"
    program.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import adb\nsys.exit(adb.client({str(bridge.path)!r}, sys.argv[1:]))\n"
    )
    program.chmod(0o755)
    return bridge


def client(folder: str, arguments: list[str]) -> int:
    """Be `adb` with `arguments`; return its exit status."""
    started = Path(folder) / "server"
    if not started.exists():
        started.touch()
        print("* daemon not running; starting now at tcp:5037\n* daemon started successfully", file=sys.stderr)
    option, serial, verb, raw, command = arguments
    assert (option, verb, raw) == ("-s", "shell", "-T"), arguments
    devices = json.loads((Path(folder) / "devices.json").read_text())
    if serial not in devices:
        return _refuse(f"device '{serial}' not found")
    device = devices[serial]
    if device["state"] != "device":
        return _refuse(SAYS[device["state"]])
    if "shell_v2" not in device["features"]:
        return _refuse("device only supports allocating a pty")
    return _shell(Path(folder), command, device["environment"])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def _shell(folder: Path, command: str, environment: dict[str, str]) -> int:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _be_device(folder, theirs, command, environment)
    theirs.close()
    threading.Thread(target=_forward_stdin, args=(ours,), daemon=True).start()
    pipes = {STDOUT: 1, STDERR: 2}
    with ours.makefile("rb") as source:
        for kind, content in packets(source):
            if kind == EXIT:
                sys.stdout.flush()
                os._exit(content[0])  # the thread may wait for stdin for ever
            _write_all(pipes[kind], content)
    os._exit(255)


def _be_device(folder: Path, stream: socket.socket, command: str, environment: dict[str, str]) -> NoReturn:
    os.setsid()
    for number in range(3):  # so that no pipe of the client lives as long as this end
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    signal.signal(signal.SIGUSR1, lambda *_: stream.shutdown(socket.SHUT_RDWR))
    link = folder / f"link-{os.getpid()}"
    link.touch()
    try:
        serve_shell(stream, command, environment)
    finally:
        link.unlink()
        os._exit(0)


def _forward_stdin(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := os.read(0, 1 << 16):
            send_packet(stream, STDIN, block)
        send_packet(stream, CLOSE_STDIN)


def _write_all(pipe: int, content: bytes) -> None:
    while content:
        content = content[os.write(pipe, content) :]
