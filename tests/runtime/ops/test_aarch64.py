"""The library cross-built for 64-bit ARM, in ONNX Runtime's ARM library under emulation: the bytes of this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import ops_builds
import packed_models
import pytest
from arm_userland import CPU_INFO

TOOLCHAIN = f"-DCMAKE_TOOLCHAIN_FILE={ops_builds.OPS / 'cmake' / 'aarch64-linux-gnu.cmake'}"
SYSTEM = Path("/usr/aarch64-linux-gnu")
SHAPES = [(9, 7, 3), (1, 1, 1), (16, 5, 70)]  # height, width, channels


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> list[str]:
    """The command that an ARM program is put behind."""
    ops_builds.need("qemu-aarch64-static", "aarch64-linux-gnu-g++")
    root = tmp_path_factory.mktemp("root")
    (root / "lib").symlink_to(SYSTEM / "lib")
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPU_INFO)
    return ["qemu-aarch64-static", "-cpu", "cortex-a72", "-L", str(root)]


@pytest.fixture(scope="module")
def library(emulated) -> Path:
    return ops_builds.build("ops-aarch64", ops_builds.OPS, TOOLCHAIN, "-DEDGEFOLD_OPS_TESTS=ON") / "libedgefold_ops.so"


@pytest.fixture(scope="module")
def program(emulated) -> Path:
    return ops_builds.build("examples-aarch64", ops_builds.OPS / "example", TOOLCHAIN) / "run"


@pytest.fixture(scope="module")
def onnxruntime_library(emulated) -> Path:
    (found,) = (ops_builds.node_modules() / "onnxruntime-node").glob("bin/napi-v*/linux/arm64/libonnxruntime.so.1")
    return found


def outputs_of(*command: object, **environment: str) -> bytes:
    done = subprocess.run(list(map(str, command)), capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_are_the_bytes_of_this_machine(emulated, library, program, onnxruntime_library, tmp_path, shape):
    model, images = packed_models.image_classifier(*shape), packed_models.random_images(1, *shape)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "input").write_bytes(images.tobytes())
    files = (tmp_path / "model.onnx", tmp_path / "input")
    here = outputs_of(ops_builds.examples() / "run", ops_builds.onnxruntime_library(), ops_builds.operators(), *files)
    assert here == b"".join(
        np.ascontiguousarray(each).tobytes() for each in packed_models.classify_images(model, images)
    )
    for environment in ({}, {"EDGEFOLD_ISA": "portable"}, {"EDGEFOLD_THREADS": "2"}):
        assert outputs_of(*emulated, program, onnxruntime_library, library, *files, **environment) == here


def test_neon_is_what_is_chosen(emulated, library, program, onnxruntime_library, tmp_path):
    done = subprocess.run(
        [*emulated, program, onnxruntime_library, library, tmp_path / "model", tmp_path / "input"],
        capture_output=True, text=True, env={**os.environ, "EDGEFOLD_ISA": "none"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "this machine has neon, portable" in done.stderr


def test_kernels_equal_naive_loops(emulated, library):
    done = ops_builds.run(*emulated, library.parent / "tests" / "test_layers", 30, 4)
    assert done.stdout == "30 cases equal on neon portable\n"
    ops_builds.run(*emulated, library.parent / "tests" / "test_threads", 1)
