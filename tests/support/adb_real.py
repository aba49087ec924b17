"""The real `adb` with a server of its own on a free port; its devices are stand-ins (`adb_device.AdbDevice`)."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adb_device import AdbDevice, android_environment


@dataclass(frozen=True)
class RealBridge:
    """`environment` makes `adb` use this server. temporary: the devices' only folder that can be written."""

    folder: Path
    environment: dict[str, str]
    devices: dict[str, AdbDevice] = field(default_factory=dict)

    @property
    def temporary(self) -> Path:
        return Path(android_environment(self.folder)["TMPDIR"])

    def add(self, *, features: str = "shell_v2", authorized: bool = True) -> str:
        """Connect a device; return its serial."""
        device = AdbDevice(android_environment(self.folder), features=features, authorized=authorized)
        serial = f"127.0.0.1:{device.port}"
        self.devices[serial] = device
        self.call("connect", serial)
        return serial

    def call(self, *arguments: str) -> str:
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            ["adb", *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False
        ).stdout


@contextmanager
def real_bridge(folder: Path) -> Iterator[RealBridge]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Its keys and its log go into the folder, and it looks for no other devices.
    environment = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(folder), "TMPDIR": str(folder), "ADB_MDNS": "0"}
    bridge = RealBridge(folder, environment)
    try:
        yield bridge
    finally:
        bridge.call("kill-server")
        for device in bridge.devices.values():
            device.close()
