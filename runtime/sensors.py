"""Hardware monitors of Linux (hwmon), and the power of rails that have an INA sensor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from runtime.system_files import text


def rails_mw(root: Path) -> dict[str, float]:
    """Return the power in milliwatts of every INA sensor's rails: as the sensor says it, or voltage times current."""
    found = {}
    for sensor in sensors(root):
        with contextlib.suppress(OSError):
            if not text(sensor / "name").startswith("ina"):
                continue
        for file in sorted(sensor.glob("power*_input")):
            with contextlib.suppress(OSError, ValueError):
                found[f"{label(file)} ({sensor.name})"] = int(text(file)) / 1e3
        if not any(sensor.glob("power*_input")):
            found |= {f"{name} ({sensor.name})": power for name, power in _products(sensor)}
    return found


def _products(sensor: Path) -> Iterator[tuple[str, float]]:
    for current in sorted(sensor.glob("curr*_input")):
        voltage = sensor / current.name.replace("curr", "in")
        with contextlib.suppress(OSError, ValueError):
            yield label(voltage), int(text(voltage)) * int(text(current)) / 1e3  # mV times mA


def sensors(root: Path) -> list[Path]:
    """Return the folders of hardware monitors, those on I2C included."""
    return sorted((root / "sys/class/hwmon").glob("hwmon*"))


def label(file: Path) -> str:
    name = file.name.removesuffix("_input")
    try:
        return text(file.with_name(f"{name}_label"))
    except OSError:
        return name
