"""NVIDIA's GPUs as the driver's management library (NVML) describes them, asked through ctypes.

It comes with the driver, like `nvidia-smi`, which asks it too; so no command is run and no package needed. Functions,
structures, bits and units are those of nvml.h (docs.nvidia.com/deploy/nvml-api). What this driver or this GPU does not
have (NVML_ERROR_NOT_SUPPORTED) leaves its value absent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_SUCCESS = 0
_TEXT_BYTES = 96  # the longest of NVML's texts: NVML_DEVICE_NAME_V2_BUFFER_SIZE, NVML_DEVICE_UUID_V2_BUFFER_SIZE
_SM, _MEMORY = 1, 2  # nvmlClockType_t
_OF_THE_CHIP = 0  # nvmlTemperatureSensors_t
_COMPUTE_MODES: dict[int | None, str] = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}

# nvmlClocksEventReasons: why the clocks are what they are.
_REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x100: "display clocks",
}
# Of these what load or heat brings about: by the first, says nvml.h, clocks are such that power keeps within its limit;
# the others it calls slowdowns, by heat, an external brake or too much power. What remains are settings and idleness.
_HELD_BACK = {_REASONS[bit] for bit in (0x004, 0x008, 0x020, 0x040, 0x080)}
# nvmlPerfPolicyType_t: what held the clocks back, which NVML counts in nanoseconds.
_POLICIES = {0: "power limit", 1: "heat", 3: "board limit"}


class _Memory(ctypes.Structure):
    """nvmlMemory_t, the form without a version."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t, in percent."""

    _fields_ = [(name, ctypes.c_uint) for name in ("gpu", "memory")]


class _Violation(ctypes.Structure):
    """nvmlViolationTime_t: when, in microseconds, and how long, in nanoseconds."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("reference", "violation")]


@dataclass(frozen=True)
class _Gpu:
    """handle: NVML's own of one GPU."""

    library: ctypes.CDLL
    handle: ctypes.c_void_p

    def number(self, function: str, *selectors: int, kind: Any = ctypes.c_uint) -> int | None:
        value = kind(0)
        found = _succeeds(self.library, function, self.handle, *map(ctypes.c_uint, selectors), ctypes.byref(value))
        return int(value.value) if found else None

    def structure(self, function: str, kind: Any, *selectors: int) -> Any:
        value = kind()
        found = _succeeds(self.library, function, self.handle, *map(ctypes.c_uint, selectors), ctypes.byref(value))
        return value if found else None

    def text(self, function: str) -> str | None:
        return _text(self.library, function, self.handle)


def read_gpus() -> tuple[Mapping[str, Any], ...] | None:
    """Return what is known of each GPU, in NVML's order (by PCI bus); None where there is no NVML, or no GPU.

    Units are in the names. clock_reasons: why the clocks are what they are, in words. held_back_ns: how long the power
    limit, heat or the board's limit have held them back since the driver was loaded.
    """
    return tuple(_described(gpu) for gpu in _gpus()) or None


def read_energy(uuids: Collection[str] | None = None) -> dict[str, int]:
    """Return the energy of each GPU in microjoules since the driver was loaded, by a name for the counter.

    uuids: the GPUs to ask; all, if left out. nvml.h: "for Volta or newer fully supported devices"; others are left out.
    """
    found = {}
    for gpu in _gpus():
        uuid = gpu.text("nvmlDeviceGetUUID")
        if uuids is not None and uuid not in uuids:
            continue
        energy_mj = gpu.number("nvmlDeviceGetTotalEnergyConsumption", kind=ctypes.c_ulonglong)
        if energy_mj is not None:
            found[f"NVML {gpu.text('nvmlDeviceGetName') or 'GPU'} ({uuid})"] = 1000 * energy_mj
    return found


