"""Commands that a device may have, which are asked and never needed."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence

_COMMAND_S = 10.0


def lines_of(*command: str) -> tuple[str, ...] | None:
    """Return what a command says, a line each without spaces around; None where it is not there or fails."""
    if (found := shutil.which(command[0])) is None:
        return None
    words: Sequence[str] = (found, *command[1:])
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    if done.returncode != 0:
        return None
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def lines_while_running(*command: str, limit_s: float) -> Generator[str, None, None]:
    """Yield the lines of a command that never ends, as they come; none where it is not there.

    After the limit, or when the caller closes this, the command is ended with all that it started.
    """
    if (found := shutil.which(command[0])) is None:
        return
    # A group of its own can be ended whole. Should this process be killed meanwhile, its next line ends the command.
    try:
        child = subprocess.Popen(
            (found, *command[1:]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return
    try:
        yield from _lines(child, time.monotonic() + limit_s)
    finally:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Yield whole lines until the deadline, or the end of the output."""
    assert child.stdout is not None
    rest = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([child.stdout], [], [], left)[0]:
        part = os.read(child.stdout.fileno(), 65536)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace").strip() for line in lines)
