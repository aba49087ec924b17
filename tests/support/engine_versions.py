"""Other versions and builds of onnxruntime, each in a virtual environment of its own that is kept in `build/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ops_builds
import pytest
from filelock import FileLock

# The last Python for which wheels of a version were made, where that is not this one.
_PYTHONS = {12: "3.10", 13: "3.10", 14: "3.10"}


def _python(version: str) -> str:
    """Return a Python that a version of onnxruntime installs into. Skips where there is none."""
    wanted = _PYTHONS.get(int(version.split(".")[1]))
    if wanted is None or sys.version_info[:2] == (3, int(wanted.split(".")[1])):
        return sys.executable
    found = sorted((Path.home() / ".pyenv/versions").glob(f"{wanted}.*/bin/python"))
    python = str(found[-1]) if found else shutil.which(f"python{wanted}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"onnxruntime {version} has no wheel for this Python, and there is no Python {wanted}")
    return python


def interpreter(version: str, package: str = "onnxruntime") -> Path:
    """Return the Python of a virtual environment that has this onnxruntime. Skips where it cannot be installed."""
    home = ops_builds.ROOT / "build" / f"{package}-{version}"
    home.parent.mkdir(exist_ok=True)
    with FileLock(home.with_suffix(f"{home.suffix}.lock")):
        if not (home / "bin" / "python").exists():
            ops_builds.run(_python(version), "-m", "venv", home)
        numpy = "numpy<2" if int(version.split(".")[1]) < 19 else "numpy"  # those before 1.19 are built for numpy 1
        done = subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "-q", f"{package}=={version}", numpy],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"{package} {version} cannot be installed: {done.stderr[-300:]}")
    return home / "bin" / "python"


def run_device_side(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run this checkout's code, whose device side needs numpy and an engine alone, in another environment."""
    environment = {**os.environ, "PYTHONPATH": str(ops_builds.ROOT)}
    return ops_builds.run(python, *arguments, env=environment)
