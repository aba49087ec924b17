"""The machine a measurement was made on, as far as it can be read without privileges.

A record never fails a measurement: what cannot be read is absent. `root` stands for `/` in tests.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtime import cgroup
from runtime.custom_ops import loaded_instruction_set
from runtime.system_files import number, readable, text
from runtime.version import VERSION

T = TypeVar("T")

ROOT = Path("/")
_ENGINES = ("numpy", "onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "torch")
# Of all that /proc/cpuinfo lists what engines choose their kernels by.
_FEATURES = {
    "flags": re.compile(r"(sse4|avx|fma|f16c|amx)\w*"),  # x86, where `sme` is encryption
    "Features": re.compile(r"(neon|asimd|fphp|bf16|i8mm|sve|sme)\w*"),  # ARM
}
# Names of the kernel's drivers that cool by holding the CPU back: its clock by policy, by ACPI, or by forced idleness.
_CPU_COOLERS = ("cpufreq-", "thermal-cpufreq-", "Processor", "thermal-idle-")


@dataclass(frozen=True)
class Environment:
    """What stays the same during a measurement. `cpu_limit` is the cgroup's, in cores, `custom_ops` the instruction
    set of the custom operators, where this process has loaded them, `cpu_features` what engines choose kernels by."""

    system: str | None
    machine: str | None
    device_model: str | None
    cpu_model: str | None
    logical_cores: int | None
    affinity: tuple[int, ...] | None
    governors: tuple[str, ...] | None
    max_frequency_mhz: float | None
    memory_bytes: int | None
    cpu_limit: float | None
    container: str | None
    python: str
    packages: dict[str, str]
    custom_ops: str | None = None
    cpu_features: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return _present(asdict(self))


@dataclass(frozen=True)
class Load:
    """What changes: read it before and after. Throttling counters only ever rise.

    temperature_celsius: of the hottest zone. cpu_cooling_state: how far the kernel holds the CPU back against heat, 0
    for not at all.
    """

    load_average: tuple[float, ...] | None
    memory_available_bytes: int | None
    frequencies_mhz: tuple[float, ...] | None
    temperature_celsius: float | None
    cgroup_throttled_periods: int | None
    cgroup_throttled_us: int | None
    thermal_throttle_events: int | None
    cpu_cooling_state: int | None = None

    def to_json(self) -> dict[str, Any]:
        return _present(asdict(self))


def read_environment(root: Path = ROOT) -> Environment:
    affinity = _attempt(_affinity)
    return Environment(
        system=_attempt(platform.platform),
        machine=_attempt(platform.machine),
        device_model=_attempt(lambda: text(root / "proc/device-tree/model").strip("\0")),
        cpu_model=_attempt(lambda: _cpu_model(root)) or _attempt(platform.processor) or None,
        logical_cores=os.cpu_count(),
        affinity=affinity,
        governors=_attempt(lambda: _governors(root, affinity)),
        max_frequency_mhz=_attempt(lambda: max(_frequencies(root, affinity, "cpuinfo_max_freq") or ())),
        memory_bytes=_attempt(lambda: _memory(root, "MemTotal")),
        cpu_limit=_attempt(lambda: cgroup.cpu_limit(root)),
        container=_attempt(lambda: cgroup.container(root)),
        python=platform.python_version(),
        packages=_loaded_packages(),
        custom_ops=_attempt(loaded_instruction_set),
        cpu_features=_attempt(lambda: _cpu_features(root)),
    )


def read_load(root: Path = ROOT) -> Load:
    affinity = _attempt(_affinity)
    periods, microseconds = _attempt(lambda: cgroup.throttling(root)) or (None, None)
    return Load(
        load_average=_attempt(os.getloadavg),
        memory_available_bytes=_attempt(lambda: _memory(root, "MemAvailable")),
        frequencies_mhz=_attempt(lambda: _frequencies(root, affinity, "scaling_cur_freq")),
        temperature_celsius=_attempt(lambda: _temperature(root)),
        cgroup_throttled_periods=periods,
        cgroup_throttled_us=microseconds,
        thermal_throttle_events=_attempt(lambda: _thermal_throttling(root)),
        cpu_cooling_state=_attempt(lambda: _cpu_cooling_state(root)),
    )


def involuntary_switches() -> int | None:
    """Return how often the kernel has taken the processor from this process for another one."""
    usage = _attempt(_usage)
    return usage.ru_nivcsw if usage else None


def peak_resident_bytes(root: Path = ROOT) -> int | None:
    """Return the most memory that this process has had at a time.

    Linux's `ru_maxrss` would also hold the most that the parent had had, before this process became its own program.
    """
    if sys.platform != "darwin":
        status = _attempt(lambda: dict(_colon_lines(root / "proc/self/status")))
        return _attempt(lambda: int((status or {})["VmHWM"].split()[0]) * 1024)
    usage = _attempt(_usage)
    return usage.ru_maxrss if usage else None


def _usage() -> Any:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF)


def usable_cores(environment: Environment) -> float | None:
    """Return how many cores this process may use: the least of cores, affinity and the cgroup's limit."""
    affinity = len(environment.affinity) if environment.affinity else None
    known = [each for each in (environment.logical_cores, affinity, environment.cpu_limit) if each]
    return min(known) if known else None


