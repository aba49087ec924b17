"""A 64-bit ARM Python with numpy and onnxruntime, run by qemu: correct, and slow. Nothing of the system is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

# Debian 12's Python and what it links to.
_PACKAGES = (
    *(
        "python3.11-minimal",
        "libpython3.11-minimal",
        "libpython3.11-stdlib",
        "libc6",
        "libgcc-s1",
        "libstdc++6",
        "zlib1g",
    ),
    *("libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1"),
)
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
# ONNX Runtime reads the processor's features from this file, and crashes on the one of an x86 machine.
CPU_INFO = """\
processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


def arm_python(folder: Path) -> Path:
    """Return a program in `folder` that is an ARM Python to all who call it. Skips where it cannot be had."""
    for program in ("qemu-aarch64-static", "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (apt install qemu-user-static, on Debian 12)")
    root, site = folder / "root", folder / "site"
    for package in _debian_packages(folder / "apt"):
        _run("dpkg-deb", "-x", package, root)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPU_INFO)
    platforms = [word for each in _PLATFORMS for word in ("--platform", each)]
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", *platforms]
    _run(sys.executable, "-m", "pip", "download", "-q", "-d", folder / "wheels", *options, "numpy<2.6", "onnxruntime")
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    path = folder / "python3"
    # The first word that Python sees is this program's own path, so what it starts again as Python is this too.
    settings = f"-E PYTHONHOME=/usr -E PYTHONPATH={site} -E OPENBLAS_NUM_THREADS=1"
    emulator = f'qemu-aarch64-static -cpu cortex-a72 -0 "$0" -L {root} {settings}'
    path.write_text(f'#!/bin/sh\nexec {emulator} {root}/usr/bin/python3.11 "$@"\n')
    path.chmod(0o755)
    return path


def _debian_packages(folder: Path) -> list[Path]:
    """Download packages of another architecture than this machine's, with lists and cache of their own."""
    for part in ("state/lists/partial", "cache/archives/partial", "packages"):
        (folder / part).mkdir(parents=True)
    options = ["-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64", "-o", "APT::Sandbox::User=root"]
    options += ["-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    _run("apt-get", "-qq", *options, "update")
    _run("apt-get", "-qq", *options, "download", *_PACKAGES, cwd=folder / "packages")
    return sorted((folder / "packages").glob("*.deb"))


def _run(*command: object, cwd: Path | None = None) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    if done.returncode:
        pytest.skip(f"{command[0]} cannot fetch an ARM Python: {done.stderr.strip()[-300:]}")
