"""Checked recipes, data sets, what a recipe can name, and what a machine can run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from compress.terminal.console import result_console
from compress.units import size

if TYPE_CHECKING:
    pass


def print_check(results: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(list(results), indent=2))
        return
    for result in results:
        for warning in result["warnings"]:
            click.echo(f"warning: {result['recipe']}: {warning}", err=True)
        if result["error"] is None:
            click.echo(
                f"{result['recipe']}: ok, {result['stages']} stages, {result['runs']} run{'s'[: result['runs'] != 1]}"
            )


def print_data_check(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for form in found["formats"]:
        there = "complete" if form["complete"] else "incomplete" if form["files"] else "not there"
        rows = ", ".join(f"{split} {count:,} rows" for split, count in form["rows"].items())
        click.echo(f"{form['form']}: {there}" + (f", {rows}" if rows else ""))
        for file in form["files"]:
            click.echo(f"  {file['path']}   {size(file['bytes'])}")
        for line in (*(f"missing: {names}" for names in form["missing"]), *form["problems"]):
            click.echo(f"  {line}")
    if found["formats"]:
        click.echo(f"authors: {found['origin']}")
        click.echo(f"{found['name']} is read from: {found['reads'] or 'nothing'}")
    else:
        click.echo(f"{found['name']} needs no files: it comes with {found['origin']}")


def print_catalogue(sections: Mapping[str, Sequence[Mapping[str, str]]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(sections, indent=2))
        return
    console = result_console()
    for name, rows in sections.items():
        table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for row in rows:
            table.add_row(row["name"], row["summary"])
            if row.get("options"):
                table.add_row("", Text(row["options"], style="dim"))
        console.print(table)
        console.print()


def print_findings(findings: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(list(findings), indent=2))
        return
    result_console().print(findings_table(findings))


def findings_table(findings: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "what", "found", "to get it"):
        table.add_column(
            name if name != "to get it" or any(each["remedy"] for each in findings) else "", no_wrap=name != "found"
        )
    for finding in findings:
        mark = Text("ok", style="green") if finding["usable"] else Text("--", style="yellow")
        table.add_row(mark, finding["what"], finding["found"], "" if finding["usable"] else finding["remedy"])
    return table
