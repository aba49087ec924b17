"""`edgefold bench`, `accuracy` and `doctor` with `--target`: on the devices of `targets.yaml`, several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from compress.engine_options import in_place
from compress.on_target import accuracy_on_target, bench_on_target, doctor_on_target, missed_limits, on_all
from compress.targets import Target, find_target
from compress.terminal.devices import print_target_accuracies, print_target_benches, print_target_findings
from runtime.bundle import open_bundle
from runtime.errors import EdgefoldError, GateError, MissingExtraError
from runtime.files import check_output, write_json

Results = Mapping[str, Mapping[str, Any]]  # by target and format


def bench(
    bundle: Path,
    names: Sequence[str],
    file: Path,
    *,
    formats: Sequence[str],
    overrides: Mapping[str, Any],
    options: Sequence[object],
    quick: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure latency. Raises GateError where a target's limit is missed, after everything was printed."""
    check_output(output)
    opened, targets = open_bundle(bundle), _targets(names, file, overrides)

    def work(name: str, target: Target) -> dict[str, dict[str, Any]]:
        return bench_on_target(name, target, opened, formats=formats, options=options, quick=quick, notify=_notify)

    results, errors = _split(on_all(targets, work))
    missed = {
        (name, form): missed_limits(targets[name].limits.without("accuracy_drop_points"), result, None)
        for name, by_format in results.items()
        for form, result in by_format.items()
    }
    if results:
        print_target_benches(results, missed, as_json)
    _finish(results, errors, output)
    lines = [f"target {name}, {form}: {why}" for (name, form), reasons in missed.items() for why in reasons]
    if lines:
        raise GateError("\n".join(lines), f"The limits are those of {file}.")


def accuracy(
    bundle: Path,
    names: Sequence[str],
    file: Path,
    *,
    formats: Sequence[str],
    overrides: Mapping[str, Any],
    rows: Path | None,
    limit: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Evaluate the labelled rows of an .npz file, else the bundle's samples."""
    check_output(output)
    opened, targets = open_bundle(bundle), _targets(names, file, overrides)

    def work(name: str, target: Target) -> dict[str, dict[str, Any]]:
        return accuracy_on_target(name, target, opened, rows, formats=formats, limit=limit, notify=_notify)

    results, errors = _split(on_all(targets, work))
    if results:
        print_target_accuracies(results, as_json)
    _finish(results, errors, output)


def doctor(names: Sequence[str], file: Path, *, bundle: Path | None, as_json: bool) -> None:
    """Show what devices can run. Raises MissingExtraError where one lacks what every measurement needs."""
    opened, targets = open_bundle(bundle) if bundle else None, _targets(names, file, {})

    def work(name: str, target: Target) -> list[dict[str, Any]]:
        return doctor_on_target(name, target, opened, notify=_notify)

    results, errors = _split(on_all(targets, work))
    if results:
        print_target_findings(results, as_json)
    _finish(results, errors, None)
    lacking = {name: _lacking(found) for name, found in results.items()}
    missing = [f"target {name} lacks {', '.join(each)}" for name, each in lacking.items() if each]
    if missing:
        raise MissingExtraError("\n".join(missing), "The commands that install it stand below each table.")


def _lacking(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    return [each["what"] for each in findings if each["needed"] and not each["usable"]]


def _targets(names: Sequence[str], file: Path, overrides: Mapping[str, Any]) -> dict[str, Target]:
    """Return targets with what the command line gives in the place of their own options."""
    targets = {name: find_target(name, file).model_copy(update=in_place(overrides)) for name in names}
    for each in targets.values():
        _ = each.choice  # refuses what does not go together
    return targets


def _split(outcomes: Mapping[str, Any]) -> tuple[dict[str, Any], list[EdgefoldError]]:
    results = {name: each for name, each in outcomes.items() if not isinstance(each, EdgefoldError)}
    return results, [each for each in outcomes.values() if isinstance(each, EdgefoldError)]


def _finish(results: Results, errors: Sequence[EdgefoldError], output: Path | None) -> None:
    """Write what came; then raise the first error, naming the others, so that nothing measured is lost by it."""
    failures = list(errors)
    if output is not None and results:
        try:
            write_json(output, results)
            _notify(f"wrote {output}")
        except EdgefoldError as error:
            failures.append(error)
    if failures:
        first, *others = failures
        for each in others:
            _notify(f"error: {each}")
        raise first


def _notify(line: str) -> None:
    click.echo(line, err=True)
