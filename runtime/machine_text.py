"""What a document of `bench` says of its machine, in words: plain ASCII around the machine's own names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def machine_facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Return a line each of the machine, its state before and after, its board, and what its counters counted."""
    facts = {"machine": _machine(result["environment"])}
    if state := ", ".join(_states(result["load"]["before"], result["load"]["after"])):
        facts["before, after"] = state
    return facts | board_facts(result)


def board_facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what the board and the engine's GPUs say after the measurement, and what counters of energy counted."""
    after = result.get("board", {}).get("after", {})
    facts = {}
    if "power_mode" in after:
        facts["power mode"] = str(after["power_mode"])
    used = result["engine"].get("gpus", ())
    if gpus := [each for each in after.get("gpus", ()) if each.get("uuid") in used]:
        facts["gpu"] = "; ".join(map(_gpu, gpus))
    seen = after.get("tegrastats", {})
    if line := ", ".join(_tegrastats(seen)):
        facts["tegrastats"] = line
    if rails := after.get("rails_mw") or seen.get("rails_mw"):
        facts["power, after"] = ", ".join(f"{name} {power:,.0f} mW" for name, power in rails.items())
    if result.get("energy"):
        counted = (f"{each['mj_per_call']:.4g} mJ a call by {each['counter']}" for each in result["energy"])
        facts["energy"] = f"{', '.join(counted)}, with all else that ran"
    return facts


def _machine(environment: Mapping[str, Any]) -> str:
    model = environment.get("device_model") or environment.get("cpu_model") or environment.get("machine", "unknown")
    parts = [str(model)]
    if "affinity" in environment:
        parts.append(f"{len(environment['affinity'])} of {environment.get('logical_cores', '?')} cores usable")
    if "cpu_limit" in environment:
        parts.append(f"limited to {environment['cpu_limit']:g} cores")
    if "governors" in environment:
        parts.append(f"governor {'/'.join(environment['governors'])}")
    if "custom_ops" in environment:
        parts.append(f"custom operators {environment['custom_ops']}")
    return ", ".join(parts)


def _states(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Say what changes, where both readings have it: frequencies are those of the fastest core."""
    if "load_average" in before and "load_average" in after:
        yield f"load {before['load_average'][0]:.2f} then {after['load_average'][0]:.2f}"
    if "frequencies_mhz" in before and "frequencies_mhz" in after:
        yield f"{max(before['frequencies_mhz']):.0f} then {max(after['frequencies_mhz']):.0f} MHz"
    if "temperature_celsius" in before and "temperature_celsius" in after:
        yield f"{before['temperature_celsius']:.1f} then {after['temperature_celsius']:.1f} degrees"


def _gpu(gpu: Mapping[str, Any]) -> str:
    units = {"sm_clock_mhz": "MHz", "temperature_celsius": "degrees", "power_watts": "W"}
    most = {"sm_clock_mhz": "most_sm_clock_mhz", "power_watts": "power_limit_watts"}
    parts = []
    for name, unit in units.items():
        if name in gpu:
            limit = f" of {gpu[most[name]]:g}" if most.get(name) in gpu else ""
            parts.append(f"{gpu[name]:g}{limit} {unit}")
    if gpu.get("mig_mode"):
        parts.append("divided (MIG)")
    if gpu.get("clock_reasons"):
        parts.append(f"clocks by {' and '.join(gpu['clock_reasons'])}")
    return ", ".join([f"{gpu.get('name', 'GPU')} (driver {gpu.get('driver', 'unknown')})", *parts])


def _tegrastats(seen: Mapping[str, Any]) -> Iterator[str]:
    for what, name in (("gpu", "gpu"), ("memory bus", "emc")):
        clocks = seen.get(f"{name}_mhz")
        load = [f"{seen[f'{name}_percent']} %"] if f"{name}_percent" in seen else []
        load += [f"{max(clocks) if isinstance(clocks, list | tuple) else clocks} MHz"] if clocks else []
        if load:
            yield f"{what} {' at '.join(load)}"
    if "ram_mb" in seen:
        yield f"memory {seen['ram_used_mb']:,} of {seen['ram_mb']:,} MB"
    if degrees := seen.get("temperatures_celsius"):
        yield f"{', '.join(f'{name} {value:g}' for name, value in degrees.items())} degrees"
