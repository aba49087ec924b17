"""The `edgefold` command. Imports nothing heavy at module level: `edgefold --help` must not wait for torch."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import click

from compress.commands import export, look, measure, recipe
from runtime.errors import EdgefoldError, MissingExtraError, RunError

EXTRAS = {
    "torch",
    "pydantic",
    "safetensors",
    "filelock",
    "pyarrow",
    "PIL",
    "sklearn",
    "onnx",
    "onnxscript",
    "matplotlib",
    "jinja2",
}


class EdgefoldGroup(click.Group):
    """Prints an EdgefoldError as message and remedy, and ends with its exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take a verb of two words, `export engine`, before the one that its first word is."""
        verb = " ".join(args[:2])
        return (verb, self.commands[verb], args[2:]) if verb in self.commands else super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgefoldError as error:
            _fail(error, ctx.params.get("debug", False))
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in EXTRAS:
                raise
            missing = MissingExtraError(f"{error.name} is not installed", "pip install 'edgefold[train]'")
            _fail(missing, ctx.params.get("debug", False))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f"{error.filename}: " if error.filename else ""
            full = RunError(f"{where}the disk is full", "Free space and run it again; finished stages are kept.")
            _fail(full, ctx.params.get("debug", False))
        except KeyboardInterrupt:
            click.echo("interrupted; `edgefold run` continues where this stopped", err=True)
            sys.exit(130)


def _fail(error: EdgefoldError, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {error.message}", err=True)
    if error.remedy:
        click.echo(error.remedy, err=True)
    sys.exit(error.exit_code)


@click.group(cls=EdgefoldGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="edgefold")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Turn one YAML recipe into a small classifier that is measured on the device it will run on.

    \b
    Start here:
      edgefold run quickstart
    """
    # torch's OpenMP threads spin while they wait, which on a machine with other work takes the cores from those they
    # wait for (a small network's step took 10 to 30 times as long on two busy cores). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


for module in (recipe, export, measure, look):
    for verb in module.VERBS:
        main.add_command(verb)
