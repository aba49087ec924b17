"""Counters of energy that the machine has, by name.

Energy is the difference of two readings of a counter: power is none, and nothing is integrated, added up or subtracted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.nvml import read_energy
from runtime.sensors import label, sensors
from runtime.system_files import text

ROOT = Path("/")


@dataclass(frozen=True)
class Counter:
    """A reading of a counter of energy in microjoules, which goes back to 0 above `most` where that is known."""

    microjoules: int
    most: int | None = None


@dataclass(frozen=True)
class Energy:
    """Energy that `counter` counted during `calls`; what else the machine did meanwhile is in it."""

    counter: str
    joules: float
    calls: int

    def to_json(self) -> dict[str, Any]:
        per_call = 1e3 * self.joules / self.calls
        return {"counter": self.counter, "joules": self.joules, "calls": self.calls, "mj_per_call": per_call}


def read_counters(root: Path = ROOT, *, gpus: Collection[str] | None = None) -> dict[str, Counter]:
    """Return the counters of energy that this process may read, by name: RAPL's zones, sensors that count, GPUs.

    gpus: the UUIDs of those to read; all, if left out. Linux lets only root read RAPL, unless its files' mode was
    changed.
    """
    # First, so that energies on a GPU are compared by it: of the others `gpus` leaves none to read.
    found = {name: Counter(microjoules) for name, microjoules in read_energy(gpus).items()}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):  # AMD's have this name too
        with contextlib.suppress(OSError, ValueError):
            found[f"RAPL {text(zone / 'name')} ({zone.name})"] = Counter(
                int(text(zone / "energy_uj")), int(text(zone / "max_energy_range_uj"))
            )
    for sensor in sensors(root):
        for file in sorted(sensor.glob("energy*_input")):
            with contextlib.suppress(OSError, ValueError):
                found[f"{text(sensor / 'name')} {label(file)} ({sensor.name})"] = Counter(int(text(file)))
    return found


def energy_between(before: Mapping[str, Counter], after: Mapping[str, Counter], calls: int) -> tuple[Energy, ...]:
    """Return what each counter counted. One that ran backwards for no known reason, or was lost, is left out."""
    found = []
    for name, start in before.items():
        if name not in after:
            continue
        used = after[name].microjoules - start.microjoules
        if used < 0 and start.most is not None:
            used += start.most + 1
        if used >= 0:
            found.append(Energy(name, used / 1e6, calls))
    return tuple(found)
