"""What makes measured numbers less than they seem, in words."""

from __future__ import annotations

import sys
from collections.abc import Collection

from runtime.board import BoardState, throttling
from runtime.bundle import Bundle
from runtime.device import Environment, Load, usable_cores
from runtime.latency import LatencySummary
from runtime.measure import WarmUp

UNSTABLE = "UNSTABLE"  # begins a note on numbers that another run may not give again


def call_notes(
    bundle: Bundle,
    batch: int,
    threads: int,
    warm: WarmUp,
    latency: LatencySummary,
    environment: Environment,
    before: Load,
    after: Load,
) -> tuple[str, ...]:
    """Say in words what makes the latency of calls less than it seems; before, after: the machine's load."""
    notes = []
    if any(bundle.input.free):
        notes.append(f"each call is as long as its longest text, at most {bundle.input.shape[0]} ids")
    if latency.drift is not None and latency.drift.unstable:
        notes.append(
            f"{UNSTABLE}: the median changed by {100 * latency.drift.change:+.1f} % "
            "from the first to the last tenth of the calls"
        )
    if not warm.steady:
        notes.append(f"the warm-up never became steady within {warm.seconds:.1f} s")
    cores = usable_cores(environment)
    if cores is not None and threads > cores:
        notes.append(f"{threads} threads share {cores:g} cores")
    busy = before.load_average[0] if before.load_average else 0.0
    if environment.logical_cores and busy > environment.logical_cores:
        notes.append(f"{UNSTABLE}: the machine was busy: load average {busy:.1f} on {environment.logical_cores} cores")
    if bundle.batch_sizes and batch not in bundle.batch_sizes:
        verified = ", ".join(map(str, bundle.batch_sizes))
        notes.append(f"batch {batch} was not verified at export (verified: {verified})")
    for name, what in (
        ("cgroup_throttled_periods", "the container's CPU limit stopped this process in {} periods"),
        ("thermal_throttle_events", "the CPU was throttled by heat {} times"),
    ):
        earlier, later = getattr(before, name), getattr(after, name)
        if earlier is not None and later is not None and later > earlier:
            notes.append(f"{UNSTABLE}: {what.format(later - earlier)} during the measurement")
    if cooling := max(before.cpu_cooling_state or 0, after.cpu_cooling_state or 0):
        notes.append(f"{UNSTABLE}: the kernel held the CPU back against heat (cooling state {cooling})")
    if "torch" in sys.modules:
        notes.append("torch is loaded in this process; its threads can disturb the engine")
    return tuple(notes)


def board_notes(before: BoardState, after: BoardState, gpus: Collection[str]) -> tuple[str, ...]:
    """Say what held the board, or the GPUs that the engine runs on, back; gpus: their UUIDs."""
    held_back = throttling(before, after, gpus)
    return (f"{UNSTABLE}: the board was held back: {', '.join(held_back)}",) if held_back else ()
