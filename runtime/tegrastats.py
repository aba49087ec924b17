"""One line of `tegrastats`, which a Jetson has: memory, loads and clocks, temperatures, power of rails.

What is in the line, and how it is written, differs between boards and releases (NVIDIA's Jetson Linux Developer Guide,
"Tegrastats Utility"); without root some of it is left out. What is not understood is left absent.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.device_commands import lines_while_running

# How often it writes a line: its loads are of so long a time. And how long a line may take to come.
_INTERVAL_MS = 200
_LIMIT_S = 3.0

_MEMORY = re.compile(r"\b(RAM|SWAP) (\d+)/(\d+)MB")
_CPU = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
_EMC = re.compile(r"\bEMC(?:_FREQ)? (?:(\d+)%)?(?:@(\d+))?")
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (?:(\d+)%)?(?:@\[?([\d,]+))?")
_TEMPERATURE = re.compile(r"([\w-]+)@(-?\d+(?:\.\d+)?)C\b")
# `VDD_IN 4832mW/4463mW`, now and on average, of JetPack 5 and newer; `POM_5V_IN 900/943` of older ones.
_RAIL = re.compile(r"\b([A-Za-z]\w*) (?:(\d+)mW(?:/(\d+)mW)?|(\d+)/(\d+)(?=\s|$))")
_NOT_CONNECTED = "NC"
_NO_TEMPERATURE = -256.0  # of a zone that is switched off


def read_tegrastats() -> Mapping[str, Any] | None:
    """Return what `tegrastats` says now; None where it is not there, needs root, or says nothing in time."""
    with contextlib.closing(
        lines_while_running("tegrastats", "--interval", str(_INTERVAL_MS), limit_s=_LIMIT_S)
    ) as lines:
        return next((found for line in lines if (found := parsed(line))), None)


def parsed(line: str) -> Mapping[str, Any]:
    """Return the values of a line by names with units; empty where it is none of tegrastats'.

    cpu_percent, cpu_mhz: a value for each core, None for one that is switched off. gpu_mhz: one for each of the GPU's
    clusters. rails_mw: by the rails' own names, now; rails_average_mw: since tegrastats was started.
    """
    if "RAM " not in line:
        return {}
    values = dict(_memory(line)) | dict(_processors(line))
    degrees = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    values["temperatures_celsius"] = {name: each for name, each in degrees.items() if each > _NO_TEMPERATURE}
    rails = [match.groups() for match in _RAIL.finditer(line) if match[1] != _NOT_CONNECTED]
    values["rails_mw"] = {name: float(new or old) for name, new, _, old, _ in rails}
    values["rails_average_mw"] = {name: float(new or old) for name, _, new, _, old in rails if new or old}
    return {name: value for name, value in values.items() if value not in (None, {}, ())}


def _memory(line: str) -> Iterator[tuple[str, Any]]:
    for name, used, total in _MEMORY.findall(line):
        yield f"{name.lower()}_used_mb", int(used)
        yield f"{name.lower()}_mb", int(total)


def _processors(line: str) -> Iterator[tuple[str, Any]]:
    if match := _CPU.search(line):
        cores = [_CORE.fullmatch(core.strip()) for core in match[1].split(",")]
        yield "cpu_percent", tuple(_number(core and core[1]) for core in cores)
        yield "cpu_mhz", tuple(_number(core and (core[2] or match[2])) for core in cores)
    if match := _EMC.search(line):
        yield "emc_percent", _number(match[1])
        yield "emc_mhz", _number(match[2])
    if match := _GPU.search(line):
        yield "gpu_percent", _number(match[1])
        yield "gpu_mhz", tuple(int(each) for each in (match[2] or "").split(",") if each)


def _number(text: str | None) -> int | None:
    return int(text) if text else None
