"""Where the library of packed binary models' operators lies, and whether this machine can load it.

The library is built from `runtime/ops` and lies there, in a checkout as in an installed package.
`EDGEFOLD_OPS_LIBRARY` names another file, such as one that was cross-built for a device.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

from runtime.errors import EdgefoldError, EngineError, MissingExtraError, UsageError

OVERRIDE = "EDGEFOLD_OPS_LIBRARY"
INSTRUCTION_SET = "EDGEFOLD_ISA"

FILE_NAME = {"win32": "edgefold_ops.dll", "darwin": "libedgefold_ops.dylib"}.get(sys.platform, "libedgefold_ops.so")
FOLDER = Path(__file__).parent / "ops"

# ELF's number of a machine -> what `platform.machine()` calls it.
_ELF_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_BUILD = (
    "Install a C++17 compiler (apt install g++), then edgefold again "
    "(pip install --force-reinstall --no-deps --no-cache-dir edgefold; in a checkout pip install -e .), "
    f"or set {OVERRIDE} to a library that was built elsewhere: runtime/ops/README.md."
)


def library_path() -> Path:
    """Return the library's file, for `SessionOptions.register_custom_ops_library`, after loading it once.

    Raises MissingExtraError where there is none, EngineError where this machine cannot load it.
    """
    path = _path()
    _load(path)
    return path


def instruction_set() -> str:
    """Return the instruction set that the kernels use here, such as `avx2`. Raises as `library_path` does."""
    return _instruction_set(_load(_path()))


def loaded_instruction_set() -> str | None:
    """Return the same if this process has loaded the library; nothing is loaded to find out."""
    return _instruction_set(_loaded[-1]) if _loaded else None


def available() -> bool:
    """Return whether the library is there and loads."""
    try:
        library_path()
    except EdgefoldError:
        return False
    return True


_loaded: list[ctypes.CDLL] = []


def _path() -> Path:
    given = os.environ.get(OVERRIDE)
    path = Path(given).absolute() if given else FOLDER / FILE_NAME
    if path.is_file():
        return path
    if not given and (installed := _installed()) is not None:
        return installed
    if given:
        raise MissingExtraError(
            f"{OVERRIDE} is {given!r}, which is no file", remedy=f"Name the file {FILE_NAME}, or unset {OVERRIDE}."
        )
    raise MissingExtraError(
        f"packed binary models need {path}, which was not built when edgefold was installed", _BUILD
    )


def _installed() -> Path | None:
    """Return the installed package's library: in a checkout's folder `python -m runtime` is the checkout's, without."""
    import importlib.metadata  # which brings a mail reader; models that are not packed need neither

    try:
        path = Path(str(importlib.metadata.distribution("edgefold").locate_file(f"runtime/ops/{FILE_NAME}")))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


@functools.lru_cache
def _load(path: Path) -> ctypes.CDLL:
    _check_machine(path)
    try:
        library = ctypes.CDLL(str(path))
        library.edgefold_isa.restype = ctypes.c_char_p
        library.RegisterCustomOps  # noqa: B018  # looked up, or an AttributeError
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be loaded: {error}", remedy=_BUILD) from error
    _loaded.append(library)
    return library


def _instruction_set(library: ctypes.CDLL) -> str:
    name: bytes | None = library.edgefold_isa()
    if name is None:
        raise UsageError(
            f"{INSTRUCTION_SET} is {os.environ.get(INSTRUCTION_SET)!r}, which this machine has no kernels for",
            remedy=f"Unset {INSTRUCTION_SET}: the best of this machine's are taken.",
        )
    return name.decode("ascii", errors="replace")


def machine_of(path: Path) -> str | None:
    """Return the machine that an ELF library is for, as `platform.machine()` calls it; None of another file."""
    with path.open("rb") as file:
        head = file.read(20)
    return _elf_machine(head) if len(head) == 20 and head[:4] == b"\x7fELF" else None


def _elf_machine(head: bytes) -> str:
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _ELF_MACHINES.get(number, f"ELF machine {number}")


def _check_machine(path: Path) -> None:
    """Refuse another machine's ELF file by name; the loader only says that it "cannot open" it."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}", remedy=_BUILD) from error
    if sys.platform != "linux":
        return
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise EngineError(f"{path} is no shared library of Linux (it does not begin with ELF)", remedy=_BUILD)
    machine = _elf_machine(head)
    here = _python_machine()
    if machine in _ELF_MACHINES.values() and here in _ELF_MACHINES.values() and machine != here:
        raise EngineError(f"{path} is built for {machine}, and this Python for {here}", remedy=_BUILD)


def _python_machine() -> str:
    """Return this Python's machine: a 32-bit one may run on a 64-bit kernel, whose name `machine()` gives."""
    machine = platform.machine()
    if sys.maxsize > 2**32:
        return machine
    return {"x86_64": "i686", "aarch64": "armv7l", "armv8l": "armv7l"}.get(machine, machine)
