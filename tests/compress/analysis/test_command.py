"""`edgefold analyse` and the report's section, through the real command on the bundled digits."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from compress.analysis import record
from compress.pipeline import plans_of
from compress.stages import Settings, Stages

SEVERAL = """\
name: tiny
seeds: [0, 1]
data: {source: digits}
train: {epochs: 1}
stages:
  teacher: {model: {mlp: {hidden: [8]}}, objective: ce}
  student: {model: {mlp: {hidden: [8]}}, teacher: teacher, objective: kl}
"""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def analysis(finished: Any) -> Any:
    """The analysis.json that `edgefold run` has written for its report."""
    return read(finished.results / "analysis.json")


def test_a_run_analyses_every_stage_and_plots_the_deployed_one_and_its_teacher(finished: Any, analysis: Any) -> None:
    (plan,) = plans_of(finished.recipe, None)
    assert (analysis["format_version"], analysis["recipe"], analysis["seed"]) == (1, "tiny", 0)
    assert analysis["class_names"] == ["0/2/4/6/8", "1/3/5/7/9"]
    assert analysis["hidden_names"] == [str(digit) for digit in range(10)]
    assert {name: stage["key"] for name, stage in analysis["stages"].items()} == {
        stage.name: stage.key for stage in plan.stages
    }
    for name, teacher in (("teacher", None), ("student", "teacher")):
        stage = analysis["stages"][name]
        assert (stage["teacher"], stage["rows"], stage["validation"]["rows"]) == (teacher, 359, 144)
        assert sum(stage["reliability"]["counts"]) == 359
        assert len(stage["projections"]["tsne"]["points"]) == 359
        assert len(stage["projections"]["plane"]["corners"]) == 3
        assert stage["transfer"] == {}
    widths = analysis["stages"]["student"]["test"]["missing"]["embedding_distance"]
    assert widths == "the teacher's embedding is 32 wide, the student's 8"
    labels = analysis["stages"]["student"]["test"]["missing"]["effective_label_bits"]
    assert labels.startswith("classes hide 5 labels but have 2 subclasses")


def test_the_figures_are_those_of_the_trained_weights(finished: Any, analysis: Any) -> None:
    (plan,) = plans_of(finished.recipe, None)
    run = Stages(plan, Settings(finished.runs, device="cpu"), lambda event: None)
    run.train()
    with torch.no_grad():
        z = run.model("student")(run.preprocess(run.test_rows.inputs)).logits
    p = z.double().softmax(1).reshape(359, 2, 2).sum(2).numpy()
    values = analysis["stages"]["student"]["test"]["values"]
    labels = run.dataset.test.labels
    assert values["cross_entropy"] == pytest.approx(log_loss(labels, p), rel=1e-5)
    assert values["brier_score"] == pytest.approx(((p - np.eye(2)[labels]) ** 2).sum(1).mean(), rel=1e-5)
    stored = run.artifacts["student"].metrics
    assert values["accuracy"] == stored["test"]["accuracy"]
    assert values["teacher_agreement"] == stored["agreement_with_teacher"]
    assert analysis["stages"]["student"]["validation"]["values"]["accuracy"] == stored["validation"]["accuracy"]


def test_analyse_shows_a_table_and_writes_the_plots_of_every_stage(project: Any) -> None:
    before = read(project.results / "analysis.json")
    result = project.invoke("analyse", project.recipe)
    assert result.exit_code == 0, result.output
    assert "analysing" not in result.stderr  # what the run had found is reused
    rows = {line.strip().split("  ")[0]: line for line in result.stdout.splitlines() if line.strip()}
    student = before["stages"]["student"]["test"]["values"]
    teacher = before["stages"]["teacher"]["test"]["values"]
    assert result.stdout.splitlines()[0].split() == ["teacher", "student"]
    for label, name in (("expected calibration error", "expected_calibration_error"), ("accuracy", "accuracy")):
        assert f"{100 * teacher[name]:.2f}" in rows[label]
        assert f"{100 * student[name]:.2f}" in rows[label]
    assert f"{student['teacher_kl']:.3f}" in rows["KL(teacher ‖ student)"]
    assert "effective label bits" not in rows  # neither stage has any
    assert f"analysis  {project.results / 'analysis.json'}" in result.stdout
    assert read(project.results / "analysis.json") == before
    plots = {path.name for path in (project.results / "analysis").iterdir()}
    kinds = ("reliability", "logits", "tsne-classes", "tsne-hidden", "plane")
    assert plots == {f"{stage}.{kind}.svg" for stage in ("teacher", "student") for kind in kinds}
    assert all((project.results / "analysis" / name).read_text().startswith("<svg") for name in plots)


def test_the_same_analysis_gives_the_same_bytes(project: Any) -> None:
    path = project.results / "analysis.json"
    before = path.read_bytes()
    path.unlink()
    result = project.invoke("analyse", project.recipe)
    assert result.exit_code == 0, result.output
    assert "analysing student" in result.stderr
    assert path.read_bytes() == before


def test_one_stage_without_plots_then_a_probe_of_other_data(empty_project: Any) -> None:
    arguments = ("analyse", empty_project.recipe, "--stage", "teacher", "--no-plots", "--json")
    result = empty_project.invoke(*arguments)
    assert result.exit_code == 0, result.output
    (variant,) = json.loads(result.stdout)
    (run,) = variant["runs"]
    assert run["path"] == str(empty_project.results / "analysis.json")
    assert list(run["stages"]) == list(variant["summary"]) == ["teacher"]
    assert run["stages"]["teacher"]["projections"] is None
    assert "student  epoch" not in result.stderr
    assert not (empty_project.results / "analysis").exists()

    result = empty_project.invoke(*arguments, "--transfer", "digits", "--transfer-rows", 200)
    assert result.exit_code == 0, result.output
    assert "fitting a linear probe of teacher on digits" in result.stderr
    stage = read(empty_project.results / "analysis.json")["stages"]["teacher"]
    assert stage["test"] == run["stages"]["teacher"]["test"]
    ((key, probe),) = stage["transfer"].items()
    assert '"train_rows": 200' in key
    assert (probe["data"], probe["classes"], probe["train_rows"], probe["test_rows"]) == ("digits", 10, 200, 359)
    # Ten digits from a teacher that has seen two classes: far from chance, which is a tenth.
    assert probe["accuracy"] > 0.5
    assert "linear probe, digits" in empty_project.invoke("analyse", empty_project.recipe, "--no-plots").stdout


def test_several_seeds_are_a_mean_and_a_deviation(empty_project: Any) -> None:
    result = empty_project.invoke("analyse", empty_project.write(SEVERAL), "--no-plots", "--json")
    assert result.exit_code == 0, result.output
    (variant,) = json.loads(result.stdout)
    documents = [read(empty_project.results / f"seed-{seed}" / "analysis.json") for seed in (0, 1)]
    values = [document["stages"]["student"]["test"]["values"]["teacher_kl"] for document in documents]
    figure = variant["summary"]["student"]["teacher_kl"]
    assert figure == {
        "mean": pytest.approx(statistics.fmean(values)),
        "deviation": pytest.approx(statistics.stdev(values)),
    }
    assert variant["summary"]["teacher"]["teacher_kl"] == {"mean": None, "deviation": None}
    # Equal widths: the distance of embeddings is there, and hidden labels are not.
    student = documents[0]["stages"]["student"]["test"]
    assert student["values"]["embedding_distance"] > 0
    assert student["missing"]["nmi_hidden"] == "the recipe does not regroup classes"
    table = empty_project.invoke("analyse", empty_project.recipe, "--no-plots").stdout
    assert f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}" in table


def test_a_stage_that_was_trained_anew_is_analysed_anew_and_the_others_are_kept(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(project.results / "analysis.json")["stages"]
    project.edit("hidden: [8]", "hidden: [9]")
    measured: list[str] = []
    measure = record._measured
    monkeypatch.setattr(record, "_measured", lambda outputs, name: measured.append(name) or measure(outputs, name))
    result = project.invoke("analyse", project.recipe, "--no-plots")
    assert result.exit_code == 0, result.output
    after = read(project.results / "analysis.json")["stages"]
    assert measured == ["student"]
    assert after["teacher"] == before["teacher"]
    assert after["student"]["key"] != before["student"]["key"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format_version": 0}', '{"format_version": 1, "stages": 3}'])
def test_a_damaged_analysis_is_made_again(project: Any, damage: str) -> None:
    path = project.results / "analysis.json"
    before = read(path)["stages"]["teacher"]["test"]
    path.write_text(damage)
    result = project.invoke("analyse", project.recipe, "--stage", "teacher", "--no-plots")
    assert result.exit_code == 0, result.output
    assert read(path)["stages"]["teacher"]["test"] == before


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["--transfer", "cifra100"], "unknown data set 'cifra100'", "Did you mean 'cifar100'?"),
        (["--transfer-rows", "5"], "--transfer-rows says nothing without --transfer", "Add --transfer DATA."),
        (["--stage", "techer"], "no stage 'techer'", "Did you mean 'teacher'?"),
        (
            ["--transfer", "digits", "--transfer-rows", "2"],
            "a linear probe on digits has 2 train rows",
            "--transfer-rows",
        ),
    ],
)
def test_what_is_refused(project: Any, arguments: list[str], message: str, remedy: str) -> None:
    result = project.invoke("analyse", project.recipe, "--no-plots", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert remedy in result.stderr
    assert "Traceback" not in result.output


def test_transfer_data_of_another_form_is_refused_before_anything_is_trained(
    empty_project: Any, image_folder: Callable[..., Path]
) -> None:
    image_folder(empty_project.folder / "pets")
    data = f"folder: {{path: {empty_project.folder / 'pets'}, size: [4, 4], mode: rgb}}"
    result = empty_project.invoke("analyse", empty_project.recipe, "--transfer", data)
    assert result.exit_code == 2, result.output
    assert "inputs of folder are" in result.stderr
    assert "4×4×3" in result.stderr
    assert "8×8×1" in result.stderr
    assert not (empty_project.runs / "stages").exists()


def test_weights_that_give_nan_are_refused(
    empty_project: Any, untrained_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Stages.model

    def broken(run: Stages, name: str) -> Any:
        found = model(run, name)
        torch.nn.init.constant_(found.classifier.bias, float("nan"))
        return found

    empty_project.invoke("train", empty_project.write(untrained_text))
    monkeypatch.setattr(Stages, "model", broken)
    result = empty_project.invoke("analyse", empty_project.recipe)
    assert result.exit_code == 1
    assert "stage 'plain': logits of 359 of 359 rows are not finite" in result.stderr
    assert not (empty_project.results / "analysis.json").exists()
