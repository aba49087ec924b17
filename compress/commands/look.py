"""Verbs that only look: inspect, list, doctor, data check."""

from __future__ import annotations

from pathlib import Path

import click

from compress.commands.bundles import bundle_of, device_side
from compress.commands.options import data_option, json_option, runs_option, target_option, targets_option
from runtime.errors import DataError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what an exported file is, what made it, and what it holds; compare what has a checksum with it.

    FILE is a bundle's folder, any .onnx file, an engine with its .json beside it, or a stage's folder.

    \b
    Example:
      edgefold inspect runs/quickstart/bundle/model.onnx
    """
    device_side("inspect", file, [], None, as_json)


@click.command(name="list")
@click.argument("what", type=click.Choice(["objectives", "models", "datasets", "recipes"]), required=False)
@json_option
def list_(what: str | None, as_json: bool) -> None:
    """List what a recipe can name: objectives, models, data sets, and the recipes that come along.

    `edgefold list recipes` also says what each needs and costs, in multiply-accumulates of all training steps.

    \b
    Example:
      edgefold list objectives
    """
    from compress.catalogue import catalogue, recipes_with_cost
    from compress.terminal.lists import print_catalogue

    if what == "recipes":
        sections = {what: recipes_with_cost()}
    else:
        sections = {name: rows for name, rows in catalogue().items() if what in (None, name)}
    print_catalogue(sections, as_json)


@click.command()
@target_option
@targets_option
@click.option("--bundle", help="Which of its formats the engine is too old for, of the device or else of this machine.")
@runs_option
@json_option
def doctor(targets: tuple[str, ...], targets_file: Path, bundle: str | None, runs: Path, as_json: bool) -> None:
    """Show what is installed, which engines and devices are usable here, and what to install for the rest.

    With --target, or --bundle, what a device can measure; exit code 2 where it lacks what every measurement needs.

    \b
    Example:
      edgefold doctor
      edgefold doctor --bundle quickstart
      edgefold doctor --target pi4 --bundle quickstart
    """
    if targets or bundle:
        from compress.commands import targets as on_targets
        from compress.targets import LOCAL

        folder = bundle_of(bundle, runs) if bundle else None
        on_targets.doctor(targets or (LOCAL,), targets_file, bundle=folder, as_json=as_json)
        return
    from compress.doctor import examine
    from compress.terminal.lists import print_findings

    print_findings(examine(), as_json)


@click.group()
def data() -> None:
    """Look after the data sets that a recipe names.

    \b
    Example:
      edgefold data check mnist
    """


@data.command(name="check")
@click.argument("name")
@data_option
@json_option
def data_check(name: str, data_root: Path | None, as_json: bool) -> None:
    """Show in which formats a named data set is looked for, what is there, and what is missing; exit 2 where it is.

    \b
    Example:
      edgefold data check mnist --data-root ~/data
      edgefold data check 'amazon_reviews: {labels: polarity}'
    """
    from compress.data_check import check_data
    from compress.terminal.lists import print_data_check

    found = check_data(name, data_root)
    print_data_check(found, as_json)
    if not found["complete"]:
        raise DataError(f"{name} is not complete in {found['folder']}", f"Its authors publish it at {found['origin']}")


VERBS = (inspect, list_, doctor, data)
