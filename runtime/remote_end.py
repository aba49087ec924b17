"""The device's end of a remote run: takes files, runs the agent on them, and leaves nothing behind.

This text is sent to the device and executed there (`compress.remote`), so it needs the standard library alone. Messages
are lines of JSON on stdin and stdout; one with `size` is followed by so many bytes. An empty line says that the other
end is still there. Where stdin ends or stays silent, the link is cut: what runs is killed, and its folder removed.

Files are kept by their sha256 in the user's cache, so that a second run sends only what changed; each is compared with
its sha256 before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import queue
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any, NoReturn

PROTOCOL = 1
AGENT = "edgefold-agent.pyz"
OPS_LIBRARY = "libedgefold_ops.so"
RESULT = "result.json"

_MODULES = ("numpy", "onnxruntime", "openvino", "tensorrt")
_OF_32_BITS = {"x86_64": "i686", "aarch64": "armv7l", "armv8l": "armv7l"}
_SILENT_S = 60.0  # without a sign of life from the other end
_KEPT_DAYS = 30  # of what no run asked for
_SPARE_BYTES = 16 << 20  # beside the files, for results
_UNPACKED = "agent"  # the folder of its modules
_TEMPORARY = ("/data/local/tmp", "/tmp")  # Android's, then every other Unix's
_BLOCK = 1 << 20
_TAIL_LINES = 40  # of stderr, for the message of a run that failed


class RefusedError(Exception):
    """What the device cannot do, with the way to mend it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class CutError(Exception):
    """The other end is gone."""


class Link:
    """Messages from stdin, read by a thread so that waiting for them can end; messages to stdout."""

    def __init__(self) -> None:
        self._in: Any = sys.stdin.buffer
        self._out = sys.stdout.buffer
        self._lock = threading.Lock()
        self._messages: queue.Queue[tuple[dict[str, Any], Path | None]] = queue.Queue()
        self._heard = time.monotonic()
        self.cut = threading.Event()
        self.inbox: Path | None = None  # where payloads are written
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        if payload:
            message = {**message, "size": len(payload)}
        try:
            with self._lock:
                self._out.write(json.dumps(message).encode() + b"\n" + payload)
                self._out.flush()
        except OSError:
            self.cut.set()
            raise CutError from None

    def receive(self) -> tuple[dict[str, Any], Path | None]:
        """Return the next message and the file that its bytes are in."""
        while not self.is_cut():
            with contextlib.suppress(queue.Empty):
                return self._messages.get(timeout=0.2)
        raise CutError

    def is_cut(self) -> bool:
        return self.cut.is_set() or time.monotonic() - self._heard > _SILENT_S

    def _read(self) -> None:
        try:
            while line := self._in.readline():
                self._heard = time.monotonic()
                if line.strip():
                    message = json.loads(line)
                    self._messages.put((message, self._payload(message)))
        except Exception as error:
            self._messages.put(({"broken": _in_words(error), "remedy": _remedy(error)}, None))
            time.sleep(1.0)  # for the answer
        self.cut.set()

    def _payload(self, message: dict[str, Any]) -> Path | None:
        if "size" not in message:
            return None
        assert self.inbox is not None
        handle, name = tempfile.mkstemp(dir=self.inbox)
        left = message["size"]
        with os.fdopen(handle, "wb") as file:
            while left:
                block = self._in.read1(min(left, _BLOCK))
                if not block:
                    raise EOFError("the link ended inside a file")
                self._heard = time.monotonic()
                left -= len(block)
                file.write(block)
        return Path(name)


