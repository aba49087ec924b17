"""Parity of a bundle's formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from compress.terminal.console import result_console

if TYPE_CHECKING:
    pass


def print_parity(formats: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(list(formats), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    chosen = any(each["engine"]["chosen"] for each in formats if each["passed"] is not None)
    for name in (
        "format",
        *(["engine"] if chosen else []),
        "rows",
        "max error / std",
        "allowed",
        "same top-1",
        "allowed",
        "accuracy drop",
        "verdict",
    ):
        table.add_column(name, justify="left" if name in ("format", "engine", "verdict") else "right")
    for form in formats:
        if form["passed"] is None:
            table.add_row(form["format"], *[""] * (7 if chosen else 6), "not run")
            continue
        gate, comparison = form["gate"], form["comparison"]
        table.add_row(
            form["format"],
            *([_engine_cell(form["engine"])] if chosen else []),
            f"{form['rows']:,}",
            "not finite" if comparison["max_error_over_std"] is None else f"{comparison['max_error_over_std']:.2e}",
            f"{gate['max_error_over_std']:.0e}",
            f"{100 * comparison['top1_agreement']:.2f} %",
            f"{100 * gate['top1_agreement']:.0f} %",
            f"{comparison['metric_drop_points']:.2f} points",
            "passed" if form["passed"] else "FAILED",
        )
    result_console().print(table)
    for form in formats:
        if why := form.get("not_run"):
            click.echo(f"{form['format']}: not run here: {why}")


def _engine_cell(engine: Mapping[str, Any]) -> str:
    chosen = engine["chosen"].get("provider") or engine["chosen"].get("precision")
    return f"{engine['name']}{f' ({chosen})' if chosen else ''}"
