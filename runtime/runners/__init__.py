"""Engines: one file each, one line in the table."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.bundle import Bundle
from runtime.errors import EngineError, MissingExtraError, UsageError
from runtime.runners.base import Runner
from runtime.runners.bfloat16 import Bfloat16Runner
from runtime.runners.onnxruntime import OnnxRuntimeRunner
from runtime.runners.packed import PackedRunner
from runtime.runners.tensorrt import TensorRTRunner

# Format of a bundle, or what stands before its first dash -> the engine that runs it. A runner imports its engine when
# it is opened, not before. The fastest comes first.
RUNNERS: Mapping[str, type[Runner]] = {
    "packed": PackedRunner,
    "tensorrt": TensorRTRunner,
    "onnx": OnnxRuntimeRunner,
    # Smaller files. On a CPU without instructions for them they are no faster, so they come last.
    "int8": OnnxRuntimeRunner,
    "fp16": OnnxRuntimeRunner,
    "bf16": Bfloat16Runner,
}
BEST = "best"  # in the place of a format: the fastest one of the bundle that runs on this machine


def open_runner(
    bundle: Bundle, format: str = "onnx", threads: int = 1, *, on_gpu: Mapping[str, bool] | None = None
) -> Runner:
    """Load the model of `format` into its engine: `with open_runner(bundle) as runner: runner.infer(batch)`.

    format: `best` takes the fastest one that runs here; the runner's `notes` say which others do not. on_gpu: options
    of `TensorRTRunner`, for its engines alone.
    Raises UsageError for a format that the bundle or this edgefold lacks, BundleError for an altered or
    unsafe file, MissingExtraError for an engine that is not installed, DeviceError for one whose hardware is not
    here, EngineError for a model that the engine refuses.
    """
    if format == BEST and not on_gpu:
        return _open_best(bundle, threads)
    bundle.format(format)
    kind = _kind(format)
    if kind not in RUNNERS:
        raise UsageError(
            f"{bundle.path}: no engine for format {format!r}; there are engines for {', '.join(RUNNERS)}",
            remedy="Choose one of these with --format, or install a newer edgefold.",
        )
    runner = RUNNERS[kind]
    if on_gpu:
        if not issubclass(runner, TensorRTRunner):
            raise UsageError(
                f"{bundle.path}: CUDA graphs and copies are options of TensorRT engines, and {format!r} is none"
            )
        return runner(bundle, format, threads=threads, **on_gpu)
    return runner(bundle, format, threads=threads)


def _kind(format: str) -> str:
    """Return the key of a format in `RUNNERS`: there may be several engines of a kind, `tensorrt-sm86-fp16`."""
    return format if format in RUNNERS else format.partition("-")[0]


def _open_best(bundle: Bundle, threads: int) -> Runner:
    notes: list[str] = []
    # Of several engines of a kind, which is the fastest only a measurement could say: the smallest goes first.
    by_size = sorted(bundle.formats, key=lambda name: bundle.formats[name].size_bytes)
    formats = [name for kind in RUNNERS for name in by_size if _kind(name) == kind]
    for format in formats:
        try:
            runner = open_runner(bundle, format, threads)
        except (MissingExtraError, EngineError) as error:
            if format == formats[-1]:
                raise
            notes.append(f"{format} does not run here: {error.message}")
            continue
        runner.notes = (*runner.notes, *notes)
        return runner
    raise UsageError(
        f"{bundle.path}: no engine for {', '.join(bundle.formats)}; there are ones for {', '.join(RUNNERS)}"
    )