def held_back(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what held a GPU's clocks back between two readings of it.

    Reasons are read at a moment: before the measurement the GPU has no work, so only the reading right after it tells.
    """
    found = [reason for reason in after.get("clock_reasons", ()) if reason in _HELD_BACK]
    earlier, later = (each.get("held_back_ns", {}) for each in (before, after))
    for policy, since in earlier.items():
        if later.get(policy, 0) > since:
            found.append(f"{policy} for {(later[policy] - since) / 1e6:.3g} ms")
    return tuple(found)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return NVML, started. It stays so until the process ends: counters are read right before the first timed call."""
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            if _succeeds(library, "nvmlInit_v2"):
                return library
    return None


@functools.cache
def _gpus() -> tuple[_Gpu, ...]:
    library, count = _library(), ctypes.c_uint(0)
    if library is None or not _succeeds(library, "nvmlDeviceGetCount_v2", ctypes.byref(count)):
        return ()
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if _succeeds(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
            found.append(_Gpu(library, handle))
    return tuple(found)


def _described(gpu: _Gpu) -> Mapping[str, Any]:
    memory = gpu.structure("nvmlDeviceGetMemoryInfo", _Memory)
    utilization = gpu.structure("nvmlDeviceGetUtilizationRates", _Utilization)
    persistence = gpu.number("nvmlDeviceGetPersistenceMode")
    values = {
        "name": gpu.text("nvmlDeviceGetName"),
        "uuid": gpu.text("nvmlDeviceGetUUID"),
        "driver": _text(gpu.library, "nvmlSystemGetDriverVersion"),
        "cuda": _cuda_version(gpu.library),
        "sm_clock_mhz": gpu.number("nvmlDeviceGetClockInfo", _SM),
        "most_sm_clock_mhz": gpu.number("nvmlDeviceGetMaxClockInfo", _SM),
        "memory_clock_mhz": gpu.number("nvmlDeviceGetClockInfo", _MEMORY),
        "temperature_celsius": gpu.number("nvmlDeviceGetTemperature", _OF_THE_CHIP),
        "power_watts": _thousandth(gpu.number("nvmlDeviceGetPowerUsage")),
        "power_limit_watts": _thousandth(gpu.number("nvmlDeviceGetEnforcedPowerLimit")),
        "memory_used_bytes": memory.used if memory else None,
        "memory_bytes": memory.total if memory else None,
        "utilization_percent": utilization.gpu if utilization else None,
        "persistence_mode": None if persistence is None else bool(persistence),
        "compute_mode": _COMPUTE_MODES.get(gpu.number("nvmlDeviceGetComputeMode")),
        "mig_mode": _mig_mode(gpu),
        "clock_reasons": _clock_reasons(gpu),
        "held_back_ns": dict(_held_back_ns(gpu)) or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _cuda_version(library: ctypes.CDLL) -> str | None:
    """Return the newest CUDA that the driver runs: 12080 is 12.8."""
    version = ctypes.c_int(0)
    found = _succeeds(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if found else None


def _mig_mode(gpu: _Gpu) -> bool | None:
    """Whether the GPU is divided: its clocks, power and energy are then those of all its parts."""
    now, pending = ctypes.c_uint(0), ctypes.c_uint(0)
    found = _succeeds(gpu.library, "nvmlDeviceGetMigMode", gpu.handle, ctypes.byref(now), ctypes.byref(pending))
    return bool(now.value) if found else None


def _clock_reasons(gpu: _Gpu) -> tuple[str, ...] | None:
    """Return the reasons in words. Drivers before R535 have the function by its old name alone."""
    bits = gpu.number("nvmlDeviceGetCurrentClocksEventReasons", kind=ctypes.c_ulonglong)
    if bits is None:
        bits = gpu.number("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong)
    if bits is None:
        return None
    unknown = bits & ~sum(_REASONS)
    words = [word for bit, word in _REASONS.items() if bits & bit]
    return tuple([*words, f"bits {unknown:#x}"] if unknown else words)


def _held_back_ns(gpu: _Gpu) -> Iterator[tuple[str, int]]:
    for policy, word in _POLICIES.items():
        found = gpu.structure("nvmlDeviceGetViolationStatus", _Violation, policy)
        if found is not None:
            yield word, found.violation


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _text(library: ctypes.CDLL, function: str, *handle: ctypes.c_void_p) -> str | None:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    found = _succeeds(library, function, *handle, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode(errors="replace") if found else None


def _succeeds(library: ctypes.CDLL, name: str, *arguments: Any) -> bool:
    """Whether the library has a function of this name, and it says that it did what it was asked."""
    function = getattr(library, name, None)
    return function is not None and function(*arguments) == _SUCCESS
