"""`edgefold compare`: two latency results, or finished runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from compress import choice
from compress.choice import Candidate, by_target
from compress.choice_plot import choice_plot
from compress.latency_results import compare_files
from compress.terminal.devices import print_candidates
from runtime.errors import UsageError
from runtime.files import write_atomically


def compare(names: Sequence[str], runs: Path, *, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    """Compare latency results with the first of them, or runs with each other."""
    files = [name.endswith(".json") for name in names]
    if all(files):
        if csv or plot:
            raise UsageError("--csv and --plot are for runs, and these are latency results", "Leave them out.")
        _compare_files([Path(name) for name in names], as_json)
    elif any(files):
        raise UsageError("runs and .json files cannot be compared with each other", "Name runs, or .json files.")
    else:
        _compare_runs(names, runs, as_json, csv, plot)


def _compare_files(paths: Sequence[Path], as_json: bool) -> None:
    compared = compare_files(paths)
    if as_json:
        click.echo(json.dumps([each.to_json() for each in compared], indent=2))
        return
    for each in compared:
        click.echo(each.ratio.in_words(each.first, each.second))
    if any(each.ratio.one_process for each in compared):
        click.echo("note: a result of one process; how much processes differ is not in the interval", err=True)
    if not all(each.one_machine for each in compared):
        click.echo("note: results of different machines are compared", err=True)


def _compare_runs(names: Sequence[str], runs: Path, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    candidates = [each for name in names for each in choice.candidates_of(_run_folder(name, runs))]
    if not candidates:
        raise UsageError("nothing was measured in these runs", "Add `export:` and `benchmark:` to their recipes.")
    for note in _notes(candidates):
        click.echo(f"note: {note}", err=True)
    if csv:
        write_atomically(csv, choice.to_csv(candidates))
    if plot:
        write_atomically(plot, choice_plot(candidates))
    if as_json:
        click.echo(json.dumps(choice.to_json(candidates), indent=2))
    else:
        print_candidates(candidates)


def _notes(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Say what of several runs is not comparable."""
    if len({each.data for each in candidates if each.data}) > 1:
        yield "these runs are on different data, so that their accuracies say little beside each other"
    for target, here in by_target(candidates).items():
        if any(each.limits != here[0].limits for each in here):
            yield f"{target} had other limits in another run; each file is judged by those of its own"


def _run_folder(name: str, runs: Path) -> Path:
    """Return a run's folder by its path, or by the name of its recipe."""
    if Path(name).is_dir():
        return Path(name)
    if (runs / name).is_dir():
        return runs / name
    from compress.library import find_recipe, recipe_name

    recipe = recipe_name(find_recipe(name))
    if not (runs / recipe).is_dir():
        raise UsageError(f"recipe {recipe} was not run below {runs}", f"Run `edgefold run {name}` first.")
    return runs / recipe
