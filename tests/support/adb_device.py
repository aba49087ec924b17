"""The device's end of Android's bridge, as far as edgefold meets it: `adbd` and its shell service.

`serve_shell` is what adbd does with `adb shell -T COMMAND`: a shell with pipes, in packets of the shell protocol (an
id of one byte, a length of four, then so many bytes). `AdbDevice` speaks the protocol below it on a port of loopback,
so that the real `adb` takes it for a device: messages of six words (command, two arguments, length, checksum, magic).
Sources: AOSP, packages/modules/adb: docs/dev/protocol.md, shell_protocol.h, daemon/shell_service.cpp.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
_BLOCK = 4096  # what adbd reads at a time

_VERSION, _LARGEST = 0x01000001, 1 << 18
_CONNECT, _AUTHORIZE, _OPEN, _OKAY, _CLOSE, _WRITE = (
    int.from_bytes(each, "little") for each in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)


def android_environment(folder: Path) -> dict[str, str]:
    """Return what adbd gives its shell: a home that cannot be written, a folder for temporary files."""
    temporary = folder / "data" / "local" / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {"HOME": "/proc", "TMPDIR": str(temporary), "USER": "shell", "PATH": "/usr/bin:/bin"}


def send_packet(stream: socket.socket, kind: int, content: bytes = b"") -> None:
    stream.sendall(struct.pack("<BI", kind, len(content)) + content)


def packets(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of each packet until the stream ends."""
    while len(head := stream.read(5)) == 5:
        kind, size = struct.unpack("<BI", head)
        yield kind, stream.read(size)


def serve_shell(stream: socket.socket, command: str, environment: Mapping[str, str]) -> None:
    """Run `command` in a shell until it or the stream ends; a stream that ends first gives the shell a SIGHUP."""
    shell = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        start_new_session=True,
    )
    lock = threading.Lock()

    def relay(pipe: IO[bytes], kind: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            while block := os.read(pipe.fileno(), _BLOCK):
                with lock:
                    send_packet(stream, kind, block)

    def receive() -> None:
        with contextlib.suppress(OSError), stream.makefile("rb") as source:
            for kind, content in packets(source):
                with contextlib.suppress(BrokenPipeError, ValueError):
                    if kind == STDIN:
                        shell.stdin.write(content)
                        shell.stdin.flush()
                    elif kind == CLOSE_STDIN:
                        shell.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(shell.pid, signal.SIGHUP)
        with contextlib.suppress(OSError):
            shell.stdin.close()

    readers = [
        threading.Thread(target=relay, args=(pipe, kind), daemon=True)
        for pipe, kind in ((shell.stdout, STDOUT), (shell.stderr, STDERR))
    ]
    for each in (*readers, threading.Thread(target=receive, daemon=True)):
        each.start()
    for each in readers:
        each.join()
    status = shell.wait()
    with contextlib.suppress(OSError):
        send_packet(stream, EXIT, bytes([status if status >= 0 else 0x80 | -status]))
        stream.shutdown(socket.SHUT_RDWR)
    for each in (stream, shell.stdin, shell.stdout, shell.stderr):
        with contextlib.suppress(OSError):
            each.close()


class AdbDevice:
    """A device on `port`, for `adb connect 127.0.0.1:PORT`. authorized: False never accepts the computer's key."""

    def __init__(self, environment: Mapping[str, str], *, features: str = "shell_v2", authorized: bool = True) -> None:
        self._environment = environment
        self._features = features
        self._authorized = authorized
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def unplug(self) -> None:
        """End the device's links, as a cable that is pulled does."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.unplug()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self._links.append(link)
                threading.Thread(target=_Transport(link, self._answer, self._environment).serve, daemon=True).start()

    @property
    def _answer(self) -> tuple[int, int, int, bytes]:
        if not self._authorized:
            return _AUTHORIZE, 1, 0, bytes(20)  # a token to be signed, and never good enough
        banner = f"device::ro.product.name=stand_in;ro.product.model=Stand-in;features={self._features}"
        return _CONNECT, _VERSION, _LARGEST, banner.encode()


class _Stream:
    """One service that was opened: the end of a socket that it reads, and what waits for it."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.incoming: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.ready = threading.Semaphore(0)  # for the next block: the other end took the last one

    def end(self) -> None:
        self.incoming.put(b"")
        self.ready.release()
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_RDWR)


class _Transport:
    def __init__(
        self, link: socket.socket, answer: tuple[int, int, int, bytes], environment: Mapping[str, str]
    ) -> None:
        self._link = link
        self._answer = answer
        self._environment = environment
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def serve(self) -> None:
        with contextlib.suppress(OSError), self._link, self._link.makefile("rb") as source:
            while len(head := source.read(24)) == 24:
                command, first, second, size, _, _ = struct.unpack("<6I", head)
                self._take(command, first, second, source.read(size))
        for stream in self._streams.values():
            stream.end()

    def _send(self, command: int, first: int, second: int, content: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(content), sum(content), command ^ 0xFFFFFFFF)
        with self._lock:
            self._link.sendall(head + content)

    def _take(self, command: int, first: int, second: int, content: bytes) -> None:
        stream = self._streams.get(second)
        if command in (_CONNECT, _AUTHORIZE):
            self._send(*self._answer)
        elif command == _OPEN:
            self._open(first, content.rstrip(b"\0").decode())
        elif stream is None:
            return
        elif command == _OKAY:
            stream.ready.release()
        elif command == _WRITE:
            stream.incoming.put(content)
        elif command == _CLOSE:
            stream.end()

    def _open(self, peer: int, service: str) -> None:
        name, _, command = service.partition(":")
        if not {"shell", "v2", "raw"} <= set(name.split(",")):  # a name may say more, such as TERM=dumb
            self._send(_CLOSE, 0, peer)
            return
        number = len(self._streams) + 1
        stream = self._streams[number] = _Stream()
        self._send(_OKAY, number, peer)
        threading.Thread(target=serve_shell, args=(stream.theirs, command, self._environment), daemon=True).start()
        for work in (self._deliver, self._relay):
            threading.Thread(target=work, args=(stream, number, peer), daemon=True).start()

    def _deliver(self, stream: _Stream, number: int, peer: int) -> None:
        with contextlib.suppress(OSError):
            while block := stream.incoming.get():
                stream.ours.sendall(block)
                self._send(_OKAY, number, peer)

    def _relay(self, stream: _Stream, number: int, peer: int) -> None:
        with contextlib.suppress(OSError):
            while block := stream.ours.recv(_BLOCK):
                self._send(_WRITE, number, peer, block)
                stream.ready.acquire()
            self._send(_CLOSE, number, peer)
        stream.ours.close()
