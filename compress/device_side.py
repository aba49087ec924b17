"""Runs `python -m runtime` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import runtime
from runtime.errors import EngineError, GateError, UsageError


def run_device_side(verb: str, *arguments: object) -> None:
    """Run `python -m runtime` in a fresh process, as a device would: without torch, or its threads."""
    command = [
        sys.executable,
        "-m",
        "runtime",
        verb,
        *(str(a.resolve() if isinstance(a, Path) else a) for a in arguments),
    ]
    # From the folder that holds the package: a folder named `runtime` where the user stands must not be taken for it.
    done = subprocess.run(command, cwd=Path(runtime.__file__).parents[1], capture_output=True, text=True)
    if done.returncode == 0:
        return
    # Progress comes before the error, and whoever prints this error puts "error:" before it again.
    message = f"\n{done.stderr}".rpartition("\nerror: ")[2].strip()
    message = message or f"python -m runtime {verb} ended with {done.returncode}"
    raise {2: UsageError, 3: GateError}.get(done.returncode, EngineError)(message)
