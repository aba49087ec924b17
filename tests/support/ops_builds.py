"""Builds of `runtime/ops` for tests: always of the sources as they are, kept in `build/` between runs."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
OPS = ROOT / "runtime" / "ops"


def need(*programs: str) -> None:
    """Skip the test where a program is missing, with what to install."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (apt install cmake g++ g++-aarch64-linux-gnu qemu-user-static nodejs npm)")


@functools.cache
def build(name: str, source: Path = OPS, *options: str, target: str | None = None) -> Path:
    """Configure and build `source`, and return the folder with what was built. Skips where CMake or g++ is missing."""
    need("cmake", "g++")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # test processes share it
        run("cmake", "-S", source, "-B", folder, *options)
        run("cmake", "--build", folder, "--parallel", "2", *(["--target", target] if target else []))
    return folder


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its success; an AssertionError shows what it printed."""
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


@functools.cache
def node_modules() -> Path:
    """Return the folder that holds onnxruntime-node, installed once, without what its install step would download."""
    need("node", "npm")
    home = ROOT / "build" / "node"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_suffix(".lock")):
        if not (home / "node_modules" / "onnxruntime-node").is_dir():
            done = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-node@1"],
                cwd=home, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"onnxruntime-node cannot be installed: {done.stderr[-300:]}")
    return home / "node_modules"


def operators() -> Path:
    return build("ops", target="edgefold_ops") / "libedgefold_ops.so"


def sanitized(sanitizer: str) -> Path:
    """Return the folder of a build, with the kernels' tests, under `address,undefined` or `thread`."""
    options = ["-DEDGEFOLD_OPS_TESTS=ON", f"-DEDGEFOLD_SANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    return build(f"ops-{sanitizer.replace(',', '-')}", OPS, *options)


def examples() -> Path:
    return build("examples", OPS / "example")


def onnxruntime_library() -> Path:
    """Return the C library inside onnxruntime's package."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip(f"onnxruntime {onnxruntime.__version__}'s package has no libonnxruntime.so")
    return found[0]
