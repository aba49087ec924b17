"""The driver is a stand-in of two devices: what is asked of it, and what no driver means."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from runtime import cuda
from runtime.cuda import CudaDevice, cuda_devices, driver_version


class Driver:
    """Answers as libcuda does, by writing through pointers; `state` is what cuInit returns."""

    def __init__(self, state: int = 0) -> None:
        self.state = state

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.state

    def cuDeviceGetCount(self, count: object) -> int:  # noqa: N802
        count._obj.value = 2  # type: ignore[attr-defined]
        return 0

    def cuDeviceGet(self, device: object, index: int) -> int:  # noqa: N802
        device._obj.value = 40 + index  # type: ignore[attr-defined]
        return 0

    def cuDeviceGetName(self, name: ctypes.Array, size: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        # 75 is the major and 76 the minor version of the compute capability (cuda.h).
        value._obj.value = {(75, 40): 8, (76, 40): 7, (75, 41): 12, (76, 41): 0}[attribute, device.value]  # type: ignore[attr-defined]
        return 0

    def cuDriverGetVersion(self, version: object) -> int:  # noqa: N802
        version._obj.value = 12_080  # type: ignore[attr-defined]
        return 0


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
