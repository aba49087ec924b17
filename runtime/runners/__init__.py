"""Engines: one file each, one line in the table."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.bundle import Bundle
from runtime.errors import EngineError, MissingExtraError, UsageError
from runtime.runners.base import Runner
from runtime.runners.onnxruntime import OnnxRuntimeRunner
from runtime.runners.packed import PackedRunner

# Format of a bundle -> the engine that runs it. A runner imports its engine when it is opened, not before.
# The fastest comes first.
RUNNERS: Mapping[str, type[Runner]] = {
    "packed": PackedRunner,
    "onnx": OnnxRuntimeRunner,
    # Smaller files. On a CPU without instructions for them they are no faster, so they come last.
    "int8": OnnxRuntimeRunner,
    "fp16": OnnxRuntimeRunner,
    "int4": OnnxRuntimeRunner,
    "qonnx": OnnxRuntimeRunner,
}
BEST = "best"  # in the place of a format: the fastest one of the bundle that runs on this machine


def open_runner(bundle: Bundle, format: str = "onnx", threads: int = 1) -> Runner:
    """Load the model of `format` into its engine: `with open_runner(bundle) as runner: runner.infer(batch)`.

    format: `best` takes the fastest one that runs here; the runner's `notes` say which others do not.
    Raises UsageError for a format that the bundle or this edgefold lacks, BundleError for an altered or
    unsafe file, MissingExtraError for an engine that is not installed, EngineError for a model that the
    engine refuses.
    """
    if format == BEST:
        return _open_best(bundle, threads)
    bundle.format(format)
    if format not in RUNNERS:
        raise UsageError(
            f"{bundle.path}: no engine for format {format!r}; there are engines for {', '.join(RUNNERS)}",
            remedy="Choose one of these with --format, or install a newer edgefold.",
        )
    return RUNNERS[format](bundle, format, threads=threads)


def _open_best(bundle: Bundle, threads: int) -> Runner:
    notes: list[str] = []
    formats = [format for format in RUNNERS if format in bundle.formats]
    for format in formats:
        try:
            runner = open_runner(bundle, format, threads)
        except (MissingExtraError, EngineError) as error:
            if format == formats[-1]:
                raise
            notes.append(f"{format} does not run here: {error.message}")
            continue
        runner.notes = tuple(notes)
        return runner
    raise UsageError(
        f"{bundle.path}: no engine for {', '.join(bundle.formats)}; there are ones for {', '.join(RUNNERS)}"
    )
