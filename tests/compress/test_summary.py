"""The table of results: seeds gathered, variants apart, published numbers judged. Nothing is trained here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.device_run import Device
from compress.pipeline import plans_of
from compress.plan import Plan
from compress.published import ExpectSpec
from compress.summary import Row, device_notes, summarise, summary_sentence
from compress.targets import Limits, Target
from runtime.accuracy import wilson_interval
from runtime.errors import EdgefoldError, UsageError
from runtime.runners.choice import EngineChoice

TEXT = """\
name: rows
data: {source: digits}
train: {epochs: 1}
stages:
  teacher: {model: {mlp: {hidden: [16]}}, objective: ce}
  student: {model: {mlp: {hidden: [8]}}, teacher: teacher, objective: kl}
"""
EXPORTED = TEXT + "export: {stage: student}\n"


@dataclass
class Artifact:
    metrics: dict[str, Any]
    weights_bytes: int = 1000


@dataclass
class FakeRun:
    """What `summarise` reads of a VariantRun."""

    plan: Plan
    artifacts: dict[str, Artifact]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    formats: dict[str, Any] | None = None
    choices: tuple[EngineChoice, ...] = (EngineChoice(),)
    devices: dict[str, Device] = field(default_factory=dict)
    device_errors: dict[str, EdgefoldError] = field(default_factory=dict)

    def bundle(self) -> Any:
        return SimpleNamespace(formats=self.formats, missing_engines=()) if self.formats else None

    def result(self, name: str) -> dict[str, Any] | None:
        return self.results.get(name)

    def cases(self) -> list[tuple[str, EngineChoice]]:
        return [(name, choice) for name in self.formats or () for choice in self.choices]

    def benches(self, format_name: str, choice: EngineChoice) -> dict[str, dict[str, Any]]:
        prefix = f"bench.{format_name}.local{f'-{choice.label}' if choice.label else ''}"
        return {name[len(prefix) :]: each for name, each in self.results.items() if name.startswith(f"{prefix}.")}


@pytest.fixture
def runs_of(tmp_path: Path) -> Callable[..., list[FakeRun]]:
    """Return `make(text, correct={stage: [of each run]})`: a run for each plan, 100 test rows."""

    def make(text: str, **correct: list[int]) -> list[FakeRun]:
        path = tmp_path / "rows.yaml"
        path.write_text(text)
        runs = []
        for i, plan in enumerate(plans_of(path, None)):
            artifacts = {
                name: Artifact(
                    {
                        "test": {"correct": counts[i], "total": 100},
                        "agreement_with_teacher": None if name == "teacher" else 0.9 + i / 100,
                    }
                )
                for name, counts in correct.items()
            }
            runs.append(FakeRun(plan, artifacts))
        return runs

    return make


def rows_of(runs: list[FakeRun]) -> dict[str, Row]:
    rows = summarise(runs)  # type: ignore[arg-type]
    assert len({(row.name, row.variant) for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def export(run: FakeRun, *, correct: int | None = None, passed: bool | None = None) -> None:
    run.formats = {"onnx": SimpleNamespace(size_bytes=4321)}
    if correct is not None:
        run.results["accuracy.onnx.json"] = {"correct": correct, "total": 100}
    if passed is not None:
        run.results["parity.json"] = {"passed": passed, "formats": {"onnx": {"passed": passed}}}


def bench(run: FakeRun, *, quick: bool = False, unstable: bool = False, target: str = "local") -> None:
    run.results[f"bench.onnx.{target}.json"] = {
        "quick": quick,
        "latency": {
            "percentiles": {"p50": {"measured_ms": 0.25}, "p90": {"measured_ms": 1.5}},
        },
        "notes": ["UNSTABLE: the machine was busy: load average 9.0 on 2 cores"] if unstable else ["a note"],
    }


# Rows


def test_one_seed_has_its_own_wilson_interval_and_no_deviation(runs_of: Callable[..., list[FakeRun]]) -> None:
    rows = rows_of(runs_of(TEXT, teacher=[97], student=[90]))
    assert list(rows) == ["teacher", "student"]
    teacher = rows["teacher"]
    assert (teacher.what, teacher.model, teacher.parameters) == ("stage", "mlp", 64 * 16 + 16 + 16 * 10 + 10)
    assert (teacher.accuracies, teacher.mean, teacher.deviation) == ((0.97,), 0.97, None)
    # Wilson's interval of 97 of 100, worked out by hand.
    assert (teacher.low, teacher.high) == (pytest.approx(0.9155, abs=1e-4), pytest.approx(0.9897, abs=1e-4))
    assert (teacher.agreement_with_teacher, rows["student"].agreement_with_teacher) == (None, 0.9)
    assert teacher.size_bytes == 1000
    assert (teacher.p50_ms, teacher.parity, teacher.expectation) == (None, None, None)


def test_several_seeds_are_one_row_with_the_sample_standard_deviation(
    runs_of: Callable[..., list[FakeRun]],
) -> None:
    rows = rows_of(
        runs_of(TEXT.replace("data:", "seeds: [0, 1, 2]\ndata:"), teacher=[95, 96, 97], student=[80, 90, 88])
    )
    assert list(rows) == ["teacher", "student"]
    student = rows["student"]
    assert student.accuracies == (0.8, 0.9, 0.88)
    assert student.mean == pytest.approx(0.86)
    # Deviations -6, 4 and 2 points: (36 + 16 + 4) / (3 - 1) = 28.
    assert student.deviation == pytest.approx(28**0.5 / 100)
    assert (student.low, student.high) == wilson_interval(258, 300)
    assert student.agreement_with_teacher == pytest.approx(0.91)


def test_variants_are_rows_of_their_own_each_over_its_seeds(runs_of: Callable[..., list[FakeRun]]) -> None:
    text = TEXT + "seeds: [0, 1]\nsweep: {stages.student.model.mlp.hidden: [[8], [4]]}\n"
    runs = runs_of(text, student=[80, 90, 60, 62])
    rows = summarise(runs)  # type: ignore[arg-type]
    assert [row.variant for row in rows] == ["hidden: [8]", "hidden: [4]"]
    assert [row.accuracies for row in rows] == [(0.8, 0.9), (0.6, 0.62)]
    assert rows[0].parameters > rows[1].parameters
    assert rows[1].settings == {"stages.student.model.mlp.hidden": (4,)}


def test_a_row_is_plain_data(runs_of: Callable[..., list[FakeRun]]) -> None:
    text = TEXT + "expect: {test_error_percent: 9, within: 2, source: somewhere}\n"
    text += "sweep: {train.epochs: [1, 2]}\n"
    for row in summarise(runs_of(text, student=[90, 91])):  # type: ignore[arg-type]
        value = json.loads(json.dumps(row.to_json(), allow_nan=False))
        assert value["name"] == "student"
        assert value["expectation"]["source"] == "somewhere"
        assert value["accuracies"] == list(row.accuracies)


# Exports


def test_an_export_has_the_figures_of_the_file(runs_of: Callable[..., list[FakeRun]]) -> None:
    (run,) = runs_of(EXPORTED, teacher=[97], student=[90])
    export(run, correct=89, passed=True)
    bench(run)
    row = rows_of([run])["student · onnx"]
    assert (row.what, row.size_bytes, row.accuracies, row.parity) == ("export", 4321, (0.89,), "passed")
    assert (row.p50_ms, row.p90_ms, row.latency_note) == (0.25, 1.5, "")
    assert row.agreement_with_teacher == 0.9


@pytest.mark.parametrize(
    ("quick", "unstable", "note"),
    [(True, False, " (quick)"), (False, True, " UNSTABLE"), (True, True, " (quick) UNSTABLE")],
)
def test_a_latency_that_says_little_is_labelled(
    runs_of: Callable[..., list[FakeRun]], quick: bool, unstable: bool, note: str
) -> None:
    (run,) = runs_of(EXPORTED, teacher=[97], student=[90])
    export(run, correct=90, passed=True)
    bench(run, quick=quick, unstable=unstable)
    assert rows_of([run])["student · onnx"].latency_note == note


def test_energy_is_by_the_name_of_its_counter(runs_of: Callable[..., list[FakeRun]]) -> None:
    (run,) = runs_of(EXPORTED, teacher=[97], student=[90])
    export(run, correct=90, passed=True)
    bench(run)
    assert rows_of([run])["student · onnx"].energy_mj == {}
    counted = [{"counter": "a", "joules": 2.0, "calls": 1000, "mj_per_call": 2.0}]
    run.results["bench.onnx.local.json"]["energy"] = counted
    assert rows_of([run])["student · onnx"].energy_mj == {"a": 2.0}


def test_what_was_not_measured_is_left_open(runs_of: Callable[..., list[FakeRun]]) -> None:
    (run,) = runs_of(EXPORTED, teacher=[97], student=[90])
    assert list(rows_of([run])) == ["teacher", "student"]
    export(run)
    row = rows_of([run])["student · onnx"]
    assert (row.parity, row.p50_ms, row.p90_ms) == (None, None, None)
    assert row.accuracies == (0.9,)  # torch's own, until the file was measured


def test_one_failed_seed_fails_the_row(runs_of: Callable[..., list[FakeRun]]) -> None:
    runs = runs_of(EXPORTED + "seeds: [0, 1]\n", teacher=[97, 96], student=[90, 80])
    export(runs[0], correct=90, passed=True)
    export(runs[1], passed=False)
    row = rows_of(runs)["student · onnx"]
    assert row.parity == "failed"
    # The failed seed was not measured; it still counts, with torch's figure.
    assert row.accuracies == (0.9, 0.8)
    assert row.deviation == pytest.approx(statistics.stdev([0.9, 0.8]))


# Published numbers


@pytest.mark.parametrize(
    ("kind", "published", "bound", "correct", "passed"),
    [
        # Error 10 %: within is two-sided.
        ("error", 9.0, "within: 1", 90, True),
        ("error", 11.0, "within: 1", 90, True),
        ("error", 8.9, "within: 1", 90, False),
        ("error", 11.1, "within: 1", 90, False),
        ("accuracy", 91.0, "within: 1", 90, True),
        ("accuracy", 89.0, "within: 1", 90, True),
        ("accuracy", 91.1, "within: 1", 90, False),
        ("accuracy", 88.9, "within: 1", 90, False),
        # no_worse_by is one-sided: a lower error, a higher accuracy are fine by any amount.
        ("error", 9.0, "no_worse_by: 1", 90, True),
        ("error", 8.9, "no_worse_by: 1", 90, False),
        ("error", 50.0, "no_worse_by: 1", 90, True),
        ("accuracy", 91.0, "no_worse_by: 1", 90, True),
        ("accuracy", 91.1, "no_worse_by: 1", 90, False),
        ("accuracy", 50.0, "no_worse_by: 0", 90, True),
        ("error", 10.0, "no_worse_by: 0", 90, True),
        ("error", 9.9, "no_worse_by: 0", 90, False),
        # As a reader adds: 0.93 + 0.07 admits 1, whatever binary fractions make of it.
        ("error", 0.93, "within: 0.07", 99, True),
        ("error", 0.93, "within: 0.06", 99, False),
    ],
)
def test_a_published_number_is_judged(
    runs_of: Callable[..., list[FakeRun]],
    kind: str,
    published: float,
    bound: str,
    correct: int,
    passed: bool,
) -> None:
    text = TEXT + f"expect: {{test_{kind}_percent: {published}, {bound}, source: table 2}}\n"
    rows = rows_of(runs_of(text, teacher=[50], student=[correct]))
    expectation = rows["student"].expectation
    assert expectation is not None
    assert expectation.passed is passed
    assert (expectation.metric, expectation.published) == (f"test {kind} %", published)
    assert expectation.ours == pytest.approx(correct if kind == "accuracy" else 100 - correct)
    assert expectation.tolerance == bound.replace("_", " ").replace(":", "")
    assert expectation.source == "table 2"
    assert rows["teacher"].expectation is None


def test_the_mean_over_the_seeds_is_compared(runs_of: Callable[..., list[FakeRun]]) -> None:
    text = TEXT + "seeds: [0, 1]\nexpect: {test_error_percent: 15, within: 0.1, source: table 2}\n"
    rows = rows_of(runs_of(text, teacher=[50, 50], student=[80, 90]))
    assert rows["student"].expectation is not None
    assert rows["student"].expectation.ours == pytest.approx(15)
    assert rows["student"].expectation.passed


def test_a_published_number_belongs_to_the_deployed_stage_or_to_the_one_that_names_it(
    runs_of: Callable[..., list[FakeRun]],
) -> None:
    expect = "expect: {test_error_percent: 3, within: 1, source: x}"
    deployed = rows_of(runs_of(TEXT + f"export: {{stage: teacher}}\n{expect}\n", teacher=[97], student=[97]))
    assert (deployed["teacher"].expectation is None, deployed["student"].expectation is None) == (False, True)
    own = TEXT.replace("[16]}}, objective: ce", f"[16]}}}}, {expect}, objective: ce")
    assert rows_of(runs_of(own, teacher=[97], student=[97]))["teacher"].expectation is not None


def test_a_row_of_the_sweep_is_named_by_its_label_and_judged_by_its_own_cells(
    runs_of: Callable[..., list[FakeRun]],
) -> None:
    text = TEXT + (
        "expect: {source: table 2, within: 1, test_accuracy_percent: {teacher: 97, student: 91.5 ± 0.3}}\n"
        "sweep:\n  - {label: wide}\n"
        "  - {stages.student.model.mlp.hidden: [4], expect.test_accuracy_percent: {student: 70}}\n"
    )
    runs = runs_of(text, teacher=[97, 97], student=[91, 80])
    rows = {(row.variant, row.name): row for row in summarise(runs)}  # type: ignore[arg-type]
    assert {variant for variant, _ in rows} == {"wide", "hidden: [4]"}
    wide, narrow = rows["wide", "student"].expectation, rows["hidden: [4]", "student"].expectation
    assert wide is not None
    assert narrow is not None
    assert (wide.published, wide.published_deviation, wide.passed) == (91.5, 0.3, True)
    assert (narrow.published, narrow.published_deviation, narrow.passed) == (70, None, False)
    assert rows["hidden: [4]", "teacher"].expectation is None


@pytest.mark.parametrize(
    "given",
    [
        {"test_error_percent": 1.0, "source": "x"},
        {"within": 1.0, "source": "x"},
        {"test_error_percent": 1.0, "test_accuracy_percent": 99.0, "within": 1.0, "source": "x"},
        {"test_error_percent": 1.0, "within": 1.0, "no_worse_by": 1.0, "source": "x"},
    ],
)
def test_an_expectation_names_one_number_and_one_bound(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected exactly one of"):
        ExpectSpec.model_validate(given)


# The sentence


def test_the_sentence_tells_the_deployed_files_accuracy_size_and_latency(
    runs_of: Callable[..., list[FakeRun]],
) -> None:
    (run,) = runs_of(EXPORTED, teacher=[97], student=[90])
    export(run, correct=90, passed=True)
    bench(run)
    rows = summarise([run])  # type: ignore[list-item]
    sentence = summary_sentence(rows, "student")
    ratio = rows[0].parameters / rows[1].parameters
    for part in ("90.00 % test accuracy", "4.3 kB", "250.0 µs a call", f"{ratio:.1f} times fewer", "than teacher."):
        assert part in sentence
    assert "1.50 ms a call" in summary_sentence([*rows[:2], replace(rows[2], p50_ms=1.5)], "student")


def test_the_sentence_is_of_the_fastest_file_that_passed_parity(runs_of: Callable[..., list[FakeRun]]) -> None:
    (run,) = runs_of(EXPORTED, teacher=[97], student=[90])
    export(run, correct=90, passed=True)
    bench(run)
    rows = summarise([run])  # type: ignore[list-item]
    fast = replace(rows[2], name="student · packed", p50_ms=0.03, size_bytes=900)
    assert "0.9 kB, 30.0 µs a call as packed," in summary_sentence([*rows, fast], "student")
    assert "250.0 µs a call as onnx," in summary_sentence([*rows, replace(fast, parity="failed")], "student")


def test_the_sentence_needs_neither_export_nor_teacher(runs_of: Callable[..., list[FakeRun]]) -> None:
    rows = summarise(runs_of(TEXT, teacher=[97]))  # type: ignore[arg-type]
    assert summary_sentence(rows, "teacher").startswith("97.00 % test accuracy")
    assert "fewer" not in summary_sentence(rows, "teacher")
    assert summary_sentence(rows, "student") == ""


# Devices of targets.yaml


def with_devices(runs: list[FakeRun], limits: Limits) -> None:
    """Let `pi4` be measured on every run, torch right on 96 rows; `phone` cannot be reached."""
    for run in runs:
        export(run, correct=95, passed=True)
        bench(run)
        bench(run, target="pi4")
        run.results["bench.onnx.pi4.json"]["size_bytes"] = 4321
        run.results["accuracy.onnx.pi4.json"] = {"correct": 95, "total": 100, "torch_correct": 96}
        run.devices = {name: Device(name, Target(host=name, limits=limits)) for name in ("pi4", "phone")}
        run.device_errors = {"phone": UsageError("target phone (phone) cannot be reached")}


def test_a_device_is_a_row_with_its_own_figures_and_limits(runs_of: Callable[..., list[FakeRun]]) -> None:
    runs = runs_of(EXPORTED, teacher=[99], student=[96])
    with_devices(runs, Limits(p90_ms=1.0, size_kb=5.0, accuracy_drop_points=0.5))
    local, pi4, phone = summarise(runs)[2:]  # type: ignore[arg-type]
    assert (local.target, local.elsewhere, local.limits) == ("local", False, {})
    assert (pi4.target, pi4.elsewhere, pi4.mean, pi4.p50_ms, pi4.parity) == ("pi4", True, 0.95, 0.25, "passed")
    assert pi4.limits == {"p90_ms": 1.0, "size_kb": 5.0, "accuracy_drop_points": 0.5}
    assert pi4.accuracy_floor == pytest.approx(0.955)
    assert pi4.limits_missed == ("p90_ms is 1.5, allowed 1", "accuracy_drop_points is 1, allowed 0.5")
    assert (phone.not_run, phone.p50_ms) == ("target phone (phone) cannot be reached", None)
    assert (phone.limits_missed, phone.accuracy_floor) == ((), None)  # nobody knows
    assert device_notes([local, pi4, phone, phone]) == [
        "student · onnx on pi4: p90_ms is 1.5, allowed 1; accuracy_drop_points is 1, allowed 0.5",
        "Not measured: target phone (phone) cannot be reached",
    ]


def test_the_sentence_is_of_this_machine(runs_of: Callable[..., list[FakeRun]]) -> None:
    runs = runs_of(EXPORTED, teacher=[99], student=[96])
    with_devices(runs, Limits())
    runs[0].results["bench.onnx.pi4.json"]["latency"]["percentiles"]["p50"]["measured_ms"] = 0.01
    assert "250.0 µs a call," in summary_sentence(summarise(runs), "student")  # type: ignore[arg-type]
