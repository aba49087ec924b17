"""What the user sees: results on stdout, progress on stderr; JSON where it was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compress.units import count, duration, millijoules, milliseconds, size
from runtime.display import throughput
from runtime.machine_text import board_facts

if TYPE_CHECKING:
    from compress.analysis.command import VariantAnalysis
    from compress.choice import Candidate
    from compress.pipeline import Outcome
    from compress.plan import Plan, StagePlan
    from compress.progress import Progress
    from compress.summary import Row

NOT_A_TERMINAL_WIDTH = 200  # wide enough that no row of the result table is wrapped in a log


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else NOT_A_TERMINAL_WIDTH
    # No markup: brackets in paths, in settings and in 'edgefold[train]' are text.
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def result_console() -> Console:
    """Return where results are shown."""
    return _console(stderr=False)


class Narrator:
    """Receives progress and messages: one live line a stage on a terminal, a plain line an epoch elsewhere."""

    def __init__(self) -> None:
        self.console = _console(stderr=True)
        self.live: Live | None = None
        self.stage = ""

    def __call__(self, event: Progress | str) -> None:
        if isinstance(event, str):
            self.close()
            self.console.print(Text(event, style="yellow" if event.startswith("warning") else ""))
        elif self.console.is_terminal:
            self._draw(event)
        elif event.epoch_ended:
            self.console.print(Text(progress_line(event)))

    def _draw(self, event: Progress) -> None:
        if self.live is None or event.stage != self.stage:
            self.close()
            self.stage = event.stage
            self.live = Live(console=self.console, refresh_per_second=5)
            self.live.start()
        self.live.update(Text(progress_line(event), no_wrap=True, overflow="ellipsis"))
        if event.epoch_ended and event.epoch == event.epochs:
            self.close()

    def close(self) -> None:
        """Let the live line stand as it is and go on below it."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def progress_line(event: Progress) -> str:
    """Return the stage's line: epoch, loss terms, validation accuracy, rows per second, time left."""
    losses = "  ".join(
        f"{name} {value:.4f}" for name, value in event.losses.items() if name != "total" or len(event.losses) > 2
    )
    accuracy = "" if event.validation_accuracy is None else f"  validation {100 * event.validation_accuracy:.2f} %"
    ended = event.epoch_ended and event.epoch == event.epochs
    left = "  done" if ended else f"  {duration(event.seconds_left)} left"
    width = len(str(event.epochs))
    return (
        f"{event.stage}  epoch {event.epoch:>{width}}/{event.epochs}  {losses}{accuracy}"
        f"  {event.rows_per_s:,.0f} rows/s{left}"
    )


def announce(plans: Sequence[Plan], runs: Path) -> None:
    """Show the plan before work begins, on stderr."""
    _console(stderr=True).print(_plan_table(plans, runs))


def print_plans(plans: Sequence[Plan], runs: Path, as_json: bool) -> None:
    if as_json:
        stages = [_plan_json(plan.variant.folder, stage, runs) for plan in plans for stage in plan.stages]
        click.echo(json.dumps({"recipe": plans[0].name, "stages": stages}, indent=2))
    else:
        console = _console(stderr=False)
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


def print_outcome(outcome: Outcome, recipe: str, until: str, as_json: bool) -> None:
    """Show the result table, where the report lies, and what to type next; `recipe` is as the user named it."""
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2))
        return
    from compress.summary import device_notes

    console = _console(stderr=False)
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
    console = _console(stderr=False)
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
    _console(stderr=False).print(table)
    for form in formats:
        if why := form.get("not_run"):
            click.echo(f"{form['format']}: not run here: {why}")


def _engine_cell(engine: Mapping[str, Any]) -> str:
    chosen = engine["chosen"].get("provider") or engine["chosen"].get("precision")
    return f"{engine['name']}{f' ({chosen})' if chosen else ''}"


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
    console = _console(stderr=False)
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
    _console(stderr=False).print(_findings_table(findings))


def print_target_findings(results: Mapping[str, Sequence[Mapping[str, Any]]], as_json: bool) -> None:
    """Show what each device can run, with the whole command for what it lacks below its table."""
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    console = _console(stderr=False)
    for name, findings in results.items():
        console.print(f"target {name}")
        console.print(_findings_table([{**each, "remedy": ""} for each in findings]))
        for each in findings:
            if not each["usable"] and each["remedy"]:
                console.print(f"  {each['what']}: {each['remedy']}", soft_wrap=True)


