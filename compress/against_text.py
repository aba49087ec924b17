"""What `edgefold verify --against` found, in a few sentences and a table."""

from __future__ import annotations

import json

import click
import numpy as np
from rich.table import Table
from rich.text import Text

from compress.against import Verdict
from compress.terminal.console import result_console
from export.bisect import Departure
from runtime.errors import GateError

SHOWN = 12  # departures along the way


def require_agreement(verdict: Verdict) -> None:
    """Raise GateError, with what was found, where the outputs depart beyond the gate."""
    if not verdict.comparison.passed:
        raise GateError(in_words(verdict))


def in_words(verdict: Verdict) -> str:
    """Return what was found in a few sentences: the outputs, the first node, what leads there, and how it differs."""
    found, gate = verdict.bisection, verdict.gate
    error = verdict.comparison.max_error_over_std
    came = "is not finite" if error is None else f"differs by up to {error:.2e} of its standard deviation"
    head = (
        f"{verdict.side.name} beside {verdict.reference.name} on {len(found.outputs):,} rows ({verdict.origin}): "
        f"the output {came}, allowed {gate.max_error_over_std:g}"
    )
    lines = [head, *(f"  {reason}" for reason in verdict.comparison.reasons)]
    if found.first is None:
        if not verdict.comparison.passed:
            lines.append(_nothing_found(verdict))
        return "\n".join(lines)
    first = found.first
    departs = "has another shape" if first.shape != first.reference_shape else f"departs by {_amount(first.error)}"
    lines.append(
        f"The first node that departs is {first.operator} '{first.value}', {first.node + 1} of {found.nodes}: "
        f"its output {departs} (tolerance {found.tolerance:g})."
    )
    if first.how != "name":
        lines.append(f"It stands for '{first.reference}' of the reference, found by its {first.how}.")
    if found.inputs:
        worst = max(found.inputs, key=lambda each: each.error)
        lines.append(f"What it reads differs by {_amount(worst.error)} at most ('{worst.value}').")
    if found.between:
        lines.append(f"Before it stand nodes that the reference lacks: {', '.join(found.between)}.")
    lines += [f"{'It differs' if not i else 'And'}: {each}." for i, each in enumerate(found.differences)]
    return "\n".join(lines)


def print_verdict(verdict: Verdict, as_json: bool) -> None:
    """Show what was found, and the largest departures along the way in the order of the graph."""
    if as_json:
        click.echo(json.dumps({**verdict.to_json(), "message": in_words(verdict)}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("node", "operator", "value", "stands for", "shape", "max error / std", "rms error / std", ""):
        table.add_column(name, justify="right" if name in ("node",) or "error" in name else "left", no_wrap=True)
    for each in verdict.bisection.largest(SHOWN):
        mark = "FIRST" if each is verdict.bisection.first else "departs" if each.departs else ""
        table.add_row(*_cells(each), Text(mark, style="red" if mark else ""))
    console = result_console()
    console.print(table)
    if verdict.comparison.passed:
        console.print(f"\n{in_words(verdict)}\npassed", soft_wrap=True)


def _nothing_found(verdict: Verdict) -> str:
    found, error = verdict.bisection, verdict.comparison.max_error_over_std
    if found.written_agree and (error is None or error > found.tolerance):
        return "As their nodes say, both agree; what departs is what the engine makes of one to run it fast."
    return f"No value on the way departs by more than {found.tolerance:g}; a lower --tolerance shows where it begins."


def _cells(each: Departure) -> tuple[str, ...]:
    same = each.shape == each.reference_shape
    shape = str(list(each.shape)) if same else f"{list(each.shape)} not {list(each.reference_shape)}"
    other = "" if each.reference == each.value else each.reference
    errors = (_number(each.error), _number(each.rms_error)) if same else ("shape", "")
    return (str(each.node + 1), each.operator, each.value, other, shape, *errors)


def _number(error: float) -> str:
    return f"{error:.2e}" if np.isfinite(error) else "not finite"


def _amount(error: float) -> str:
    return f"{error:.2e} of its standard deviation" if np.isfinite(error) else "values that are not finite"
