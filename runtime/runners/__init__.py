"""Engines: one file each, one line in the table."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.bundle import Bundle
from runtime.errors import UsageError
from runtime.runners.base import Runner
from runtime.runners.onnxruntime import OnnxRuntimeRunner

# Format of a bundle -> the engine that runs it. A runner imports its engine when it is opened, not before.
RUNNERS: Mapping[str, type[Runner]] = {
    "onnx": OnnxRuntimeRunner,
}


def open_runner(bundle: Bundle, format: str = "onnx", threads: int = 1) -> Runner:
    """Load the model of `format` into its engine: `with open_runner(bundle) as runner: runner.infer(batch)`.

    Raises UsageError for a format that the bundle or this edgefold lacks, BundleError for an altered or
    unsafe file, MissingExtraError for an engine that is not installed, EngineError for a model that the
    engine refuses.
    """
    bundle.format(format)
    if format not in RUNNERS:
        raise UsageError(
            f"{bundle.path}: no engine for format {format!r}; there are engines for {', '.join(RUNNERS)}",
            remedy="Choose one of these with --format, or install a newer edgefold.",
        )
    return RUNNERS[format](bundle, format, threads=threads)
