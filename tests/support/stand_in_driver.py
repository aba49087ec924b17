"""CUDA's driver with two devices, which answers as libcuda does: by writing through pointers."""

from __future__ import annotations

import ctypes


class Driver:
    """state: what cuInit returns."""

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
