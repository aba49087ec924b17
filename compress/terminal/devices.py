"""What was measured on devices, and which student to ship."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from compress.terminal.console import new_table, result_console
from compress.terminal.lists import findings_table
from compress.units import millijoules, milliseconds, size
from runtime.display import throughput
from runtime.machine_text import board_facts

if TYPE_CHECKING:
    from compress.choice import Candidate


def print_target_findings(results: Mapping[str, Sequence[Mapping[str, Any]]], as_json: bool) -> None:
    """Show what each device can run, with the whole command for what it lacks below its table."""
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    console = result_console()
    for name, findings in results.items():
        console.print(f"target {name}")
        console.print(findings_table([{**each, "remedy": ""} for each in findings]))
        for each in findings:
            if not each["usable"] and each["remedy"]:
                console.print(f"  {each['what']}: {each['remedy']}", soft_wrap=True)


def print_target_benches(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    missed: Mapping[tuple[str, str], Sequence[str]],
    as_json: bool,
) -> None:
    """Show latency by target and format, with the limits that were missed and what makes a number doubtful."""
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    table = new_table("target", "format", "engine", "threads", "batch", "size", "p50", "p90", "p99", "limits")
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
    console = result_console()
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
    table = new_table("target", "format", "engine", "rows", "right", "accuracy", "95 % interval", "unlike this machine")
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
    result_console().print(table)


def print_candidates(candidates: Sequence[Candidate]) -> None:
    """Show what was measured of several runs, those that no other beats marked, then which one to ship."""
    from compress.choice import by_target, energy_counter, front, labels, sentences

    best, names = front(candidates), labels(candidates)
    counters = {target: energy_counter(here) for target, here in by_target(candidates).items()}
    energy = ["energy"] if any(counters.values()) else []
    table = new_table(
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
    console = result_console()
    console.print(table)
    for target, counter in counters.items():
        if counter:
            console.print(f"Energy of a call on {target}: {counter}, with all else that ran.", soft_wrap=True)
    for sentence in sentences(candidates):
        console.print(sentence, soft_wrap=True)