def main() -> int:
    """Serve one session; return the exit status."""
    link = Link()
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, lambda *_: link.cut.set())
    folder = None
    try:
        hello = link.receive()[0]
        try:
            store, note = cache_folder("files")
            folder = Path(tempfile.mkdtemp(prefix="run-", dir=store.parent))
            link.inbox = folder / "inbox"
            link.inbox.mkdir()
            _serve(link, hello, store, folder, note)
        except RefusedError as error:
            link.send({"error": error.message, "remedy": error.remedy})
        except OSError as error:
            link.send({"error": _in_words(error), "remedy": _remedy(error)})
    except CutError:
        return 1
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def _serve(link: Link, hello: dict[str, Any], store: Path, folder: Path, note: str) -> None:
    if hello.get("protocol") != PROTOCOL:
        raise RefusedError(f"came {hello} for a greeting; expected protocol {PROTOCOL}")
    link.send({"device": {**_device(), "note": note}})
    message, _ = link.receive()
    _require_whole(message)
    files = message["files"]
    missing = [each for each in _distinct(files) if not _is_intact(store / each["sha256"], each["sha256"])]
    _require_space(store, sum(each["size"] for each in missing))
    link.send({"missing": [each["sha256"] for each in missing]})
    for each in missing:
        _take(link, store, each)
    _require_loadable(files, store)
    _lay_out(files, store, folder)
    _unpack(folder)
    forget_old(*store.iterdir(), *store.parent.glob("run-*"))  # such a folder is of a run whose end was killed
    link.send({"ready": True})
    while True:
        message, _ = link.receive()
        if "end" in message:
            return
        _require_whole(message)
        _run(link, folder, message["run"], message["limit_s"])


def cache_folder(name: str) -> tuple[Path, str]:
    """Return a folder for files of a kind, made where it is not there, and what the user has to know of it.

    It lies in the cache, or where there is none that can be written, as with Android's shell user, whose home is /, in
    the folder for temporary files. Other users write there too, so a folder that is not this user's alone is refused.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"))
    path = cache / "edgefold" / name
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path, ""
        why = f"{path} cannot be written"
    except OSError as error:
        if _is_full(error):
            raise
        why = f"{cache} cannot be made or written: {error.strerror}"
    for temporary in filter(None, (os.environ.get("TMPDIR"), *_TEMPORARY)):
        own = Path(temporary) / f"edgefold-{os.geteuid()}"
        with contextlib.suppress(OSError):
            own.mkdir(mode=0o700, exist_ok=True)
            about = own.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022:
                (own / name).mkdir(exist_ok=True)
                return own / name, f"files are kept in {own}: {why}"
    raise RefusedError(f"no folder for files: {why}", "Set TMPDIR or XDG_CACHE_HOME there to one that can be written.")


def _device() -> dict[str, Any]:
    """Return what the other end has to know before it asks for a run."""
    import importlib.util

    return {
        "python": platform.python_version(),
        "machine": _machine(),
        # Before 3.13 a Python of Android called it Linux, which it is to those who need no C library.
        "system": "Android" if hasattr(sys, "getandroidapilevel") else platform.system(),
        "host": platform.node(),
        "modules": [name for name in _MODULES if importlib.util.find_spec(name)],
        "executable": sys.executable,
    }


def _machine() -> str:
    """Return the machine of this Python: a 32-bit one may run on a 64-bit kernel."""
    machine = platform.machine()
    return machine if sys.maxsize > 2**32 else _OF_32_BITS.get(machine, machine)


def _distinct(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({each["sha256"]: each for each in files}.values())


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return _sha256(path) == sha256
    except FileNotFoundError:
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _require_space(store: Path, needed: int) -> None:
    free = shutil.disk_usage(store).free
    if needed and free < needed + _SPARE_BYTES:
        raise RefusedError(
            f"{store} has {free / 1e6:.0f} MB free, and the files need {needed / 1e6:.1f} MB and some room for results",
            "Free space on the device, or set XDG_CACHE_HOME there to a folder on a larger disk.",
        )


def _require_loadable(files: list[dict[str, Any]], store: Path) -> None:
    if any(each["path"] == OPS_LIBRARY for each in files) and os.statvfs(store).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise RefusedError(
            f"{store} is on a file system mounted noexec, and a packed model needs a library that is loaded from it",
            "Set XDG_CACHE_HOME there to a folder on another file system.",
        )


def _take(link: Link, store: Path, expected: dict[str, Any]) -> None:
    """Receive one file; it gets its name only when it is whole and flushed."""
    message, received = link.receive()
    _require_whole(message)
    if received is None or message["sha256"] != expected["sha256"]:
        raise RefusedError(f"{expected['path']} was expected; came {message}")
    if _sha256(received) != expected["sha256"]:
        raise RefusedError(
            f"{expected['path']} came altered: its sha256 is not the one that was announced", "Run the command again."
        )
    with open(received, "rb") as file:
        os.fsync(file.fileno())
    os.replace(received, store / expected["sha256"])


def _require_whole(message: dict[str, Any]) -> None:
    if "broken" in message:
        raise RefusedError(message["broken"], message["remedy"])


def _lay_out(files: list[dict[str, Any]], store: Path, folder: Path) -> None:
    for each in files:
        parts = each["path"].split("/")
        if not all(parts) or {".", ".."} & set(parts) or os.path.isabs(each["path"]):
            raise RefusedError(f"{each['path']!r} is not a plain path")
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = store / each["sha256"]
        with contextlib.suppress(PermissionError):  # of emulated SD cards: then it is sent again once it is old
            os.utime(kept)
        try:
            os.link(kept, path)
        except (OSError, AttributeError):  # SD cards have none, Android forbids them, its Python has no os.link
            shutil.copyfile(kept, path)


def _unpack(folder: Path) -> None:
    """Unpack the agent for this run alone, so that what Python compiles of it serves all of the run's processes."""
    with zipfile.ZipFile(folder / AGENT) as archive:
        archive.extractall(folder / _UNPACKED)


