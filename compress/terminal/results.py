"""What a recipe's runs came to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from compress.terminal.console import result_console
from compress.units import milliseconds, size

if TYPE_CHECKING:
    from compress.analysis.command import VariantAnalysis
    from compress.pipeline import Outcome
    from compress.summary import Row


def print_outcome(outcome: Outcome, recipe: str, until: str, as_json: bool) -> None:
    """Show the result table, where the report lies, and what to type next; `recipe` is as the user named it."""
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2))
        return
    from compress.summary import device_notes

    console = result_console()
    console.print(result_table(outcome.rows))
    for row in outcome.rows:
        if row.not_run and not row.elsewhere:
            console.print(f"{row.name}: not run here: {row.not_run}", soft_wrap=True, highlight=False)
    for line in device_notes(outcome.rows):
        console.print(line, soft_wrap=True, highlight=False)
    if any(row.elsewhere for row in outcome.rows):
        from compress.choice import candidates_from, sentences

        for sentence in sentences(candidates_from(outcome.folder.name, [row.to_json() for row in outcome.rows])):
            console.print(sentence, soft_wrap=True, highlight=False)
    for row in outcome.rows:
        if row.quantization and any(layer["damage"] is not None for layer in row.quantization["layers"]):
            console.print()
            console.print(_layers_table(row.name, row.quantization))
    if outcome.scale != 1:
        console.print(f"\nscaled to {outcome.scale:g} of the recipe's epochs and rows", soft_wrap=True)
    if outcome.report is not None:
        console.print(f"\nreport  {outcome.report}", soft_wrap=True)
    bundles = sorted(outcome.folder.rglob("bundle/manifest.json"))
    if until == "train":
        console.print(f"next    edgefold run {recipe}", soft_wrap=True)
    elif bundles:
        console.print(f"next    edgefold bench {bundles[0].parent} --threads 2", soft_wrap=True)


def result_table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    expected = any(row.expectation for row in rows)
    several = any(row.variant for row in rows)
    devices = any(row.elsewhere for row in rows)
    columns = [
        *(["variant"] if several else []),
        "",
        *(["device"] if devices else []),
        "parameters",
        "test accuracy",
        "95 % interval",
        "agrees with teacher",
    ]
    columns += ["size", "p50", "p90", "parity", *(["limits"] if devices else [])]
    columns += ["published", "verdict"] if expected else []
    left = ("", "variant", "device", "parity", "limits", "verdict")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        name, *cells = _cells(row)
        table.add_row(
            *([row.variant] if several else []),
            name,
            *([row.target or ""] if devices else []),
            *cells,
            *([_limits_cell(row)] if devices else []),
            *(_expectation_cells(row) if expected else []),
        )
    return table


def _limits_cell(row: Row) -> str:
    if not row.limits or row.not_run:
        return ""
    return "MISSED" if row.limits_missed else "held"


def _layers_table(name: str, quantization: Mapping[str, Any]) -> Table:
    """Return the layers of an INT8 file, by the damage that each does alone."""
    from compress.summary import layers_by_damage

    before, after = (quantization[key]["max_error_over_std"] for key in ("all_int8", "result"))
    change = " → ".join("not finite" if error is None else f"{error:.2f}" for error in (before, after))
    title = f"{name}: largest error / std {change}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column, justify in (("layer", "left"), ("weights", "right"), ("damage alone", "right"), ("", "left")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for layer in layers_by_damage(quantization):
        damage = "" if layer["damage"] is None else f"{layer['damage']:.3f}"
        kept = f"float, by the {layer['float_by']}" if layer["float_by"] else "int8"
        table.add_row(layer["name"], f"{layer['weights']:,}", damage, kept)
    return table


def _cells(row: Row) -> list[str]:
    spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
    return [
        row.name,
        f"{row.parameters:,}",
        "" if row.not_run else f"{100 * row.mean:.2f}{spread} %",
        "" if row.not_run else f"{100 * row.low:.2f} – {100 * row.high:.2f}",
        "" if row.not_run or row.agreement_with_teacher is None else f"{100 * row.agreement_with_teacher:.2f} %",
        size(row.size_bytes) if row.size_bytes else "",
        milliseconds(row.p50_ms) + row.latency_note,
        milliseconds(row.p90_ms),
        row.parity or "",
    ]


def _expectation_cells(row: Row) -> list[str]:
    expectation = row.expectation
    if expectation is None:
        return ["", ""]
    verdict = {True: "met", False: "MISSED", None: "not judged"}[expectation.passed]
    metric = expectation.metric.removeprefix("test ")
    spread = "" if expectation.published_deviation is None else f" ± {expectation.published_deviation:.2f}"
    return [f"{metric} {expectation.published:.2f}{spread}", f"ours {expectation.ours:.2f}, {verdict}"]


def print_analyses(analyses: Sequence[VariantAnalysis], as_json: bool) -> None:
    """Show a table a variant, a line a measure and a column a stage, and where the files lie."""
    if as_json:
        click.echo(json.dumps([analysis.to_json() for analysis in analyses], indent=2))
        return
    console = result_console()
    for analysis in analyses:
        console.print(_analysis_table(analysis))
        for path in analysis.documents:
            console.print(f"\nanalysis  {path}", soft_wrap=True)


def _analysis_table(analysis: VariantAnalysis) -> Table:
    title = analysis.variant or None
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, justify in (("", "left"), *((stage, "right") for stage in analysis.stages), ("", "left"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    group = ""
    for line in analysis.lines:
        if line.group != group:
            group = line.group
            table.add_row(Text(group, style="bold"))
        table.add_row(f"  {line.metric.label}", *line.cells(), line.metric.unit, Text(line.metric.source, style="dim"))
    return table
