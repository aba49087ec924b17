"""Options that several verbs share, and the arguments of the device side that they become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from export.opsets import LEAST_OPSET, OPSET

Function = TypeVar("Function", bound=Callable[..., Any])

runs_option = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
    help="Folder for results; finished stages in it are reused.",
)  # fmt: skip
data_option = click.option(
    "--data-root", type=click.Path(path_type=Path), default=None,
    help="Folder with the data sets [default: data.root of the recipe, then $EDGEFOLD_DATA].",
)  # fmt: skip
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quick_option = click.option(
    "--quick",
    is_flag=True,
    help="Measure latency for 3 s instead of 10, and label it so; full results serve too.",
)
checkpoint_option = click.option(
    "--checkpoint-every", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
    help="Least time between training checkpoints.",
)  # fmt: skip


seed_option = click.option(
    "--seed", "seeds", type=int, multiple=True, help="Only this seed of the recipe's; may be repeated."
)
variant_option = click.option(
    "--variant", "variants", multiple=True, metavar="NAME",
    help="Only this row of the recipe's sweep, by label or by number from 1; may be repeated.",
)  # fmt: skip
scale_option = click.option(
    "--scale", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, metavar="FRACTION",
    help="Run this fraction of epochs and rows; results are marked, and published numbers not judged.",
)  # fmt: skip

opset_option = click.option(
    "--opset", type=click.IntRange(LEAST_OPSET, OPSET),
    help="Write ONNX files of this opset, for an engine that is too old for 20; the bundle has a folder of its own.",
)  # fmt: skip


def engine_options(function: Function) -> Function:
    """Add the options that say on what a model runs, for `engine_arguments`."""
    for option in (
        click.option("--precision", metavar="NAME", help="What OpenVINO computes in: fp32 (default) or bf16."),
        click.option(
            "--provider", metavar="NAME",
            help="What ONNX Runtime runs on: cpu (default), cuda, tensorrt, nv-tensorrt-rtx, openvino, xnnpack, "
            "coreml, qnn; refused where it would fall back to the CPU.",
        ),
        click.option(
            "--engine", metavar="NAME",
            help="onnxruntime, openvino, tensorrt or tensorrt_rtx, in the place of the format's own engine; of the "
            "last two an engine is built where it runs, and kept there.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def file_options(function: Function) -> Function:
    """Add the options that describe an ONNX file without a bundle, for `file_arguments`."""
    for option in (
        click.option("--max-size", type=click.IntRange(min=1), metavar="MIB",
                     help="Of an ONNX file: the largest that is read  [default: 2048]"),
        click.option("--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
                     help="Of an ONNX file: sizes that it leaves open, by input or output; may be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


def file_arguments(options: dict[str, Any]) -> list[Any]:
    shapes = [part for shape in options["shapes"] for part in ("--shape", shape)]
    return shapes + (["--max-size", options["max_size"]] if options["max_size"] else [])


def format_arguments(options: dict[str, Any]) -> list[Any]:
    return ["--format", options["format_name"]] if options["format_name"] else []


def engine_given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("engine", "provider", "precision") if options[name] is not None}


def engine_arguments(options: dict[str, Any]) -> list[Any]:
    return [part for name, value in engine_given(options).items() for part in (f"--{name}", value)]


format_option = click.option(
    "--format", "format_name", metavar="NAME",
    help="Which of the bundle's formats, or best: the fastest that runs  [default: onnx, or the target's]",
)  # fmt: skip
target_option = click.option(
    "--target", "targets", multiple=True, metavar="NAME",
    help="Measure on this device of --targets, or local for this machine; may be repeated.",
)  # fmt: skip
targets_option = click.option(
    "--targets", "targets_file", type=click.Path(path_type=Path), default=Path("targets.yaml"), show_default=True,
    help="File that says how the devices are reached.",
)  # fmt: skip


def selection_options(function: Function) -> Function:
    """Add the options that say which of a recipe's runs are meant."""
    for option in (scale_option, variant_option, seed_option):
        function = option(function)
    return function


def run_options(function: Function) -> Function:
    """Add the options that every verb has which may train."""
    for option in (json_option, checkpoint_option, device_option, data_option, runs_option):
        function = option(function)
    return selection_options(function)
