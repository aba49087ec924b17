"""What a recipe's runs came to: one table of plain data, for the terminal, the report and `--json`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compress.choice import EQUALLY_FAST
from compress.device_run import Device, accuracy_file, bench_file
from compress.forms import record_file
from compress.on_target import formats_on, missed_limits
from compress.plan import Plan, StagePlan
from compress.published import ExpectSpec
from compress.targets import LOCAL, Limits
from compress.units import milliseconds, size
from compress.variant_run import VariantRun, on_the_device
from runtime.accuracy import wilson_interval
from runtime.bench_notes import UNSTABLE
from runtime.bundle import Bundle

Verdict = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Expectation:
    """A published number beside ours. `passed` is the verdict; None where a scaled run is not judged."""

    metric: str
    published: float
    published_deviation: float | None
    ours: float
    tolerance: str
    source: str
    passed: bool | None


@dataclass(frozen=True)
class Row:
    """A trained stage or an exported file, over the seeds of one variant. Accuracies are shares, not percent.

    With one seed `low` and `high` are its 95 % Wilson interval; with several, `deviation` is the sample standard
    deviation over seeds, `correct` and the interval are of all seeds' test rows together. `macs` are the model's
    multiply-accumulates for one row (`compress.models.profile`). `format` is that of an exported file, `engine` what it
    ran on, empty for its own; `quantization` how its first seed became INT8 (`export.to_int8.Int8Model.to_json`).
    `not_run`: what this machine lacks to run the file; its accuracies are then those of the stage and not shown.
    `energy_mj`: millijoules of one call by the counters that the machine has, each by its name.
    `target`: where a file was measured, `local` or a device of targets.yaml; `limits` are those of the device, with
    `accuracy_floor` the least accuracy that they allow, and `limits_missed` says in words which ones are not held.
    """

    name: str
    what: Literal["stage", "export"]
    variant: str
    settings: Mapping[str, Any]
    model: str
    parameters: int
    macs: int
    teachers: tuple[str, ...]
    accuracies: tuple[float, ...]
    mean: float
    deviation: float | None
    low: float
    high: float
    agreement_with_teacher: float | None
    size_bytes: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    latency_note: str = ""
    energy_mj: Mapping[str, float] = field(default_factory=dict)
    parity: Verdict | None = None
    not_run: str | None = None
    format: str | None = None
    engine: str = ""
    quantization: Mapping[str, Any] | None = None
    expectation: Expectation | None = None
    target: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    accuracy_floor: float | None = None
    limits_missed: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """Return whether it was measured on a device of targets.yaml."""
        return self.target not in (None, LOCAL)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(runs: Sequence[VariantRun]) -> tuple[Row, ...]:
    """Return the rows of a recipe's runs, seeds of one variant gathered into one row."""
    groups: dict[str, list[VariantRun]] = {}
    for run in runs:
        variant = run.plan.variant
        groups.setdefault(json.dumps([variant.label, variant.settings], default=str), []).append(run)
    rows: list[Row] = []
    for group in groups.values():
        rows += [_stage_row(group, name) for name in group[0].artifacts]
        rows += _export_rows(group)
    return tuple(rows)


def _stage_row(group: Sequence[VariantRun], name: str) -> Row:
    first = group[0]
    stage = first.plan.stage(name)
    artifacts = [run.artifacts[name] for run in group]
    tests = [artifact.metrics["test"] for artifact in artifacts]
    accuracy = _accuracy(tests)
    return Row(
        name=name,
        what="stage",
        agreement_with_teacher=_agreement(group, name),
        **_of_stage(first, stage),
        size_bytes=artifacts[0].weights_bytes,
        expectation=_expectation(stage.expect, accuracy["mean"], first.plan.variant.scale == 1)
        if stage.expect
        else None,
        **accuracy,
    )


def _export_rows(group: Sequence[VariantRun]) -> Iterable[Row]:
    first = group[0]
    stage = first.plan.stage(first.plan.recipe.exported_stage)
    bundles = [run.bundle() for run in group if stage.name in run.artifacts]
    if len(bundles) < len(group) or bundles[0] is None or None in bundles:
        return
    for format_name, choice in first.cases():
        key = choice.key(format_name)
        # A seed that missed its parity gate was not measured: torch's figure stands in, so that the seeds stay equal.
        tests = [run.result(f"accuracy.{key}.json") or run.artifacts[stage.name].metrics["test"] for run in group]
        bench = next(iter(first.benches(format_name, choice).values()), None)
        results = [run.result("parity.json") for run in group]
        parities = [result["formats"][key] for result in results if result and key in result["formats"]]
        yield Row(
            name=f"{stage.name} · {key}",
            what="export",
            agreement_with_teacher=_agreement(group, stage.name),
            **_of_stage(first, stage),
            size_bytes=bundles[0].formats[format_name].size_bytes,
            **_of_bench(bench),
            parity=_parity(parities),
            not_run=next((why for parity in parities if (why := parity.get("not_run"))), None),
            format=format_name,
            engine=choice.label,
            quantization=first.result(record_file(format_name)),
            target=LOCAL,
            **_accuracy(tests),
        )
    for device in first.devices.values():
        for format_name in formats_on(device.label, device.target, bundles[0], ()):
            yield _device_row(group, stage, bundles[0], device, format_name)
    for request in bundles[0].missing_engines:
        yield Row(
            name=f"{stage.name} · {request.in_words()}",
            what="export",
            agreement_with_teacher=None,
            **_of_stage(first, stage),
            size_bytes=0,
            parity="not run",
            not_run=f"not built; {on_the_device(bundles[0])}",
            **_accuracy([run.artifacts[stage.name].metrics["test"] for run in group]),
        )


