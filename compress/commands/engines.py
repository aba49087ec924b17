"""`edgefold export engine`: engines of a bundle. Imports neither torch nor onnx, for it runs on devices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from compress.units import size
from export.engines import BuiltEngine, add_engines, build_engines, write_engine
from runtime.bundle import Bundle, open_bundle
from runtime.errors import UsageError
from runtime.manifest import EngineRequest


@dataclass(frozen=True, eq=False)
class Written:
    """An engine and where it lies."""

    path: Path
    built: BuiltEngine


def build(
    path: Path,
    *,
    formats: Sequence[str],
    capabilities: Sequence[str],
    module: str | None,
    profiles: Sequence[str],
    workspace: int | None,
    timing_cache: Path | None,
    output: Path | None,
) -> list[Written]:
    """Build engines of the bundle at `path`, into it or into `output`.

    Raises UsageError for what does not fit the bundle or cannot be written, and what building raises.
    """
    bundle = open_bundle(path)
    asked = (tuple(map(str.lower, capabilities)), module, workspace, tuple(map(_batch_sizes, profiles)))
    requests = [EngineRequest(name, *asked) for name in formats] or _wanted(bundle, *asked)
    engines = build_engines(bundle, requests, timing_cache=timing_cache, notify=lambda line: click.echo(line, err=True))
    try:
        if output is not None:
            return [Written(write_engine(output, each), each) for each in engines]
        bundle = add_engines(bundle, engines)
    except OSError as error:
        remedy = "Give a folder that can be written to: --output FOLDER."
        raise UsageError(f"{output or path}: the engine cannot be written: {error}", remedy) from error
    return [Written(bundle.file_of(each.name), each) for each in engines]


def _wanted(
    bundle: Bundle,
    capabilities: tuple[str, ...],
    module: str | None,
    workspace: int | None,
    profiles: tuple[tuple[int, ...], ...],
) -> list[EngineRequest]:
    """Return what the recipe wanted, missing ones first, with what was asked for here in the place of its options."""
    wanted = bundle.missing_engines or bundle.engines or (EngineRequest(),)
    return [
        EngineRequest(
            each.source,
            capabilities or each.capabilities,
            module or each.module,
            workspace or each.workspace_mib,
            profiles or each.profiles,
        )
        for each in wanted
    ]


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(each) for each in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--profile {text}: expected batch sizes with commas between them, as in 1,8,64")
    return sizes


def print_engines(written: Sequence[Written], as_json: bool) -> None:
    """Print where each engine lies, what it is for, and in which types its layers compute."""
    if as_json:
        documents = [{"format": each.built.name, "file": str(each.path), **each.built.description} for each in written]
        click.echo(json.dumps(documents, indent=2))
        return
    for each in written:
        engine = each.built.engine
        target = engine.device or engine.compute_capability or "every GPU that TensorRT-RTX serves"
        profiles = ", ".join("-".join(map(str, profile.batch_sizes)) for profile in engine.profiles)
        click.echo(f"{each.built.name}: {each.path}, {size(len(engine.plan))}")
        click.echo(f"  {engine.module} {engine.version} for {target}, batches {profiles}")
        click.echo(f"  {_types(each.built)}")


def _types(built: BuiltEngine) -> str:
    types = Counter(layer.inputs[0] for layer in built.engine.layers if layer.inputs)
    counted = ", ".join(f"{count} of {name}" for name, count in types.most_common())
    return f"layers by the type of their input: {counted}" if counted else "its layers are not known"
