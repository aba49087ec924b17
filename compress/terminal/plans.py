"""The stages of a recipe before they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from compress.terminal.console import progress_console, result_console
from compress.units import count

if TYPE_CHECKING:
    from compress.plan import Plan, StagePlan


def announce(plans: Sequence[Plan], runs: Path) -> None:
    """Show the plan before work begins, on stderr."""
    progress_console().print(_plan_table(plans, runs))


def print_plans(plans: Sequence[Plan], runs: Path, as_json: bool) -> None:
    if as_json:
        stages = [_plan_json(plan.variant.folder, stage, runs) for plan in plans for stage in plan.stages]
        click.echo(json.dumps({"recipe": plans[0].name, "stages": stages}, indent=2))
    else:
        console = result_console()
        console.print(_plan_table(plans, runs))
        for note in dict.fromkeys(note for plan in plans for stage in plan.stages for note in stage.profile.notes):
            console.print(f"\nnote: {note}", soft_wrap=True)


def _plan_json(variant: str, stage: StagePlan, runs: Path) -> dict[str, Any]:
    return {
        "variant": variant,
        "stage": stage.name,
        "key": stage.key,
        "state": _state(stage, runs),
        "parameters": stage.parameters,
        "profile": stage.profile.to_json(),
        "resolved": dict(stage.resolved),
    }


def _plan_table(plans: Sequence[Plan], runs: Path) -> Table:
    first = plans[0].variant
    length = "" if first.scale == 1 else f", scaled to {first.scale:g} of its epochs and rows"
    table = Table(title=f"{first.name}: plan{length}", title_justify="left", box=None, pad_edge=False)
    several = len(plans) > 1
    for name in [
        *(["run"] if several else []),
        "stage",
        "model",
        "parameters",
        "MACs",
        "logits",
        "learns from",
        "epochs",
        "state",
    ]:
        table.add_column(name, justify="right" if name in ("parameters", "MACs", "epochs") else "left")
    for plan in plans:
        for stage in plan.stages:
            heads = stage.heads
            logits = f"{heads.classes}" if heads.subclasses == 1 else f"{heads.classes}×{heads.subclasses}"
            terms = " + ".join(term.kind for term in stage.spec.objective)
            source = f"{terms} of {' + '.join(stage.teacher_names)}" if stage.taught_by else terms
            cells = [
                stage.name,
                stage.spec.model_name,
                f"{stage.parameters:,}",
                count(stage.profile.total_macs),
                logits,
                source,
                str(stage.train.epochs_run),
            ]
            table.add_row(*([plan.variant.run_name] if several else []), *cells, _state(stage, runs))
    return table


def _state(stage: StagePlan, runs: Path) -> str:
    folder = runs / "stages" / stage.key
    if (folder / "stage.json").exists():
        return "reused"
    return "to continue" if any((folder / "checkpoint").glob("*.json")) else "to train"
