"""Runs a recipe: every variant through its steps, then the report. Gates are judged at the end, with all files kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.artifact import locked
from compress.device_run import require_devices
from compress.model_card import run_card
from compress.plan import Plan, plan
from compress.progress import Notify
from compress.report import write_report
from compress.stages import Settings
from compress.summary import Row, summarise
from compress.variant_run import Step, VariantRun
from compress.variants import WHOLE, Selection, load_variants
from export.bundle import CARD
from runtime.errors import EdgefoldError, GateError
from runtime.files import remove_leftovers, write_atomically


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    missed: every gate and limit of a device that was missed, in words. scale: how far it was shortened. failed: why
    devices could not be measured.
    """

    rows: tuple[Row, ...]
    missed: tuple[str, ...]
    folder: Path
    report: Path | None
    scale: float = 1.0
    failed: tuple[EdgefoldError, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [row.to_json() for row in self.rows],
            "missed": list(self.missed),
            "folder": str(self.folder),
            "report": str(self.report) if self.report else None,
            "scale": self.scale,
            "failed": [error.message for error in self.failed],
        }

    def require_gates(self) -> None:
        """Raise GateError when a parity, accuracy or `expect` gate or a limit was missed.

        Where a device could not be measured it is that error, with what was missed beside it.
        """
        if self.failed:
            first = self.failed[0]
            raise type(first)("\n".join([*(each.message for each in self.failed), *self.missed]), first.remedy)
        if self.missed:
            raise GateError("\n".join(self.missed), f"The files are kept in {self.folder}.")


def plans_of(recipe: Path, data_root: Path | None, selection: Selection = WHOLE) -> tuple[Plan, ...]:
    """Return one plan for every variant and seed of a recipe file that is selected."""
    return tuple(plan(variant, data_root) for variant in load_variants(recipe, selection))


def run_plans(
    plans: Sequence[Plan],
    settings: Settings,
    notify: Notify,
    *,
    until: Step = "benchmark",
    only: str | None = None,
) -> Outcome:
    """Take every plan up to and including the step `until`; write the report after the last one.

    With `only`, that stage alone is trained, with those it needs.

    One process at a time works on a recipe's run folder: a second one says so and waits.
    """
    if until == "benchmark":
        require_devices([one.variant.recipe for one in plans], settings.targets)
    folder = settings.runs / plans[0].name
    with locked(folder / ".lock", f"recipe {plans[0].name} ({folder})", notify):
        remove_leftovers(folder)
        runs, missed = [], []
        for one in plans:
            run = VariantRun(one, settings, notify)
            if one.variant.run_name:
                notify(f"{one.name}/{one.variant.run_name}")
            try:
                run.run(until, only)
            except GateError as error:
                missed.append(error.message)
            runs.append(run)
        rows = summarise(runs)
        missed += [_expectation_message(row) for row in rows if row.expectation and row.expectation.passed is False]
        missed += [line for row in rows for line in _limit_messages(row)]
        failed = {error.message: error for run in runs for error in run.device_errors.values()}
        report = write_report(runs, rows, folder) if until == "benchmark" else None
        for run in runs:
            if until == "benchmark" and run.bundle() is not None:
                write_atomically(run.folder / CARD, run_card(run))
    return Outcome(rows, tuple(missed), folder, report, plans[0].variant.scale, tuple(failed.values()))


def _expectation_message(row: Row) -> str:
    expectation = row.expectation
    assert expectation is not None  # the caller filtered
    return (
        f"{row.name}: {expectation.metric} is {expectation.ours:.2f}, expected {expectation.published:g} "
        f"({expectation.tolerance}; {expectation.source})"
    )


def _limit_messages(row: Row) -> list[str]:
    variant = f" ({row.variant})" if row.variant else ""
    return [f"target {row.target}, {row.name}{variant}: {why}" for why in row.limits_missed]
