"""How a device is reached: the command of ssh or adb that starts the receiving program, and what its end means."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from compress.targets import Target
from runtime.errors import EdgefoldError, RunError, UsageError

_CONNECT_S = 15
_NO_SUCH_COMMAND = 127
_SSH_FAILED = 255

# Reads the receiving program from stdin and becomes it. Old Pythons understand it, so that they can be told.
_START = (
    "import sys,json\n"
    "if sys.version_info<(3,10):\n"
    " print(json.dumps({'error':'Python %d.%d.%d is too old'%sys.version_info[:3],"
    "'remedy':'Install Python 3.10 or newer there and name it as `python` of the target.'}))\n"
    " sys.exit(0)\n"
    "exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())),'edgefold','exec'))"
)


def command_of(target: Target) -> list[str]:
    """Return the command that starts the receiving program on a device."""
    remote = f"{shlex.quote(target.python)} -c {shlex.quote(_START)}"
    if target.serial is not None:
        return ["adb", "-s", target.serial, "shell", "-T", remote]
    assert target.host is not None  # the schema looked
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    options += ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", "-T"]
    options += ["-F", target.ssh_config] if target.ssh_config else []
    options += ["-p", str(target.port)] if target.port else []
    options += ["-l", target.user] if target.user else []
    return ["ssh", *options, "--", target.host, remote]


def link_error(name: str, target: Target, status: int | None, said: Sequence[str]) -> EdgefoldError:
    words = " ".join(line for line in said if line) or f"ended with {status} and said nothing"
    where = f"target {name} ({target.host or target.serial})"
    if "Host key verification failed" in words:
        return UsageError(
            f"{where}: its host key is not known here, or is another one than before: {words}",
            f"Connect by hand once (`ssh {target.host}`) and compare the key that it shows with the device's.",
        )
    if "Permission denied" in words:
        return UsageError(f"{where}: {words}", "Only keys are used: let `ssh` log in there without a password.")
    if status == _SSH_FAILED and target.host is not None:
        return UsageError(f"{where} cannot be reached, or the link broke: {words}")
    if status == _NO_SUCH_COMMAND:
        return UsageError(
            f"{where}: no Python at '{target.python}': {words}", "Name the device's Python as `python` of the target."
        )
    return RunError(f"{where}: the link ended: {words}")