def _attempt(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except Exception:  # any surprise of a foreign /proc or /sys only makes the value absent
        return None


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _affinity() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))  # Linux only; elsewhere the AttributeError makes it absent


def _cpu_model(root: Path) -> str:
    """x86 writes "model name"; 32-bit ARM kernels "Hardware"; 64-bit ARM often nothing."""
    fields = dict(_colon_lines(root / "proc/cpuinfo"))
    return next(fields[key] for key in ("model name", "Hardware", "Model", "cpu model") if fields.get(key))


def _cpu_features(root: Path) -> tuple[str, ...] | None:
    """/proc/cpuinfo lists them for each core; big and little ones of a board have the same."""
    fields = dict(_colon_lines(root / "proc/cpuinfo"))
    found = [word for key, kind in _FEATURES.items() for word in fields.get(key, "").split() if kind.fullmatch(word)]
    return tuple(sorted(found)) or None


def _colon_lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in text(path).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _memory(root: Path, key: str) -> int:
    return int(dict(_colon_lines(root / "proc/meminfo"))[key].split()[0]) * 1024


def _cpu_folders(root: Path, affinity: tuple[int, ...] | None) -> list[Path]:
    """Return the folders of the cores that this process may use."""
    folders = {int(each.name[3:]): each for each in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")}
    return [folders[core] for core in sorted(folders) if affinity is None or core in affinity]


def _governors(root: Path, affinity: tuple[int, ...] | None) -> tuple[str, ...] | None:
    files = [each / "cpufreq/scaling_governor" for each in _cpu_folders(root, affinity)]
    return tuple(sorted(set(readable(files, text)))) or None


def _frequencies(root: Path, affinity: tuple[int, ...] | None, file: str) -> tuple[float, ...] | None:
    files = [each / "cpufreq" / file for each in _cpu_folders(root, affinity)]
    return tuple(kilohertz / 1000 for kilohertz in readable(files, number)) or None


def _temperature(root: Path) -> float:
    """Return the hottest zone: a throttled chip is hot somewhere."""
    return max(readable((root / "sys/class/thermal").glob("thermal_zone*/temp"), number)) / 1000


def _cpu_cooling_state(root: Path) -> int | None:
    devices = (root / "sys/class/thermal").glob("cooling_device*")
    cooling = [device for device in devices if text(device / "type").startswith(_CPU_COOLERS)]
    return max(readable((device / "cur_state" for device in cooling), number), default=None)


def _thermal_throttling(root: Path) -> int | None:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counters = readable(files, number)
    return sum(counters) if counters else None


def _loaded_packages() -> dict[str, str]:
    """Versions of edgefold, and of the engines that this process has loaded; nothing is imported to find out."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in _ENGINES}
    return {"edgefold": VERSION, **{name: str(version) for name, version in loaded.items() if version}}
