"""How a device is reached: the command of ssh or adb that starts the receiving program, and what its end means."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from compress.targets import LOCAL, Target, ThisMachine
from runtime.errors import EdgefoldError, RunError, UsageError

INSTALL = {"ssh": "Install it: apt install openssh-client.", "adb": "Install it: apt install adb, or platform-tools."}

_CONNECT_S = 15
_CANNOT_RUN, _NO_SUCH_COMMAND = 126, 127  # of a shell
_LINK_FAILED = 255  # of ssh; of adb since platform-tools 30, and 0 before

# What the client of the bridge says of a device, and how that is mended. It says "error:" or "adb:" before it.
_ADB_LISTS = "`adb devices` lists those that are there; one on the network is reached after `adb connect ADDRESS`."
_ALLOW = "Unlock the device and allow debugging from this computer in the dialog that it shows."
_ADB_REMEDIES = {
    "unauthorized": _ALLOW,
    "still authorizing": _ALLOW,
    "offline": "Plug it in anew, or try `adb reconnect offline`; then run the command again.",
    "still connecting": "Run the command again in a moment.",
    "permissions": "This user may not open the USB device: install udev rules (android-sdk-platform-tools-common).",
    "' not found": _ADB_LISTS,
    "no devices": _ADB_LISTS,
    "more than one": _ADB_LISTS,
    "allocating a pty": "Android 7 or newer is needed: an older one has no clean way for bytes, nor an exit status.",
    "PTY args": "Android 7 or newer is needed: an older one has no clean way for bytes, nor an exit status.",
    "daemon": "`adb start-server` shows why the bridge's server does not start.",
}

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
    """Return the command that starts the receiving program on a device, or on this machine."""
    if isinstance(target, ThisMachine):
        return [target.python, "-c", _START]
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
    """Return what the end of a link means: ssh or adb ended with `status`, and the lines `said` came on stderr."""
    lines = [line for line in said if line and not line.startswith("* daemon ")]  # the bridge's server was started
    words = " ".join(lines) or f"ended with {status} and said nothing"
    where = f"target {name} ({target.host or target.serial or LOCAL})"
    if status == _NO_SUCH_COMMAND:
        return UsageError(f"{where}: no Python at '{target.python}': {words}", _name_python(target))
    if status == _CANNOT_RUN:
        return UsageError(f"{where}: '{target.python}' cannot be run: {words}", _name_python(target))
    if target.serial is not None:
        return _adb_error(where, status, lines)
    if "Host key verification failed" in words:
        return UsageError(
            f"{where}: its host key is not known here, or is another one than before: {words}",
            f"Connect by hand once (`ssh {target.host}`) and compare the key that it shows with the device's.",
        )
    if "Permission denied" in words:
        return UsageError(f"{where}: {words}", "Only keys are used: let `ssh` log in there without a password.")
    if status == _LINK_FAILED:
        return UsageError(f"{where} cannot be reached, or the link broke: {words}")
    return RunError(f"{where}: the link ended: {words}")


def _name_python(target: Target) -> str:
    if target.serial is None:
        return "Name the device's Python as `python` of the target."
    return (
        "Name a Python that adb's shell may run as `python` of the target. Termux's is not one: run `sshd` in Termux, "
        "and give the target `host` and `port: 8022` in the place of `serial`."
    )


def _adb_error(where: str, status: int | None, lines: Sequence[str]) -> EdgefoldError:
    for line in lines:
        came, _, message = line.partition(": ")
        if came in ("error", "adb"):
            for words, remedy in _ADB_REMEDIES.items():
                if words in message:
                    return UsageError(f"{where} cannot be reached: {message.rstrip('.')}", remedy)
    if status in (0, _LINK_FAILED):
        return RunError(f"{where}: the link broke: {' '.join(lines) or 'the device went away'}", _ADB_LISTS)
    return RunError(f"{where}: the link ended: {' '.join(lines) or f'ended with {status} and said nothing'}")
