"""Which ONNX files an ONNX Runtime reads, by its version.

The table is what versions 1.16.3 to 1.24.1 themselves say when they refuse a model of IR 40, and one of opset 90. Of a
version that is newer than the table nothing is known to be unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.onnx_file import OnnxHeader


@dataclass(frozen=True)
class Reads:
    """The latest IR version and opset of the default domain that are read."""

    ir_version: int
    opset: int


# By minor version.
READS: Mapping[tuple[int, int], Reads] = {
    (1, 16): Reads(9, 19),
    (1, 17): Reads(9, 20),
    (1, 18): Reads(10, 21),
    (1, 19): Reads(10, 21),
    (1, 20): Reads(10, 21),
    (1, 21): Reads(10, 22),
    (1, 22): Reads(10, 22),
    (1, 23): Reads(11, 23),
    (1, 24): Reads(13, 25),
}


def refusal(header: OnnxHeader, version: str) -> tuple[str, str] | None:
    """Return why onnxruntime `version` cannot read a file, and what to install; None where nothing is against it."""
    minor = _minor(version)
    if minor is None or minor > max(READS):
        return None
    # What came before the table reads at most what its first version does.
    reads = READS[max(minor, min(READS))]
    opset = header.opsets.get("", 0)
    too_new = [
        f"{name} {found} (it reads up to {most})"
        for name, found, most in (("IR", header.ir_version, reads.ir_version), ("opset", opset, reads.opset))
        if found > most
    ]
    if not too_new:
        return None
    later = (each for each, of in READS.items() if of.ir_version >= header.ir_version and of.opset >= opset)
    needed = next(later, None)
    least = f"'onnxruntime>={needed[0]}.{needed[1]}'" if needed else "--upgrade onnxruntime"
    return f"onnxruntime {version} cannot read {' and '.join(too_new)}", f"pip install {least}"


def _minor(version: str) -> tuple[int, int] | None:
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        return None
