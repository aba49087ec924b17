"""Runs a verb of `python -m runtime` in a process of its own, as a device would: without torch, or its threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import runtime
from runtime.errors import EdgefoldError, EngineError, GateError, UsageError

_ERRORS: dict[int, type[EdgefoldError]] = {2: UsageError, 3: GateError}


def run_in_own_process(verb: str, *arguments: object) -> None:
    """Run a verb. Raises what it ended with: UsageError, GateError or EngineError."""
    command, folder = _command()
    words = [str(each.resolve() if isinstance(each, Path) else each) for each in arguments]
    done = subprocess.run([*command, verb, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise error_of(verb, done.returncode, done.stderr)


def error_of(verb: str, status: int, stderr: str) -> EdgefoldError:
    """Return what a verb ended with as the error that it was."""
    # Progress comes before the error, and whoever prints this error puts "error:" before it again.
    message = f"\n{stderr}".rpartition("\nerror: ")[2].strip()
    return _ERRORS.get(status, EngineError)(message or f"python -m runtime {verb} ended with {status}")


def _command() -> tuple[list[str], Path]:
    """Return how this package is run, and from where: it may be one zip file (`edgefold-agent.pyz`)."""
    holder = Path(runtime.__file__).parents[1]
    if holder.is_file():
        return [sys.executable, str(holder)], Path.cwd()
    # From the folder that holds the package: a folder named `runtime` where the user stands must not be taken for it.
    return [sys.executable, "-m", "runtime"], holder
