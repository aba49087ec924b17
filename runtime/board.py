"""What boards and GPUs say of themselves through their own commands, and counters of energy.

Raspberry Pi: `vcgencmd`; Jetson: `nvpmodel` and `jetson_clocks`; NVIDIA GPUs: `nvidia-smi`. A command that is absent,
fails or takes too long leaves its values absent. Energy is the difference of two readings of a counter that the machine
has, by the counter's name: power is recorded as such, and nothing is integrated, added up or subtracted.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UsageError

ROOT = Path("/")
_COMMAND_S = 10.0
# Bits of `vcgencmd get_throttled` (Raspberry Pi's documentation); 16 higher: it has happened since the start.
_THROTTLED = {0: "under-voltage", 1: "ARM frequency capped", 2: "throttled", 3: "soft temperature limit active"}
_SINCE_START = 16
_GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "most_sm_clock_mhz": "clocks.max.sm",
    "temperature_celsius": "temperature.gpu",
    "power_watts": "power.draw",
}


@dataclass(frozen=True)
class BoardState:
    """throttled: what `vcgencmd` says of now, throttled_since_start: of ever. power_mode: as `nvpmodel` names it.
    clocks: lines of `jetson_clocks --show`. gpus: one mapping each. rails_mw: power of rails with a sensor, now."""

    throttled: tuple[str, ...] | None = None
    throttled_since_start: tuple[str, ...] | None = None
    power_mode: str | None = None
    clocks: tuple[str, ...] | None = None
    gpus: tuple[Mapping[str, Any], ...] | None = None
    rails_mw: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


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


def read_board(root: Path = ROOT) -> BoardState:
    """Ask the commands that are on PATH. That takes up to seconds, so do it outside of what is measured."""
    now, ever = _throttled() or (None, None)
    return BoardState(
        throttled=now,
        throttled_since_start=ever,
        power_mode=power_mode(),
        clocks=_lines_of("jetson_clocks", "--show"),
        gpus=_gpus(),
        rails_mw=_rails(root) or None,
    )


def throttling(before: BoardState, after: BoardState) -> tuple[str, ...]:
    """Return what held the board back between two readings: set at one of them, or newly set of those that stay."""
    found = [*(before.throttled or ()), *(after.throttled or ())]
    earlier = before.throttled_since_start
    if earlier is not None:
        found += [each for each in after.throttled_since_start or () if each not in earlier]
    return tuple(dict.fromkeys(found))


def power_mode() -> str | None:
    """Return the Jetson's power mode as `nvpmodel` names it, such as `15W`; None where there is none."""
    lines = _lines_of("nvpmodel", "-q") or ()
    return next(
        (name.strip() for line in lines for key, _, name in [line.partition(":")] if key == "NV Power Mode"), None
    )


def require_power_mode(wanted: str, root: Path = ROOT) -> None:
    """Raises UsageError where the device is in another power mode than `wanted`, or has none."""
    current = power_mode()
    if current is None:
        raise UsageError(
            f"power mode {wanted!r} is asked for, and this device says none (nvpmodel -q)",
            "Leave the power mode out: only Jetson boards have one.",
        )
    if current != wanted:
        modes = _power_modes(root)
        if wanted in modes:
            remedy = f"On the device: sudo nvpmodel -m {modes[wanted]}"
        else:
            known = f" Those of this device: {', '.join(modes)}." if modes else ""
            remedy = f"On the device: sudo nvpmodel -m NUMBER, from /etc/nvpmodel.conf.{known}"
        raise UsageError(f"the device is in power mode {current!r}, expected {wanted!r}", remedy)


def read_counters(root: Path = ROOT) -> dict[str, Counter]:
    """Return the counters of energy that this process may read, by name: RAPL's zones, and sensors that count.

    Linux lets only root read RAPL, unless the files' mode was changed.
    """
    found = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):  # AMD's have this name too
        with contextlib.suppress(OSError, ValueError):
            found[f"RAPL {_text(zone / 'name')} ({zone.name})"] = Counter(
                int(_text(zone / "energy_uj")), int(_text(zone / "max_energy_range_uj"))
            )
    for sensor in _sensors(root):
        for file in sorted(sensor.glob("energy*_input")):
            with contextlib.suppress(OSError, ValueError):
                found[f"{_text(sensor / 'name')} {_label(file)} ({sensor.name})"] = Counter(int(_text(file)))
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


def _throttled() -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    for line in _lines_of("vcgencmd", "get_throttled") or ():
        if match := re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", line):
            bits = int(match[1], 16)
            return _words(bits), _words(bits >> _SINCE_START)
    return None


def _words(bits: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _THROTTLED.items() if bits >> bit & 1)


def _power_modes(root: Path) -> dict[str, str]:
    """Return the number of each power mode by its name, as `/etc/nvpmodel.conf` lists them."""
    try:
        text = _text(root / "etc/nvpmodel.conf")
    except OSError:
        return {}
    return {name: number for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)}


def _gpus() -> tuple[Mapping[str, Any], ...] | None:
    query = f"--query-gpu={','.join(_GPU_FIELDS.values())}"
    lines = _lines_of("nvidia-smi", query, "--format=csv,noheader,nounits")
    return tuple(map(_gpu, lines)) if lines else None


def _gpu(line: str) -> Mapping[str, Any]:
    """Return what is known of one GPU: a value that it does not have comes as `[N/A]`."""
    values = dict(zip(_GPU_FIELDS, (each.strip() for each in line.split(",")), strict=False))
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value.startswith("["):
            continue
        with contextlib.suppress(ValueError):
            found[name] = value if name in ("name", "driver") else float(value)
    return found


def _rails(root: Path) -> dict[str, float]:
    """Return the power in milliwatts of every INA sensor's rails: as the sensor says it, or voltage times current."""
    found = {}
    for sensor in _sensors(root):
        with contextlib.suppress(OSError):
            if not _text(sensor / "name").startswith("ina"):
                continue
        for file in sorted(sensor.glob("power*_input")):
            with contextlib.suppress(OSError, ValueError):
                found[f"{_label(file)} ({sensor.name})"] = int(_text(file)) / 1e3
        if not any(sensor.glob("power*_input")):
            found |= {f"{name} ({sensor.name})": power for name, power in _products(sensor)}
    return found


def _products(sensor: Path) -> Iterator[tuple[str, float]]:
    for current in sorted(sensor.glob("curr*_input")):
        voltage = sensor / current.name.replace("curr", "in")
        with contextlib.suppress(OSError, ValueError):
            yield _label(voltage), int(_text(voltage)) * int(_text(current)) / 1e3  # mV times mA


def _sensors(root: Path) -> list[Path]:
    """Return the folders of hardware monitors, those on I2C included."""
    return sorted((root / "sys/class/hwmon").glob("hwmon*"))


def _label(file: Path) -> str:
    name = file.name.removesuffix("_input")
    try:
        return _text(file.with_name(f"{name}_label"))
    except OSError:
        return name


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _lines_of(*command: str) -> tuple[str, ...] | None:
    """Return what a command says, a line each without spaces around; None where it is not there or fails."""
    if (found := shutil.which(command[0])) is None:
        return None
    words: Sequence[str] = (found, *command[1:])
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    if done.returncode != 0:
        return None
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