def _findings_table(findings: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "what", "found", "to get it"):
        table.add_column(
            name if name != "to get it" or any(each["remedy"] for each in findings) else "", no_wrap=name != "found"
        )
    for finding in findings:
        mark = Text("ok", style="green") if finding["usable"] else Text("--", style="yellow")
        table.add_row(mark, finding["what"], finding["found"], "" if finding["usable"] else finding["remedy"])
    return table


def print_target_benches(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    missed: Mapping[tuple[str, str], Sequence[str]],
    as_json: bool,
) -> None:
    """Show latency by target and format, with the limits that were missed and what makes a number doubtful."""
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    table = _table("target", "format", "engine", "threads", "batch", "size", "p50", "p90", "p99", "limits")
    notes, facts = [], []
    for name, by_format in results.items():
        for form, result in by_format.items():
            engine, latency = result["engine"], result["latency"]
            found = {key: each["measured_ms"] for key, each in latency["percentiles"].items()}
            unstable = any(note.startswith("UNSTABLE") for note in result["notes"])
            table.add_row(
                name,
                form,
                f"{engine['name']} {engine['version']}",
                str(engine["threads"]),
                str(result["batch"]),
                size(result["size_bytes"]),
                milliseconds(found.get("p50")) + (" UNSTABLE" if unstable else ""),
                milliseconds(found.get("p90")),
                milliseconds(found.get("p99")),
                "MISSED" if missed[name, form] else "",
            )
            notes += [f"{name}, {form}: {note}" for note in result["notes"]]
            facts += [f"{name}, {form}: {what}: {fact}" for what, fact in board_facts(result).items()]
            if result.get("scenario", "single") != "single":
                notes.insert(0, f"{name}, {form}: {throughput(result)}")
    console = _console(stderr=False)
    console.print(table)
    for fact in facts:
        console.print(fact, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


def _unlike_this_machine(agreement: Mapping[str, Any] | None) -> str:
    if agreement is None:
        return "not compared"
    differing = agreement["differing_row_ids"]
    shown = ", ".join(map(str, differing[:5])) + (", ..." if len(differing) > 5 else "")
    return f"{len(differing)} (row ids {shown})" if differing else "0"


def print_target_accuracies(results: Mapping[str, Mapping[str, Mapping[str, Any]]], as_json: bool) -> None:
    """Show accuracy by target and format, and on how many rows the device is of this machine's opinion."""
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    table = _table("target", "format", "engine", "rows", "right", "accuracy", "95 % interval", "unlike this machine")
    for name, by_format in results.items():
        for form, result in by_format.items():
            low, high = result["interval_95"]
            table.add_row(
                name,
                form,
                f"{result['engine']['name']} {result['engine']['version']}",
                f"{result['total']:,}",
                f"{result['correct']:,}",
                f"{100 * result['accuracy']:.2f} %",
                f"{100 * low:.2f} – {100 * high:.2f}",
                _unlike_this_machine(result.get("host_agreement")),
            )
    _console(stderr=False).print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="left" if name in ("target", "format", "engine", "limits", "student", "not beaten") else "right",
        )
    return table


def print_candidates(candidates: Sequence[Candidate]) -> None:
    """Show what was measured of several runs, those that no other beats marked, then which one to ship."""
    from compress.choice import by_target, energy_counter, front, labels, sentences

    best, names = front(candidates), labels(candidates)
    counters = {target: energy_counter(here) for target, here in by_target(candidates).items()}
    energy = ["energy"] if any(counters.values()) else []
    table = _table(
        "target", "student", "size", "p50", "p90", *energy, "accuracy", "95 % interval", "limits", "not beaten"
    )
    for each in sorted(candidates, key=lambda each: (each.target, each.p50_ms)):
        counter = counters[each.target]
        joules = [millijoules(each.energy_mj[counter]) if counter else ""] if energy else []
        table.add_row(
            each.target,
            names[each],
            size(each.size_bytes),
            f"{milliseconds(each.p50_ms)} {each.latency_note}".rstrip(),
            milliseconds(each.p90_ms),
            *joules,
            f"{100 * each.accuracy:.2f} %",
            f"{100 * each.low:.2f} – {100 * each.high:.2f}",
            "parity FAILED" if not each.parity else "; ".join(each.limits_missed),
            "yes" if each in best else "",
        )
    console = _console(stderr=False)
    console.print(table)
    for target, counter in counters.items():
        if counter:
            console.print(f"Energy of a call on {target}: {counter}, with all else that ran.", soft_wrap=True)
    for sentence in sentences(candidates):
        console.print(sentence, soft_wrap=True)