def _of_stage(run: VariantRun, stage: StagePlan) -> dict[str, Any]:
    """Return what a row says of its stage whatever was made of it."""
    return {
        "variant": variant_name(run.plan),
        "settings": run.plan.variant.settings,
        "model": stage.spec.model_name,
        "parameters": stage.parameters,
        "macs": stage.profile.total_macs,
        "teachers": stage.teachers,
    }


def _agreement(group: Sequence[VariantRun], stage: str) -> float | None:
    return _mean([run.artifacts[stage].metrics["agreement_with_teacher"] for run in group])


def _device_row(group: Sequence[VariantRun], stage: StagePlan, bundle: Bundle, device: Device, form: str) -> Row:
    first = group[0]
    benches = [run.result(bench_file(form, device)) for run in group]
    accuracies = [run.result(accuracy_file(form, device)) for run in group]
    errors = [error for run in group if (error := run.device_errors.get(device.label))]
    incomplete = None in benches or None in accuracies
    key = device.target.choice.key(form)
    parities = [
        result["formats"].get(key) or result["formats"].get(form)  # of the engine where it was proven here, or the file
        for run in group
        if (result := run.result("parity.json"))
    ]
    return Row(
        name=f"{stage.name} · {key}",
        what="export",
        agreement_with_teacher=_agreement(group, stage.name),
        **_of_stage(first, stage),
        size_bytes=bundle.formats[form].size_bytes,
        **_of_bench(benches[0]),
        parity=_parity([parity for parity in parities if parity]),
        not_run=errors[0].message if errors and incomplete else None,
        format=form,
        engine=device.target.choice.label,
        target=device.label,
        limits=device.target.limits.model_dump(exclude_none=True),
        accuracy_floor=_accuracy_floor(device.target.limits, accuracies),
        limits_missed=tuple(
            dict.fromkeys(
                missed
                for bench, accuracy in zip(benches, accuracies, strict=True)
                if bench and accuracy
                for missed in missed_limits(device.target.limits, bench, accuracy)
            )
        ),
        **_accuracy(
            [
                accuracy or run.artifacts[stage.name].metrics["test"]
                for run, accuracy in zip(group, accuracies, strict=True)
            ]
        ),
    )


def _accuracy_floor(limits: Limits, accuracies: Sequence[Mapping[str, Any] | None]) -> float | None:
    if limits.accuracy_drop_points is None:
        return None
    reference = _mean([each["torch_correct"] / each["total"] for each in accuracies if each])
    return None if reference is None else reference - limits.accuracy_drop_points / 100


def _parity(parities: Sequence[Mapping[str, Any]]) -> Verdict | None:
    verdicts = [parity["passed"] for parity in parities]
    if not verdicts:
        return None
    return "failed" if False in verdicts else "not run" if None in verdicts else "passed"


