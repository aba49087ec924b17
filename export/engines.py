"""Adds TensorRT engines to a bundle, of its own ONNX files: what a device needs nothing else for.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.parity import Gate
from runtime.bundle import MANIFEST, Bundle, open_bundle, write_checksums
from runtime.bundle_engine import engine_of
from runtime.engine_build import Engine
from runtime.errors import UsageError
from runtime.files import folder_atomically, json_text, write_atomically, write_json
from runtime.manifest import EngineRequest, FormatFile

# An engine adds in another order than a CPU, and picks its kernels by their time.
FP32_GATE = Gate(max_error_over_std=1e-3, top1_agreement=0.999, metric_drop_points=0.05)
_KIND = "tensorrt"
_EVERY = "portable"  # in the place of a capability: what TensorRT-RTX builds for all of its GPUs


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """An engine and what a bundle says of it. name: its format, as in `tensorrt-sm86-fp16`."""

    name: str
    entry: FormatFile
    engine: Engine
    onnx_file: str

    @property
    def description(self) -> dict[str, Any]:
        return self.engine.describe(self.onnx_file).to_json()


def build_engines(
    bundle: Bundle,
    requests: Sequence[EngineRequest],
    *,
    timing_cache: Path | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> list[BuiltEngine]:
    """Build what is requested; the bundle stays as it is.

    Raises UsageError for a format that the bundle lacks or that is no ONNX, ExportError and MissingExtraError as
    `runtime.engine_build.engine_from_onnx` does.
    """
    built: list[BuiltEngine] = []
    for request in requests:
        for capability in request.capabilities or (None,):
            notify(f"building a {replace(request, capabilities=(capability,) if capability else ()).in_words()}")
            built.append(_built(bundle, request, capability, timing_cache))
    if len({each.name for each in built}) < len(built):
        raise UsageError(f"{bundle.path}: one engine is asked for twice: {', '.join(each.name for each in built)}")
    return built


def add_engines(bundle: Bundle, engines: Sequence[BuiltEngine]) -> Bundle:
    """Put engines into the bundle, in the place of those of the same names; return it as it is then.

    The folder is written anew beside the old one and takes its place whole.
    """
    manifest = json.loads(bundle.read_bytes(MANIFEST))
    for each in engines:
        entry = {key: value for key, value in asdict(each.entry).items() if value is not None}
        manifest["formats"][each.name] = entry
    with folder_atomically(bundle.path) as beside:
        for file in bundle.checksums:
            (beside / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / file, beside / file)
        for each in engines:
            write_engine(beside, each)
        write_atomically(beside / MANIFEST, json_text(manifest))
        write_checksums(beside)
        open_bundle(beside)  # the reader's rules are the only ones
    return open_bundle(bundle.path)


def write_engine(folder: Path, built: BuiltEngine) -> Path:
    """Write an engine and its description into `folder`; return the engine's path."""
    path = folder / built.entry.file
    write_atomically(path, built.engine.plan)
    write_json(folder / str(built.entry.description), built.description)
    return path


def _built(bundle: Bundle, request: EngineRequest, capability: str | None, timing_cache: Path | None) -> BuiltEngine:
    source = bundle.format(request.source)
    engine = engine_of(
        bundle,
        request.source,
        request.profiles or (bundle.batch_sizes,),
        compute_capability=capability,
        module=request.module,
        workspace_mib=request.workspace_mib,
        timing_cache=timing_cache,
    )
    suffix = "" if source.precision == "fp32" else f"-{source.precision}"
    name = f"{engine.compute_capability or _EVERY}{suffix}"
    entry = FormatFile(
        file=f"model.{name}.engine",
        size_bytes=len(engine.plan),
        precision=source.precision,
        gate=asdict(FP32_GATE) if source.precision == "fp32" and source.gate is None else source.gate,
        source=request.source,
        capability=engine.compute_capability,
    )
    return BuiltEngine(f"{_KIND}-{name}", entry, engine, source.file)
