"""The C++ tests of the kernels, plain and under the sanitizers (EDGEFOLD_LAYER_CASES random layers each)."""

from __future__ import annotations

import os
import subprocess

import ops_builds
import pytest

SANITIZERS = ("address,undefined", "thread")


def test_layers_equal_naive_loops_on_every_instruction_set_and_allocate_once() -> None:
    tests = ops_builds.build("ops-tests", ops_builds.OPS, "-DEDGEFOLD_OPS_TESTS=ON") / "tests"
    done = ops_builds.run(tests / "test_layers", 300, 3)
    assert done.stdout.startswith("300 cases equal on ")
    assert done.stdout.split()[-1] == "portable"
    ops_builds.run(tests / "test_threads", 2)
    ops_builds.run(tests / "test_allocations")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean_under_the_sanitizers(sanitizer: str) -> None:
    tests = ops_builds.sanitized(sanitizer) / "tests"
    cases = int(os.environ.get("EDGEFOLD_LAYER_CASES", "15"))
    for command in ([tests / "test_layers", str(cases), "5"], [tests / "test_threads", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
