"""What the processor computes otherwise than others do."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

_X86 = ("x86_64", "amd64", "i386", "i686")
_VNNI = {"avx512_vnni", "avx_vnni"}

# Of ONNX Runtime: unsigned weights, which are added exactly, at half the speed or less.
_EXACT = ("session.x64quantprecision", "1")


def pairs_overflow(root: Path = Path("/")) -> bool:
    """Whether two products of an unsigned and a signed 8-bit number are added in 16 bits, which do not hold all sums.

    So does x86 before VNNI (2019), and then an INT8 model is another one there. Where the processor cannot be asked, it
    is taken to be one of these.
    """
    if platform.machine().lower() not in _X86:
        return False
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    return not any(_VNNI.intersection(line.split()) for line in lines if line.startswith("flags"))


def keep_products_exact(options: Any) -> None:
    """Set the session options of ONNX Runtime so that 8-bit products are added as they are on all machines."""
    if pairs_overflow():
        options.add_session_config_entry(*_EXACT)
