"""The driver is a stand-in of two devices: what is asked of it, and what no driver means."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_in_driver import Driver

from runtime import cuda
from runtime.cuda import CudaDevice, cuda_devices, driver_version


def test_devices_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver())
    assert cuda_devices() == (CudaDevice("GPU 40", "sm87"), CudaDevice("GPU 41", "sm120"))


def test_no_driver_or_one_that_does_not_start_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver(state=100))
    assert cuda_devices() == ()
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libthereisnone.so.1",))
    assert cuda_devices() == ()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:  gcc",
         "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (root@a)", "570.86.10"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain@b)", "540.4.0"),
        ("GCC version:  gcc version 12.3.0 (Ubuntu)", "CUDA 12.8"),
        (None, "CUDA 12.8"),
    ],
)  # fmt: skip
def test_the_driver_s_version_is_the_kernel_module_s_or_else_cuda_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, version: str
) -> None:
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(cuda, "_KERNEL_MODULE", path)
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver())
    assert driver_version() == version


def test_without_a_driver_there_is_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "_KERNEL_MODULE", tmp_path / "none")
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libthereisnone.so.1",))
    assert driver_version() is None
