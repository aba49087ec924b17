"""Engines: one file each, one line in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runtime.buildable import require_buildable
from runtime.bundle import Bundle
from runtime.bundle_engine import is_source
from runtime.errors import EngineError, MissingExtraError, UsageError
from runtime.runners.base import Runner
from runtime.runners.bfloat16 import Bfloat16Runner
from runtime.runners.built_here import BuiltHereRunner
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.runners.onnxruntime import OnnxRuntimeRunner
from runtime.runners.openvino import OpenVinoRunner
from runtime.runners.packed import PackedRunner
from runtime.runners.qonnx import QonnxRunner
from runtime.runners.tensorrt import TensorRTRunner

# Format of a bundle, or what stands before its first dash -> the engine that runs it. A runner imports its engine when
# it is opened, not before. The fastest comes first.
RUNNERS: Mapping[str, type[Runner]] = {
    "packed": PackedRunner,
    "tensorrt": TensorRTRunner,
    "onnx": OnnxRuntimeRunner,
    # These round, and not every processor is faster with them: `int8` and `fp16` are for other engines.
    "int8_cpu": OnnxRuntimeRunner,
    "int8": OnnxRuntimeRunner,
    "fp16": OnnxRuntimeRunner,
    "bf16": Bfloat16Runner,
    # Of quantised students, whose `onnx` is as fast or faster.
    "int4": OnnxRuntimeRunner,
    "qonnx": QonnxRunner,
}
# Other engines by name, for the formats that are ONNX of standard operators.
OTHER_ENGINES: Mapping[str, type[Runner]] = {
    "openvino": OpenVinoRunner,
    "tensorrt": BuiltHereRunner,
    "tensorrt_rtx": BuiltHereRunner,
}
_BUILT_OF = ("onnx", "fp16", "bf16", "int8")  # what TensorRT builds engines of
BEST = "best"  # in the place of a format: the fastest one of the bundle that runs on this machine


def runs_on(format: str, choice: EngineChoice) -> bool:
    """Return whether there is a runner for `format` on what was chosen."""
    own = RUNNERS.get(_kind(format))
    if own is None:
        return False
    if choice.builds:
        return _kind(format) in _BUILT_OF
    standard = own in (OnnxRuntimeRunner, Bfloat16Runner)
    if choice.engine in OTHER_ENGINES or choice.provider not in (None, "cpu"):
        return standard
    return choice.engine in (None, own.engine) and (choice.provider is None or issubclass(own, OnnxRuntimeRunner))


def open_runner(
    bundle: Bundle,
    format: str = "onnx",
    threads: int = 1,
    choice: EngineChoice = DEFAULT,
    *,
    on_gpu: Mapping[str, bool] | None = None,
    batch: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Runner:
    """Load the model of `format` into its engine: `with open_runner(bundle) as runner: runner.infer(batch)`.

    format: `best` takes the fastest one that runs here; the runner's `notes` say which others do not.
    choice: another engine than the format's own, or another part of the machine than the CPU. on_gpu: options of
    `TensorRTRunner`, for its engines alone. batch: rows of a call, for which an engine that is built here is tuned (1
    if left out); say: is told that one is built.
    Raises UsageError for a format that the bundle, the engine or this edgefold lacks, BundleError for an altered or
    unsafe file, MissingExtraError for an engine that is not installed, DeviceError for one whose hardware is not
    here, EngineError for a model that the engine refuses.
    """
    if format == BEST and not on_gpu:
        return _open_best(bundle, threads, choice, batch, say)
    _require_runner(bundle, format, choice)
    runner = OTHER_ENGINES.get(choice.engine or "", RUNNERS[_kind(format)])
    if on_gpu and not issubclass(runner, TensorRTRunner):
        raise UsageError(
            f"{bundle.path}: CUDA graphs and copies are options of TensorRT engines, and {format!r} is none"
        )
    options: dict[str, Any] = dict(on_gpu or {})
    if issubclass(runner, BuiltHereRunner):
        options |= {"batch": batch, "say": say}
    return runner(bundle, format, threads=threads, choice=choice, **options)


def _require_runner(bundle: Bundle, format: str, choice: EngineChoice) -> None:
    """Raise, with the reason and what runs instead, where nothing runs a format on what was chosen."""
    bundle.format(format)
    kind = _kind(format)
    if kind not in RUNNERS:
        raise UsageError(
            f"{bundle.path}: no engine for format {format!r}; there are engines for {', '.join(RUNNERS)}",
            remedy="Choose one of these with --format, or install a newer edgefold.",
        )
    if runs_on(format, choice):
        return
    others = [each for each in bundle.formats if runs_on(each, choice)]
    remedy = f"Choose --format {' or '.join(others)}, or leave the engine out." if others else ""
    if choice.builds and not is_source(bundle, format):
        raise UsageError(f"{bundle.path}: {format!r} is an engine, and {choice.engine} builds one of ONNX", remedy)
    if choice.builds:
        require_buildable(bundle.read_bytes(bundle.format(format).file), origin=str(bundle.file_of(format)))
    wanted = choice.label or choice.engine or choice.provider
    where = "" if issubclass(RUNNERS[kind], TensorRTRunner) else " on the CPU"
    raise UsageError(
        f"{bundle.path}: format {format!r} does not run on {wanted}; it is for {RUNNERS[kind].engine}{where}", remedy
    )


def _kind(format: str) -> str:
    """Return the key of a format in `RUNNERS`: there may be several engines of a kind, `tensorrt-sm86-fp16`."""
    return format if format in RUNNERS else format.partition("-")[0]


def _open_best(
    bundle: Bundle, threads: int, choice: EngineChoice, batch: int | None, say: Callable[[str], None]
) -> Runner:
    notes: list[str] = []
    # Of several engines of a kind, which is the fastest only a measurement could say: the smallest goes first.
    by_size = sorted(bundle.formats, key=lambda name: bundle.formats[name].size_bytes)
    formats = [name for kind in RUNNERS for name in by_size if _kind(name) == kind and runs_on(name, choice)]
    for format in formats:
        try:
            runner = open_runner(bundle, format, threads, choice, batch=batch, say=say)
        except (MissingExtraError, EngineError) as error:
            if format == formats[-1]:
                raise
            notes.append(f"{format} does not run here: {error.message}")
            continue
        runner.notes = (*notes, *runner.notes)
        return runner
    raise UsageError(
        f"{bundle.path}: no engine for {', '.join(bundle.formats)}; there are ones for {', '.join(RUNNERS)}"
    )
