"""The CUDA devices of this machine, asked of the driver itself: no package is needed, and without a driver is none.

TensorRT ends the process where there is no device, so whoever wants it looks here first.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build ...
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)
_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
# CUdevice_attribute of the driver's cuda.h.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class CudaDevice:
    """capability: as TensorRT-RTX writes it, `sm86`."""

    name: str
    capability: str


def cuda_devices() -> tuple[CudaDevice, ...]:
    """Return the devices that the driver has, the one that is used by default first."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_device(driver, index) for index in range(count.value))


def uuids_in_use() -> tuple[str, ...]:
    """Return the UUIDs, as NVML writes them, of the devices on which this process has a context.

    These are the GPUs that its engine runs on, whatever CUDA_VISIBLE_DEVICES hides and however CUDA orders the others.
    Only a driver that an engine has loaded is asked: to start one for this would cost a measurement on the CPU time,
    memory and threads. Windows has no such question.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return ()
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(_LIBRARIES[0], mode=os.RTLD_NOLOAD)
        if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:  # loaded, and not started
            return ()
        found = [_uuid_in_use(driver, index) for index in range(count.value)]
    except (OSError, AttributeError):  # not loaded, or too old for a question
        return ()
    return tuple(uuid for uuid in found if uuid is not None)


def _uuid_in_use(driver: Any, index: int) -> str | None:
    """Engines use the primary context of a device, which CUDA's runtime makes at the first call that needs one."""
    device, flags, active = ctypes.c_int(0), ctypes.c_uint(0), ctypes.c_int(0)
    uuid = (ctypes.c_ubyte * 16)()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
    # The first form of this function: the second one gives a part of a divided GPU an identifier of its own.
    if not active.value or driver.cuDeviceGetUuid(uuid, device) != 0:
        return None
    digits = bytes(uuid).hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def driver_version() -> str | None:
    """Return the version of the driver: that of Linux's kernel module (`570.86.10`) or, where the kernel does not say
    it, the CUDA version that the driver serves (`CUDA 12.8`). None without a driver.
    """
    try:
        if found := _VERSION.search(_KERNEL_MODULE.read_text(errors="replace")):
            return found[1]
    except OSError:
        pass
    driver, version = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _driver() -> Any:
    for name in _LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        if driver.cuInit(0) == 0:
            return driver
    return None


def _device(driver: Any, index: int) -> CudaDevice:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return CudaDevice(name.value.decode(errors="replace"), f"sm{''.join(capability)}")
