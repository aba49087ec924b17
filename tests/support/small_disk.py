"""A file system of a few megabytes, in a mount namespace of its own: nothing of the machine is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """`mount` is its path to the programs that `python` starts, `seen` the same from outside of the namespace."""

    mount: Path
    seen: Path
    python: Path

    def fill(self, *, leaving: int = 0) -> None:
        """Write a file that takes all of the space but `leaving` bytes."""
        about = os.statvfs(self.seen)
        with open(self.seen / "filler", "wb") as file:
            file.write(bytes(max(0, about.f_bavail * about.f_frsize - leaving)))

    def free(self) -> None:
        (self.seen / "filler").unlink()


@contextmanager
def small_disk(folder: Path, *, megabytes: int, options: str = "") -> Iterator[SmallDisk]:
    """Mount one of memory. Skips where this user may not."""
    for program in ("unshare", "nsenter"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (apt install util-linux)")
    mount = folder / "disk"
    mount.mkdir()
    script = f'mount -t tmpfs -o "size={megabytes}m{options}" tmpfs "$0" && echo mounted && exec sleep 600'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(mount)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if not holder.stdout.readline():
                pytest.skip(f"no file system can be mounted here: {holder.stderr.read().strip()}")
            python = folder / "python3"
            python.write_text(
                f"#!/bin/sh\nexport XDG_CACHE_HOME={mount}\n"
                f'exec nsenter -t {holder.pid} --user --mount --preserve-credentials {sys.executable} "$@"\n'
            )
            python.chmod(0o755)
            yield SmallDisk(mount, Path(f"/proc/{holder.pid}/root{mount}"), python)
        finally:
            holder.kill()
