"""What the process's control groups allow it, versions 1 and 2, and the container that it is in."""

from __future__ import annotations

import contextlib
from pathlib import Path

from runtime.system_files import readable, text


def _folders(root: Path) -> list[Path]:
    """Return the process's cgroup and its parents: a limit anywhere on the way up holds."""
    mount = root / "sys/fs/cgroup"
    lines = readable([root / "proc/self/cgroup"], lambda path: text(path).splitlines())
    groups = [line.split(":", 2) for line in (lines[0] if lines else ()) if line.count(":") >= 2]
    if (mount / "cpu").is_dir():  # version 1
        mount = mount / "cpu"
        own = next((path for _, controllers, path in groups if "cpu" in controllers.split(",")), "/")
    else:
        own = next(path for number, _, path in groups if number == "0")
    folder = mount / own.lstrip("/")  # of the host, where a container sees its own group at the mount
    return [folder, *(each for each in folder.parents if each == mount or mount in each.parents)]


def cpu_limit(root: Path) -> float | None:
    limits = []
    for folder in _folders(root):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():
                quota, period = text(folder / "cpu.max").split()
            else:
                quota, period = text(folder / "cpu.cfs_quota_us"), text(folder / "cpu.cfs_period_us")
            if quota not in ("max", "-1"):
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def throttling(root: Path) -> tuple[int, int] | None:
    """Return (periods, microseconds) in which the kernel kept this process's groups from running."""
    periods, microseconds, seen = 0, 0, False
    for folder in _folders(root):
        with contextlib.suppress(OSError, ValueError):
            counters = dict(line.split() for line in text(folder / "cpu.stat").splitlines())
            if "nr_throttled" in counters:
                seen = True
                periods += int(counters["nr_throttled"])
                nanoseconds = int(counters.get("throttled_time", 0))  # version 1
                microseconds += int(counters.get("throttled_usec", 0)) + nanoseconds // 1000
    return (periods, microseconds) if seen else None


def container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = text(root / "proc/1/cgroup")
    return next((name for name in ("kubepods", "docker", "containerd", "lxc") if name in groups), None)
