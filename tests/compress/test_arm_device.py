"""The whole way to a 64-bit ARM device: an emulated userland behind a real sshd. For correctness, not for speed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ops_builds
import pytest
from arm_userland import arm_python
from ssh_server import SSHD, ssh_server

from compress.on_target import accuracy_on_target, bench_on_target
from compress.remote import Device
from compress.targets import Target
from runtime import custom_ops
from runtime.bundle import open_bundle

pytestmark = [
    pytest.mark.versions,
    pytest.mark.skipif(SSHD is None, reason="needs sshd (apt install openssh-server)"),
]
TOOLCHAIN = f"-DCMAKE_TOOLCHAIN_FILE={ops_builds.OPS / 'cmake' / 'aarch64-linux-gnu.cmake'}"

BINARY = """\
name: binary
data: {source: digits}
train: {epochs: 1, batch_size: 64, optimizer: {adam: {lr: 3e-3}}}
stages:
  student: {model: {binary_resnet: {blocks: [1], widths: [16], stem: conv3}}, objective: ce}
export: {stage: student, formats: [onnx, packed], batch_sizes: [1, 8]}
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("arm")
    python = arm_python(folder)
    with ssh_server(folder / "server") as server:
        yield Target(host="127.0.0.1", port=server.port, ssh_config=str(server.config), python=str(python))


def quiet(line: str) -> None:
    pass


def test_the_device_says_what_it_is(target: Target) -> None:
    with Device("arm", target, {}) as device:
        assert device.about["machine"] == "aarch64"
        assert {"numpy", "onnxruntime"} <= set(device.about["modules"])


def test_latency_and_accuracy_are_measured_there(target: Target, project: Any) -> None:
    bundle = open_bundle(project.bundle)
    accuracy = accuracy_on_target("arm", target, bundle, None, notify=quiet)["onnx"]
    assert accuracy["total"] == len(bundle.samples())
    assert accuracy["host_agreement"]["differing_row_ids"] == []
    result = bench_on_target("arm", target, bundle, quick=True, notify=quiet)["onnx"]
    assert result["environment"]["machine"] == result["target"]["machine"] == "aarch64"
    assert result["latency"]["calls"] >= 662


def test_operators_that_were_built_for_it_go_along(target: Target, empty_project: Any, tmp_path: Path) -> None:
    ops_builds.need("aarch64-linux-gnu-g++")
    library = (
        ops_builds.build("ops-aarch64", ops_builds.OPS, TOOLCHAIN, "-DEDGEFOLD_OPS_TESTS=ON") / custom_ops.FILE_NAME
    )
    empty_project.run(empty_project.write(BINARY), until="export")
    bundle = open_bundle(empty_project.runs / "binary" / "bundle")
    with_library = target.model_copy(update={"ops_library": str(shutil.copy(library, tmp_path))})
    found = accuracy_on_target("arm", with_library, bundle, None, formats=["packed"], limit=64, notify=quiet)["packed"]
    assert found["host_agreement"] == {"equal": 64, "total": 64, "rate": 1.0, "differing_row_ids": []}
