"""Which ONNX files an ONNX Runtime runs, by its version, and the opset that a file can be exported in for an older one.

The table is what the versions themselves say: 1.16.3 to 1.24.1 when they refuse a model of IR 40, and one of opset 90;
1.7.0 to 1.15.1 by what they load and run of models of each. Of a version that is newer than the table nothing is known
to be unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.onnx_file import OnnxHeader


@dataclass(frozen=True)
class Reads:
    """The latest IR version and opset of the default domain that are run."""

    ir_version: int
    opset: int


# By minor version.
READS: Mapping[tuple[int, int], Reads] = {
    (1, 7): Reads(7, 13),
    (1, 8): Reads(7, 14),
    (1, 9): Reads(8, 15),
    (1, 10): Reads(8, 15),
    (1, 11): Reads(8, 16),
    (1, 12): Reads(8, 17),
    (1, 13): Reads(8, 17),
    (1, 14): Reads(8, 18),
    (1, 15): Reads(9, 18),  # it takes 19, and has no kernels of it: none for Cast, Equal, Shape and DequantizeLinear
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

# Format of a bundle -> the first opset that it can be written in, and why; of all others it is `export.opsets`.
LEAST_OPSETS: Mapping[str, tuple[int, str]] = {
    "bf16": (22, "since before it Conv takes no bfloat16"),
    "int4": (21, "since before it there are no tensors of 4 bits"),
    "qonnx": (15, "since before its IR version no file brings a function such as Quant along"),
}
_LEAST_OPSET = 13  # of `export.opsets`
# What is offered: 1.15 and 1.16 expand LayerNormalization in float16 of a later one to a graph that they then refuse.
_OFFERED = 17

# What lays channels out for the CPU's vectors gives ShuffleNet V1 other classes there (2.7 deviations off), and
# MobileNet V2 in INT8 other logits (1.6); all other optimisations are right, and so are 1.11 and 1.14.
_WRONG_LAYOUTS = ((1, 12), (1, 13))

# Its process ends, without a word, while it loads a model with float16 for the CPU.
_CRASHES = {(1, 14): "fp16"}

_OPERATORS = "edgefold"
_OPERATORS_SINCE = (1, 17)  # what the library of `runtime/ops` is built for


@dataclass(frozen=True)
class Refusal:
    """Why a file cannot be read. install: pip's command. export: what exports it for this engine, "" where nothing."""

    why: str
    install: str
    export: str

    def remedy(self, python: str = "") -> str:
        """Return both: what upgrades the engine of `python`, and what exports the model for the engine as it is."""
        upgrade = f"{python} -m {self.install}" if python else self.install
        return f"{upgrade}, or export it again for this engine: {self.export}" if self.export else upgrade


def refusal(header: OnnxHeader, version: str, form: str = "onnx") -> Refusal | None:
    """Return why onnxruntime `version` cannot read a file of format `form`; None where nothing is against it."""
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
    operators = _OPERATORS in header.opsets and minor < _OPERATORS_SINCE
    if operators:
        too_new.append("the operators of packed models (it is too old for their library)")
    crash = crashes_on(version, form)
    if crash:
        too_new.append("float16 on a CPU (it crashes)")
    if not too_new:
        return None
    later = (
        each
        for each, of in READS.items()
        if each > minor
        and of.ir_version >= header.ir_version
        and of.opset >= opset
        and (_OPERATORS not in header.opsets or each >= _OPERATORS_SINCE)
    )
    needed = next(later, None)
    least = f"'onnxruntime>={needed[0]}.{needed[1]}'" if needed else "--upgrade onnxruntime"
    offered = min(reads.opset, _OFFERED)
    possible = (
        not (operators or crash) and minor >= min(READS) and offered >= LEAST_OPSETS.get(form, (_LEAST_OPSET,))[0]
    )
    return Refusal(
        f"onnxruntime {version} cannot read {' and '.join(too_new)}",
        f"pip install {least}",
        _export(header.metadata, offered) if possible and offered < opset else "",
    )


def _export(metadata: Mapping[str, str], opset: int) -> str:
    """Return the command that makes a model anew, by what the model says of its origin (`compress.provenance`)."""
    recipe, *marks = metadata.get("edgefold.name", "").split("@")  # results are called as their recipe, with marks
    if not recipe:
        return f"opset {opset}"
    if "stages:" not in metadata.get("edgefold.recipe", ""):
        return f"edgefold export --weights ... --opset {opset}"  # the student of no recipe
    scale = "".join(f" --scale {mark}" for mark in marks if not mark.startswith("opset"))
    return f"edgefold export {recipe}{scale} --opset {opset} (or `opset: {opset}` in the recipe's export)"


def crashes_on(version: str, form: str) -> bool:
    """Return whether onnxruntime `version` is known to end its process where it loads a format for the CPU."""
    minor = _minor(version)
    return minor is not None and _CRASHES.get(minor) == form


def lays_out_wrongly(version: str) -> bool:
    """Return whether onnxruntime `version` is known to give wrong results where it changes the layout of channels."""
    return _minor(version) in _WRONG_LAYOUTS


def _minor(version: str) -> tuple[int, int] | None:
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        return None
