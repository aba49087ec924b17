"""Runs the device side of edgefold on a device that is reached by ssh or adb.

One process of `ssh` (the user's own, with its configuration, keys and agent; never a password, never an unknown host)
carries everything: `runtime.remote_end` is sent to the device's Python, then the files that the device lacks by their
sha256, then what to run; progress and results come back. So nothing is left half-written by a broken copy, and the
device knows at once when the link is cut. No recipe text reaches a shell.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from compress import agent
from compress.link import INSTALL, command_of, link_error
from compress.targets import Target
from runtime import custom_ops, remote_end
from runtime.errors import EdgefoldError, MissingExtraError, RunError, UsageError
from runtime.files import sha256_of_bytes
from runtime.own_process import error_of

_ALIVE_EVERY_S = 10.0
_GOODBYE_S = 10.0
_GREETING_S = 60.0  # ssh's own limit is shorter; a phone whose Python starts for the first time takes seconds
_SPARE_S = 30.0  # beside a run's limit, which the device itself keeps

Content = bytes | Path

_open: set[Device] = set()


def end_all_links() -> None:
    """End the links of all threads, as where the user interrupts; each device then cleans up."""
    for device in list(_open):
        device.abort()


class Device:
    """A device with the agent and `files` on it, by their paths there; a context manager.

    `about` is what the device says of itself: python, machine, system, host, modules, note. sent: paths that went over.
    with_operators: the files need edgefold's own operators, whose library goes along where there is one for the device.
    needs_numpy: a device without it is refused.
    Raises UsageError where the device cannot be reached or lacks something, EngineError where a run fails, RunError
    where the link breaks. Whatever happens, nothing of the run stays on the device but the files, kept for a next run.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        files: Mapping[str, Content],
        *,
        with_operators: bool = False,
        needs_numpy: bool = True,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.target = target
        self.about: dict[str, Any] = {}
        self.sent: tuple[str, ...] = ()
        self._notify = notify
        self._files = {remote_end.AGENT: agent.agent_bytes(), **files}
        self._with_operators = with_operators
        self._needs_numpy = needs_numpy
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._silent_s = 0.0  # above 0: so long the device was waited for

    def __enter__(self) -> Device:
        command = command_of(self.target)
        if shutil.which(command[0]) is None:
            raise MissingExtraError(
                f"{command[0]} is not installed; target {self.name} is reached by it", INSTALL[command[0]]
            )
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        _open.add(self)
        self._errors: list[str] = []
        self._error_reader = threading.Thread(target=self._read_errors, daemon=True)
        self._error_reader.start()
        threading.Thread(target=self._say_alive, daemon=True).start()
        try:
            program = Path(remote_end.__file__).read_bytes()
            with self._answered_within(_GREETING_S):
                self._write(f"{len(program)}\n".encode() + program)
                self._greet()
            self._send_files()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with contextlib.suppress(EdgefoldError):
                self._send({"end": True})
        self._close()

    def abort(self) -> None:
        """End the link now, from another thread; whoever waits for the device gets an error."""
        self._process.terminate()

    def run(self, *arguments: object) -> dict[str, Any]:
        """Run a verb of `python -m runtime` on the device; return the JSON that it wrote."""
        limit_s = self.target.time_limit_s
        with self._answered_within(limit_s + _SPARE_S):
            self._send({"run": [str(each) for each in arguments], "limit_s": limit_s})
            message, payload = self._outcome()
        if message["done"] != 0:
            raise _failure(self.name, arguments[0], message["done"], message["stderr"])
        try:
            result: dict[str, Any] = json.loads(payload)
        except ValueError as error:
            raise RunError(f"target {self.name}: {arguments[0]} wrote no result that can be read ({error})") from None
        return result

    def _outcome(self) -> tuple[dict[str, Any], bytes]:
        """Relay the progress of a run until it ends; return its last message and the result."""
        failing = False
        while True:
            message, payload = self._receive()
            if "done" in message:
                return message, payload
            line = message["progress"]
            failing = failing or line.startswith("error: ")  # the error itself says it, once
            if not (failing or line == f"wrote {remote_end.RESULT}"):
                self._notify(f"{self.name}: {line}")

    @contextlib.contextmanager
    def _answered_within(self, seconds: float) -> Iterator[None]:
        """End the link of a device that hangs: adb would wait for it for ever."""

        def give_up() -> None:
            self._silent_s = seconds
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _greet(self) -> None:
        self._send({"protocol": remote_end.PROTOCOL})
        self.about = self._receive()[0]["device"]
        if self.about["note"]:
            self._notify(f"{self.name}: {self.about['note']}")
        if self._needs_numpy:
            self._require("numpy", "pip install numpy")
        if self._with_operators and (library := self._operators()) is not None:
            self._files[remote_end.OPS_LIBRARY] = library

    def _operators(self) -> Path | None:
        """Return the library of operators for the device. Raises UsageError where the one that is named is not."""
        given = self.target.ops_library
        if given is None:
            here = custom_ops.FOLDER / custom_ops.FILE_NAME
            if self.about["system"] == "Android":  # which has another C library than Linux
                return None
            return here if here.is_file() and custom_ops.machine_of(here) == self.about["machine"] else None
        path = Path(given)
        machine = custom_ops.machine_of(path) if path.is_file() else None
        if machine != self.about["machine"]:
            came = f"is for {machine}" if machine else "is no library of Linux" if path.exists() else "does not exist"
            raise UsageError(
                f"target {self.name}: ops_library {given} {came}; the device is {self.about['machine']}",
                "Build it for the device: runtime/ops/README.md.",
            )
        return path

    def _send_files(self) -> None:
        announced = {path: (_sha256(content), _size(content)) for path, content in self._files.items()}
        listed = [{"path": path, "sha256": sha256, "size": size} for path, (sha256, size) in announced.items()]
        self._send({"files": listed})
        message, _ = self._receive()
        by_sha256 = {sha256: path for path, (sha256, _) in announced.items()}
        self.sent = tuple(by_sha256[each] for each in message["missing"])
        if self.sent:
            total = sum(announced[path][1] for path in self.sent)
            self._notify(f"{self.name}: sending {len(self.sent)} of {len(listed)} files, {total / 1e6:.2f} MB")
        for path in self.sent:
            sha256, size = announced[path]
            self._send({"sha256": sha256, "size": size}, self._files[path])
        self._receive()

    def _require(self, module: str, command: str) -> None:
        if module not in self.about["modules"]:
            raise MissingExtraError(
                f"target {self.name}: {self.about['executable']} has no {module}",
                f"On the device: {shlex.quote(self.about['executable'])} -m {command}",
            )

    def _send(self, message: dict[str, Any], content: Content = b"") -> None:
        with self._lock:
            self._write_now(json.dumps(message).encode() + b"\n")
            if isinstance(content, Path):
                with open(content, "rb") as file:
                    while block := file.read(1 << 20):
                        self._write_now(block)
            elif content:
                self._write_now(content)

    def _write(self, data: bytes) -> None:
        with self._lock:
            self._write_now(data)

    def _write_now(self, data: bytes) -> None:
        try:
            self._pipe(self._process.stdin).write(data)
            self._pipe(self._process.stdin).flush()
        except (OSError, ValueError):
            # Why it is gone stands among what came before.
            self._raise_refusal()
            raise self._broken() from None

    def _raise_refusal(self) -> None:
        while line := self._pipe(self._process.stdout).readline():
            with contextlib.suppress(ValueError):
                self._require_accepted(json.loads(line))

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        output = self._pipe(self._process.stdout)
        line = output.readline()
        if not line.endswith(b"\n"):
            raise self._broken()
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise UsageError(
                f"target {self.name}: the device answered {line[:80].decode(errors='replace').strip()!r}",
                "Something prints there at login; let it do so for interactive shells only.",
            ) from None
        self._require_accepted(message)
        size = message.get("size", 0)
        payload = output.read(size)
        if len(payload) < size:
            raise self._broken()
        return message, payload

    def _require_accepted(self, message: dict[str, Any]) -> None:
        if "error" in message:
            raise UsageError(f"target {self.name}: {message['error']}", message["remedy"])

    def _broken(self) -> EdgefoldError:
        """Return what the end of the link means, in words: what ssh or adb said, or that it broke."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE_S)
        self._error_reader.join(1.0)
        if self._silent_s:
            return RunError(
                f"target {self.name}: no answer within {self._silent_s:g} s", "Look whether the device still runs."
            )
        return link_error(self.name, self.target, self._process.returncode, self._errors)

    def _close(self) -> None:
        """End the link; the device then stops what runs and removes its folder."""
        self._closed.set()
        _open.discard(self)
        with contextlib.suppress(OSError, ValueError):
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for raw in self._pipe(self._process.stderr):
                self._errors.append(raw.decode(errors="replace").rstrip())

    def _say_alive(self) -> None:
        while not self._closed.wait(_ALIVE_EVERY_S):
            with contextlib.suppress(OSError, ValueError), self._lock:
                self._pipe(self._process.stdin).write(b"\n")
                self._pipe(self._process.stdin).flush()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None  # all three are asked for
        return pipe


def _failure(name: str, verb: object, status: int, stderr: str) -> EdgefoldError:
    error = error_of(str(verb), status, stderr)
    return type(error)(f"target {name}: {error.message}")


def _sha256(content: Content) -> str:
    return sha256_of_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
