"""What boards and GPUs say of themselves: a Raspberry Pi by `vcgencmd`, a Jetson by commands of its own, GPUs by NVML.

A command that is absent, fails or takes too long leaves its values absent, and so does a GPU without NVML.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.device_commands import lines_of
from runtime.errors import UsageError
from runtime.nvml import held_back, read_gpus
from runtime.sensors import rails_mw
from runtime.system_files import text
from runtime.tegrastats import read_tegrastats

ROOT = Path("/")
# Bits of `vcgencmd get_throttled` (Raspberry Pi's documentation); 16 higher: it has happened since the start.
_THROTTLED = {0: "under-voltage", 1: "ARM frequency capped", 2: "throttled", 3: "soft temperature limit active"}
_SINCE_START = 16


@dataclass(frozen=True)
class BoardState:
    """throttled: what `vcgencmd` says of now, throttled_since_start: of ever. power_mode: as `nvpmodel` names it.
    clocks: lines of `jetson_clocks --show`. gpus, tegrastats: as these modules read them. rails_mw: as
    `read_rails` does."""

    throttled: tuple[str, ...] | None = None
    throttled_since_start: tuple[str, ...] | None = None
    power_mode: str | None = None
    clocks: tuple[str, ...] | None = None
    gpus: tuple[Mapping[str, Any], ...] | None = None
    tegrastats: Mapping[str, Any] | None = None
    rails_mw: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_board(root: Path = ROOT) -> BoardState:
    """Ask the GPUs, then the commands that are on PATH. That takes up to seconds: do it outside of what is measured.

    After a measurement do it at once: a GPU's clocks are those of its work for some milliseconds.
    """
    gpus = read_gpus()
    now, ever = _throttled() or (None, None)
    return BoardState(
        throttled=now,
        throttled_since_start=ever,
        power_mode=power_mode(),
        clocks=lines_of("jetson_clocks", "--show"),
        gpus=gpus,
        tegrastats=read_tegrastats(),
        rails_mw=read_rails(root) or None,
    )


def read_rails(root: Path = ROOT) -> dict[str, float]:
    """Return the power in milliwatts of the rails that are measured, now: by INA sensors, and a Raspberry Pi 5's PMIC.

    Rails lie behind each other, and none of them need be all of the board: they are not added up.
    """
    readings = dict(filter(None, map(_pmic_reading, lines_of("vcgencmd", "pmic_read_adc") or ())))
    amperes = {name.removesuffix("_A"): value for name, value in readings.items() if name.endswith("_A")}
    powers = {
        f"{name} (PMIC)": 1e3 * readings[f"{name}_V"] * value
        for name, value in amperes.items()
        if f"{name}_V" in readings
    }
    return rails_mw(root) | powers


def throttling(before: BoardState, after: BoardState, gpus: Collection[str] = ()) -> tuple[str, ...]:
    """Return what held the board back between two readings, and who says so.

    Of `vcgencmd` what is set at one of them, or newly set of what stays; of the GPUs with these UUIDs what held their
    clocks back: one that the engine does not run on may do what it likes.
    """
    found = [*(before.throttled or ()), *(after.throttled or ())]
    earlier = before.throttled_since_start
    if earlier is not None:
        found += [each for each in after.throttled_since_start or () if each not in earlier]
    found = [f"{each} (vcgencmd)" for each in found]
    at_first = {each.get("uuid"): each for each in before.gpus or ()}
    for gpu in after.gpus or ():
        if (uuid := gpu.get("uuid")) in gpus:
            found += [f"{each} (NVML, {gpu.get('name', uuid)})" for each in held_back(at_first.get(uuid, {}), gpu)]
    return tuple(dict.fromkeys(found))


def power_mode() -> str | None:
    """Return the Jetson's power mode as `nvpmodel` names it, such as `15W`; None where there is none."""
    lines = lines_of("nvpmodel", "-q") or ()
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


def _throttled() -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    for line in lines_of("vcgencmd", "get_throttled") or ():
        if match := re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", line):
            bits = int(match[1], 16)
            return _words(bits), _words(bits >> _SINCE_START)
    return None


def _pmic_reading(line: str) -> tuple[str, float] | None:
    """Read `VDD_CORE_A current(7)=0.75012000A` or `VDD_CORE_V volt(15)=0.89745940V`."""
    match = re.fullmatch(r"(\w+_[AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]", line)
    return (match[1], float(match[2])) if match else None


def _words(bits: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _THROTTLED.items() if bits >> bit & 1)


def _power_modes(root: Path) -> dict[str, str]:
    """Return the number of each power mode by its name, as `/etc/nvpmodel.conf` lists them."""
    try:
        modes = text(root / "etc/nvpmodel.conf")
    except OSError:
        return {}
    return {name: number for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", modes)}
