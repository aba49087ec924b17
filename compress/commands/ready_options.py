"""Options of `edgefold export --weights`. Imports nothing heavy: every `edgefold --help` reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"type": click.Path(path_type=Path), "help": "Weights trained elsewhere: .safetensors, or torch's."},
    "model": {"metavar": "KIND", "help": "Their model, as in a recipe: wrn:16-2, or 'wrn: {depth: 16}'."},
    "input": {"metavar": "SIZES", "help": "Sizes of a raw image in the order of the layout: 32x32x3."},
    "layout": {"type": click.Choice(["NHWC", "NCHW"]), "default": "NHWC", "help": "Of the raw images [default: NHWC]."},
    "mean": {"metavar": "NUMBERS", "help": "Per channel, of pixels from 0 to 1: 0.49,0.48,0.45 [default: 0]."},
    "std": {"metavar": "NUMBERS", "help": "The same for deviations [default: 1]."},
    "classes": {"type": click.IntRange(min=1), "help": "How many [default: lines of --labels]."},
    "subclasses": {"type": click.IntRange(min=1), "default": 1, "help": "Of each class, class-major [default: 1]."},
    "labels": {"type": click.Path(path_type=Path), "help": "Names of the classes, one a line."},
    "data": {"type": click.Path(path_type=Path), "help": ".npz with inputs and labels that all forms are compared on."},
    "train_data": {"type": click.Path(path_type=Path), "help": "To calibrate INT8 with [default: half of --data]."},
    "formats": {"default": "onnx", "help": "As in a recipe: onnx,int8 or 'onnx, {int8: {rows: 256}}' [default: onnx]."},
    "batch_sizes": {"default": "1,8,64", "help": "That the forms are verified at [default: 1,8,64]."},
    "name": {"help": "Of the bundle [default: name of the weights' file]."},
    "output": {"type": click.Path(path_type=Path), "help": "The bundle folder, replaced where it is there."},
}  # fmt: skip
_NEEDED = ("model", "input", "data", "output")


def ready_student_options(function: Function) -> Function:
    """Add the options of a student that was trained elsewhere."""
    for name, settings in reversed(_OPTIONS.items()):
        function = click.option(f"--{name.replace('_', '-')}", **settings)(function)
    return function


def export_ready(recipe: str | None, as_json: bool, options: dict[str, Any]) -> bool:
    """Take these options out of `options`; export where `--weights` is given, and return whether it was.

    Raises UsageError for options that do not go together, GateError where a form is not the student.
    """
    given = {name: options.pop(name) for name in _OPTIONS}
    if given["weights"] is None:
        defaults = {name: settings.get("default") for name, settings in _OPTIONS.items()}
        if alone := [name for name, value in given.items() if value != defaults[name]]:
            raise UsageError(
                f"--{alone[0].replace('_', '-')} goes with --weights", "Add --weights FILE, or name a recipe."
            )
        if recipe is None:
            raise UsageError("nothing to export", "Name a recipe, or give --weights FILE --model KIND.")
        return False
    if recipe is not None:
        raise UsageError(f"--weights takes the place of the recipe, and '{recipe}' was named too", "Leave one out.")
    if missing := [name for name in _NEEDED if given[name] is None]:
        raise UsageError(f"--weights needs --{', --'.join(missing)} too", "edgefold export --help shows an example.")
    from compress.ready_student import ready_student, write_ready_bundle
    from compress.terminal.console import Narrator
    from compress.terminal.parity import print_parity
    from export.verify import require_parity

    given["opset"] = options["opset"]
    student = ready_student(**{name: value for name, value in given.items() if name != "output"})
    narrator = Narrator()
    reports = write_ready_bundle(student, given["output"], narrator)
    narrator.close()
    documents = [report.to_json() for report in reports]
    if as_json:
        click.echo(json.dumps({"bundle": str(given["output"]), "formats": documents}, indent=2))
    else:
        print_parity(documents, False)
        click.echo(f"\nbundle  {given['output']}\nnext    edgefold bench {given['output']}")
    for report in reports:
        require_parity(report)
    return True
