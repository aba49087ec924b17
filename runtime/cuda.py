"""The CUDA devices of this machine, asked of the driver itself: no package is needed, and without a driver is none.

TensorRT ends the process where there is no device, so whoever wants it looks here first.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

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