def forget_old(*paths: Path) -> None:
    """Remove what was not asked for in 30 days."""
    oldest = time.time() - _KEPT_DAYS * 86_400
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(link: Link, folder: Path, arguments: list[str], limit_s: float) -> None:
    """Run the agent with `arguments` and send its progress, then its result."""
    result = folder / RESULT
    result.unlink(missing_ok=True)
    # So that nothing of it stays where it is killed; a device may have no /tmp, or a small one.
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    if (folder / OPS_LIBRARY).exists():
        environment["EDGEFOLD_OPS_LIBRARY"] = str(folder / OPS_LIBRARY)
    child = subprocess.Popen(
        [sys.executable, _UNPACKED, *arguments, "--output", RESULT],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that it can be killed with all that it started
    )
    tail: list[str] = []
    reader = threading.Thread(target=_relay, args=(link, child.stderr, tail), daemon=True)
    reader.start()
    end = time.monotonic() + limit_s
    try:
        while child.poll() is None:
            if link.is_cut():
                raise CutError
            if time.monotonic() > end:
                raise RefusedError(
                    f"the run took longer than its limit of {limit_s:g} s", "Raise time_limit_s of the target."
                )
            time.sleep(0.05)
    finally:
        _kill(child)
    reader.join(5.0)
    payload = result.read_bytes() if child.returncode == 0 and result.exists() else b""
    link.send({"done": child.returncode, "stderr": "\n".join(tail)}, payload)


def _relay(link: Link, lines: Any, tail: list[str]) -> None:
    with lines:
        for raw in lines:
            line = raw.decode(errors="replace").rstrip()
            tail.append(line)
            del tail[:-_TAIL_LINES]
            with contextlib.suppress(CutError):
                link.send({"progress": line})


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _in_words(error: Exception) -> str:
    return "the device's disk is full" if _is_full(error) else f"{type(error).__name__}: {error}"


def _remedy(error: Exception) -> str:
    return "Free space on the device." if _is_full(error) else ""


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _exit(status: int) -> NoReturn:
    # The reading thread holds stdin's lock, and an ordinary exit would wait for it.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _exit(main())
