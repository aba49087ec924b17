"""An engine of a bundle's own ONNX file, which takes and gives what the bundle says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Bundle
from runtime.engine_build import Engine, engine_from_onnx
from runtime.errors import ExportError, UsageError

_SOURCES = (".onnx",)


def engine_of(
    bundle: Bundle,
    format: str,
    profiles: Sequence[Sequence[int]],
    *,
    compute_capability: str | None = None,
    module: str | None = None,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
) -> Engine:
    """Build an engine of a format; profiles: batch sizes, each list a profile of its own. Others: `engine_from_onnx`.

    Raises UsageError for a format that the bundle lacks or that is no ONNX, and what `engine_from_onnx` raises.
    """
    file = bundle.format(format).file
    if not is_source(bundle, format):
        fitting = ", ".join(name for name in bundle.formats if is_source(bundle, name))
        raise UsageError(f"{bundle.path}: {file} is no ONNX file", remedy=f"Build of one of {fitting}.")
    engine = engine_from_onnx(
        bundle.read_bytes(file),
        batch_sizes=profiles[0],
        further_profiles=profiles[1:],
        length=bundle.input.shape[0] if any(bundle.input.free) else None,
        compute_capability=compute_capability,
        module=module,
        workspace_mib=workspace_mib,
        timing_cache=timing_cache,
        name=f"{bundle.name} {format}",
        origin=str(bundle.file_of(format)),
    )
    _require_same_ends(bundle, engine, bundle.file_of(format))
    return engine


def is_source(bundle: Bundle, format: str) -> bool:
    """Return whether a format is an ONNX file, of which engines are built, and no engine itself."""
    entry = bundle.format(format)
    return entry.file.endswith(_SOURCES) and entry.source is None


def _require_same_ends(bundle: Bundle, engine: Engine, path: Path) -> None:
    """Refuse an engine that takes or gives something else than the manifest says."""
    inputs = [(each.name, each.dtype) for each in engine.inputs]
    outputs = {each.name: each.dtype for each in engine.outputs}
    expected = [(bundle.input.name, bundle.input.dtype)]
    wanted = {each.name: each.dtype for each in bundle.outputs}
    if inputs != expected or not wanted.items() <= outputs.items():
        raise ExportError(
            f"{path}: the engine takes {inputs} and gives {outputs}; expected {expected} and {wanted} of it"
        )