def _accuracy(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracies = tuple(test["correct"] / test["total"] for test in tests)
    low, high = wilson_interval(sum(test["correct"] for test in tests), sum(test["total"] for test in tests))
    return {
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "low": low,
        "high": high,
    }


def _expectation(expect: ExpectSpec, accuracy: float, judged: bool) -> Expectation:
    if expect.test_error_percent is not None:
        metric, cell, ours, worse = "test error %", expect.test_error_percent, 100 * (1 - accuracy), 1.0
    else:
        assert expect.test_accuracy_percent is not None  # one of the two: ExpectSpec
        metric, cell, ours, worse = "test accuracy %", expect.test_accuracy_percent, 100 * accuracy, -1.0
    # Rounded, so that 0.93 + 0.12 admits 1.05 as a reader would expect.
    off = round(worse * (ours - cell.mean), 9)
    if expect.within is not None:
        tolerance, passed = f"within {expect.within:g}", abs(off) <= expect.within
    else:
        allowed = expect.no_worse_by or 0.0
        tolerance, passed = f"no worse by {allowed:g}", off <= allowed
    verdict = passed if judged else None
    return Expectation(metric, cell.mean, cell.deviation, ours, tolerance, expect.source, verdict)


def _of_bench(bench: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "p50_ms": _percentile_ms(bench, "p50"),
        "p90_ms": _percentile_ms(bench, "p90"),
        "latency_note": _latency_note(bench),
        "energy_mj": {each["counter"]: each["mj_per_call"] for each in (bench or {}).get("energy", ())},
    }


def _percentile_ms(bench: Mapping[str, Any] | None, name: str) -> float | None:
    found = bench["latency"]["percentiles"].get(name) if bench else None
    return found["measured_ms"] if found else None


def _latency_note(bench: Mapping[str, Any] | None) -> str:
    if not bench:
        return ""
    unstable = any(note.startswith(UNSTABLE) for note in bench["notes"])
    return (" (quick)" if bench["quick"] else "") + (" UNSTABLE" if unstable else "")


def variant_name(plan: Plan) -> str:
    """Return a plan's row of the sweep by its label, else its swept values in words; "" where nothing is swept."""
    if plan.variant.label:
        return plan.variant.label
    settings = {path: value for path, value in plan.variant.settings.items() if not path.startswith("expect")}
    return ", ".join(f"{path.rsplit('.', 1)[-1]}: {_written(value)}" for path, value in settings.items())


def _written(value: Any) -> str:
    """Return a swept value as a recipe writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def device_notes(rows: Sequence[Row]) -> list[str]:
    """Say why a device could not be measured, and which limits a file misses on one."""
    said = []
    for row in rows:
        if row.elsewhere and row.not_run:
            said.append(f"Not measured: {row.not_run}")
        elif row.limits_missed:
            variant = f" ({row.variant})" if row.variant else ""
            said.append(f"{row.name}{variant} on {row.target}: {'; '.join(row.limits_missed)}")
    return list(dict.fromkeys(said))


def layers_by_damage(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the layers of an INT8 file: first those that do most damage alone, if that was asked."""
    return sorted(quantization["layers"], key=lambda layer: -(layer["damage"] or 0.0))


def summary_sentence(rows: Sequence[Row], deployed: str) -> str:
    """Return the result in one sentence: the deployed file's accuracy, size, latency, and what it was shrunk from.

    Of several files of the first variant it is the fastest that passed parity, by name, on this machine.
    """
    exports = [row for row in rows if row.what == "export" and row.variant == rows[0].variant and not row.elsewhere]
    sound = [row for row in exports if row.parity == "passed" and row.p50_ms is not None]
    export = min(sound, key=lambda row: row.p50_ms or 0.0, default=next(iter(exports), None))
    student = next((row for row in rows if row.what == "stage" and row.name == deployed), None)
    row = export or student
    if row is None:
        return ""
    interval = f"({100 * row.low:.2f} – {100 * row.high:.2f})"
    parts = [f"{100 * row.mean:.2f} % test accuracy {interval}", size(row.size_bytes)]
    if row.p50_ms is not None:
        parts.append(f"{milliseconds(row.p50_ms)} a call")
    if row is export and len(exports) > 1:
        parts[-1] += f" as {row.name.rpartition(' ')[2]}"
    if larger := _shrunk_from(rows, row):
        parts.append(f"{larger.parameters / row.parameters:.1f} times fewer parameters than {larger.name}")
    return _slower_than_float(exports) + ", ".join(parts) + "."


def _slower_than_float(exports: Sequence[Row]) -> str:
    """Say first where INT8 was made and surely costs time, on the format's own engine, instead of saving it."""
    times = {row.format: row.p50_ms for row in exports if not row.engine and row.p50_ms is not None}
    float_ms = times.get("onnx", math.inf)
    slow = (1 + EQUALLY_FAST) * float_ms
    int8, cpu = times.get("int8"), times.get("int8_cpu")
    said = ""
    if int8 is not None and int8 > slow:
        said = f"INT8 is slower than FP32 here: {milliseconds(int8)} a call against {milliseconds(float_ms)}"
        said += ". " if cpu is not None else "; the form for CPUs is int8_cpu. "
    if cpu is not None and cpu > slow:
        said += f"INT8 for CPUs is slower than FP32: {milliseconds(cpu)} a call against {milliseconds(float_ms)}. "
    return said


def _shrunk_from(rows: Sequence[Row], row: Row) -> Row | None:
    """Return the largest of a student's own teachers, if it is larger than the student."""
    teachers = [other for other in rows if other.variant == row.variant and other.name in row.teachers]
    largest = max(teachers, key=lambda other: other.parameters, default=None)
    return largest if largest is not None and largest.parameters > row.parameters else None
