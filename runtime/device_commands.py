"""Commands that a device may have, which are asked and never needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

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
