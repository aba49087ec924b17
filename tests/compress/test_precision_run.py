"""A recipe with every precision, from end to end: files, gates, accuracies, and what the report says of INT8."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from compress.cli import main as edgefold
from compress.forms import calibration_rows
from compress.summary import Row, summary_sentence
from runtime.bundle import open_bundle

RECIPE = """\
name: tiny
data: {source: digits, relabel: {modulo: 2}}
train: {epochs: 4, batch_size: 64, optimizer: {adam: {lr: 1e-2}}}
stages:
  student:
    model: {small_cnn: {widths: [8, 16]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
export:
  stage: student
  formats:
    - onnx
    - fp16
    - {int8: {rows: 128, gate: {metric_drop_points: 2.5}}}
    - {int8_cpu: {rows: 128, gate: {metric_drop_points: 2.5}}}
  batch_sizes: [1, 8]
benchmark: [{local: {quick: true}}]
"""
FORMS = ["onnx", "fp16", "int8", "int8_cpu"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and the finished run, measurements included."""
    folder = tmp_path_factory.mktemp("precisions")
    (folder / "tiny.yaml").write_text(RECIPE)
    result = call("run", folder / "tiny.yaml", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs/tiny" / name).read_text())


def test_every_form_passes_its_gate(folder: Path) -> None:
    parity = read(folder, "parity.json")["formats"]
    assert list(parity) == FORMS
    assert [form["precision"] for form in parity.values()] == ["fp32", "fp16", "int8", "int8_cpu"]
    assert all(form["passed"] for form in parity.values())
    # What the recipe names takes the place of the precision's own; the rest stays.
    assert parity["int8"]["gate"] == {
        "max_error_over_std": 0.3, "top1_agreement": 0.97, "metric_drop_points": 2.5,
    }  # fmt: skip
    errors = [form["comparison"]["max_error_over_std"] for form in parity.values()]
    assert 0 <= errors[0] < errors[1] < min(errors[2:])
    assert max(errors) < 0.3


def test_a_bundle_alone_knows_its_gates(folder: Path) -> None:
    bundle = open_bundle(folder / "runs/tiny/bundle")
    assert {name: form.file for name, form in bundle.formats.items()} == {
        "onnx": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx",
        "int8_cpu": "model.int8_cpu.onnx",
    }  # fmt: skip
    assert bundle.formats["fp16"].gate is None
    result = call("verify", folder / "runs/tiny/bundle", "--json")
    assert result.exit_code == 0
    assert [form["gate"]["metric_drop_points"] for form in json.loads(result.stdout)] == [0.0, 0.1, 2.5, 2.5]


def test_the_runtime_measures_every_form(folder: Path) -> None:
    rows = {row["format"]: row for row in read(folder, "report.json")["rows"] if row["what"] == "export"}
    assert list(rows) == FORMS
    assert all(row["parity"] == "passed" and row["p50_ms"] > 0 for row in rows.values())
    accuracies = [read(folder, f"accuracy.{form}.json")["accuracy"] for form in FORMS]
    assert accuracies[0] > 0.7
    assert max(abs(accuracies[0] - each) for each in accuracies) <= 0.025


def test_the_report_says_how_int8_was_made(folder: Path) -> None:
    made, for_cpu = (read(folder, f"quantization.{form}.json") for form in ("int8", "int8_cpu"))
    assert made["calibration_rows"] == 128
    assert [layer["name"] for layer in made["layers"]] == ["stages.0.0", "stages.1.0", "classifier"]
    assert [layer["name"] for layer in for_cpu["layers"]] == ["stages.0.0", "stages.1.0", "classifier"]
    assert for_cpu["errors"] != made["errors"]
    page = (folder / "runs/tiny/report.html").read_text()
    assert "INT8 of student · int8</h2>" in page
    assert "INT8 of student · int8_cpu" in page
    assert "stages.1.0" in page
    assert f"128 training rows by {made['method']}" in page


def test_the_report_shows_the_rows_that_a_form_changes_most(folder: Path) -> None:
    parity = read(folder, "parity.json")
    assert parity["format_version"] == 2
    page = (folder / "runs/tiny/report.html").read_text()
    assert re.findall("<h2>Parity of (.*?)</h2>", page) == FORMS[1:]  # onnx differs by rounding alone
    section = page.partition("Parity of int8")[2].partition("</section>")[0]
    worst = parity["formats"]["int8"]["worst_rows"]
    assert re.findall("<b>row ([0-9]+)</b>", section) == [str(each["row_id"]) for each in worst]
    assert section.count('<img src="data:image/png;base64,') == len(worst) == 8
    assert worst[0]["error_over_std"] == parity["formats"]["int8"]["comparison"]["max_error_over_std"]
    assert f"error {worst[0]['error_over_std']:.3g} deviations" in section
    counts = parity["formats"]["int8"]["by_class"]
    assert sum(each["rows"] for each in counts) == parity["formats"]["int8"]["rows"]
    assert sum(each["correct"] for each in counts) == round(
        parity["formats"]["int8"]["comparison"]["accuracy"] * parity["formats"]["int8"]["rows"]
    )


def test_two_formats_are_compared_node_by_node(folder: Path) -> None:
    result = call("verify", folder / "runs/tiny/bundle", "--format", "int8", "--against", "onnx", "--json")
    values = json.loads(result.stdout)["bisection"]["values"]
    assert {each["how"] for each in values} == {"name", "suffix"}
    assert values[-1]["value"] == "logits"
    assert 0 < values[-1]["error"] < 0.3


def test_layers_that_a_tight_gate_sends_back_are_told(folder: Path) -> None:
    recipe = folder / "tight.yaml"
    tight = "{int8: {rows: 128, method: minmax, gate: {max_error_over_std: 0.02}}}"
    text = RECIPE.replace("{int8: {rows: 128, gate: {metric_drop_points: 2.5}}}", tight)
    text = text.replace("    - {int8_cpu: {rows: 128, gate: {metric_drop_points: 2.5}}}\n", "")
    recipe.write_text(text.replace("name: tiny", "name: tight"))
    result = call("run", recipe, "--runs", folder / "runs")
    document = json.loads((folder / "runs/tight/quantization.int8.json").read_text())
    layers = document["layers"]
    assert all(layer["damage"] > 0 for layer in layers)
    kept = [layer["name"] for layer in layers if layer["float_by"] == "gate"]
    if document["result"]["passed"]:
        assert 0 < len(kept) < len(layers)
        assert f"int8: {len(kept)} of 3 layers stay float" in result.stderr
    else:
        assert kept == []
        assert "warning: int8: no choice of layers meets the gate: max error / std is" in result.stderr
    assert "damage alone" in result.stdout
    page = (folder / "runs/tight/report.html").read_text()
    assert "damage alone" in page
    names = [layer["name"] for layer in sorted(layers, key=lambda layer: -layer["damage"])]
    assert re.findall(r"<td>(stages\.[01]\.0|classifier)</td>", page) == names
    assert result.exit_code in (0, 3)


def row(form: str, p50_ms: float) -> Row:
    return Row(
        name=f"student · {form}", what="export", variant="", settings={}, model="mlp", parameters=10, macs=10,
        teachers=(), accuracies=(0.9,), mean=0.9, deviation=None, low=0.85, high=0.95, agreement_with_teacher=None,
        size_bytes=1000, p50_ms=p50_ms, format=form,
    )  # fmt: skip


def test_slower_int8_is_said_first() -> None:
    slower = summary_sentence([row("onnx", 0.010), row("int8", 0.020)], "student")
    said = "INT8 is slower than FP32 here: 20.0 µs a call against 10.0 µs"
    assert slower.startswith(f"{said}; the form for CPUs is int8_cpu. 90.00 % test accuracy")
    both = summary_sentence([row("onnx", 0.010), row("int8", 0.020), row("int8_cpu", 0.005)], "student")
    assert both.startswith(f"{said}. 90.00 %")
    both = summary_sentence([row("onnx", 0.010), row("int8", 0.020), row("int8_cpu", 0.015)], "student")
    assert both.startswith(f"{said}. INT8 for CPUs is slower than FP32: 15.0 µs a call against 10.0 µs. 90.00 %")
    assert summary_sentence([row("onnx", 0.020), row("int8", 0.010)], "student").startswith("90.00 %")


def test_rows_to_judge_by_are_others_where_there_are_enough() -> None:
    calibration, judged = calibration_rows(5000, 512)
    assert (len(calibration), len(judged)) == (512, 1000)
    assert not set(calibration) & set(judged)
    assert (np.diff(calibration) > 0).all()
    calibration, judged = calibration_rows(600, 512)
    assert (len(calibration), len(judged)) == (512, 600)
