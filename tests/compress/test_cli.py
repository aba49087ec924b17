"""The command line: exit codes, results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compress import pipeline
from compress.cli import main
from compress.library import find_recipe, shipped_recipes
from compress.pipeline import plans_of
from runtime import measure

VERBS = (
    "run",
    "check",
    "plan",
    "train",
    "export",
    "verify",
    "bench",
    "accuracy",
    "report",
    "analyse",
    "list",
    "doctor",
)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_error(result: Result, exit_code: int) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.output


@pytest.fixture
def short_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = measure.BenchPlan(quick=True, seconds=0.05, calls=662, warm_up_seconds=0.02, warm_up_most_seconds=0.1)
    monkeypatch.setattr(measure, "QUICK", plan)


# run


def test_run_shows_the_plan_then_a_line_an_epoch_then_the_table(finished: Any) -> None:
    progress = (finished.folder / "stderr.txt").read_text()
    results = (finished.folder / "stdout.txt").read_text()
    lines = progress.splitlines()
    assert lines[0].strip() == "tiny: plan"
    assert progress.index("to train") < progress.index("epoch 1/2")
    for stage in ("teacher", "student"):
        epochs = [line for line in lines if re.match(rf"{stage}  epoch [12]/2  ", line)]
        assert len(epochs) == 2
        assert all("rows/s" in line and "validation" in line and "ce " in line for line in epochs)
        assert epochs[0].rstrip().endswith("left")
        assert epochs[1].rstrip().endswith("done")
    assert "measuring latency on this machine: onnx.local" in progress
    assert "epoch" not in results

    header, *table = results.splitlines()
    for column in (
        "parameters",
        "test accuracy",
        "95 % interval",
        "agrees with teacher",
        "size",
        "p50",
        "p90",
        "parity",
    ):
        assert column in header
    assert [line.split("  ")[0] for line in table[:3]] == ["teacher", "student", "student · onnx"]
    assert "passed" in table[2]
    assert "kB" in table[2]
    assert f"report  {finished.results / 'report.html'}" in results
    assert f"next    edgefold bench {finished.bundle} --threads 2" in results


def test_run_again_says_reused_and_gives_the_same_table(project: Any) -> None:
    result = project.invoke("run", project.recipe)
    assert result.exit_code == 0
    assert result.stderr.count("reused") == 2
    assert "epoch" not in result.stderr.replace("epochs", "")
    first = (project.folder / "stdout.txt").read_text().splitlines()
    assert result.stdout.splitlines()[:4] == first[:4]


def test_run_as_json_is_json_and_nothing_else(project: Any) -> None:
    result = project.invoke("run", project.recipe, "--json")
    assert result.exit_code == 0
    outcome = json.loads(result.stdout)
    assert [row["name"] for row in outcome["rows"]] == ["teacher", "student", "student · onnx"]
    assert outcome["missed"] == []
    assert outcome["report"] == str(project.results / "report.html")
    assert "tiny: plan" in result.stderr


def test_a_path_with_brackets_is_printed_as_it_is(empty_project: Any, untrained_text: str) -> None:
    recipe = empty_project.write(untrained_text)
    runs = empty_project.folder / "runs [new] :smile:"
    result = invoke("run", recipe, "--runs", runs)
    assert result.exit_code == 0, result.output
    assert f"report  {runs / 'tiny' / 'report.html'}" in result.stdout


# train, export, report


def test_train_stops_before_export_and_names_the_next_command(empty_project: Any) -> None:
    result = empty_project.invoke("train", empty_project.recipe, "--stage", "teacher")
    assert result.exit_code == 0
    assert "teacher  epoch 2/2" in result.stderr
    assert "student  epoch" not in result.stderr
    assert not empty_project.bundle.exists()
    (command,) = re.findall(r"^next    edgefold run (.*)$", result.stdout, re.MULTILINE)
    assert find_recipe(command.split(" --")[0]) == empty_project.recipe


@pytest.mark.parametrize(("verb", "rows"), [("train", 3), ("export", 3), ("report", 3)])
def test_verbs_on_a_finished_run_reuse_it_and_print_json(project: Any, verb: str, rows: int) -> None:
    result = project.invoke(verb, project.recipe, "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert len(outcome["rows"]) == rows
    assert (outcome["report"] is None) is (verb != "report")
    assert "epoch" not in result.stderr.replace("epochs", "")


def test_report_writes_the_page_again(project: Any) -> None:
    page = project.results / "report.html"
    before = page.read_bytes()
    page.unlink()
    result = project.invoke("report", project.recipe)
    assert result.exit_code == 0
    assert page.read_bytes() == before


# verify


def test_verify_of_a_recipe_and_of_its_bundle(project: Any) -> None:
    for target in (project.recipe, project.bundle):
        result = project.invoke("verify", target)
        assert result.exit_code == 0, result.output
        assert "onnx" in result.stdout
        assert "passed" in result.stdout
        (form,) = json.loads(project.invoke("verify", target, "--json").stdout)
        assert (form["format"], form["passed"]) == ("onnx", True)
        assert form["comparison"]["max_error_over_std"] < 1e-4
        assert form["rows"] == (359 if target == project.recipe else 256)


def test_verify_of_a_recipe_that_exports_nothing(empty_project: Any, untrained_text: str) -> None:
    result = empty_project.invoke("verify", empty_project.write(untrained_text))
    assert_one_error(result, 2)
    assert "exports nothing" in result.stderr
    assert "export: {stage: ...}" in result.stderr


# bench, accuracy


@pytest.mark.usefixtures("short_bench")
def test_bench_of_a_bundle_and_of_a_recipe(finished: Any, tmp_path: Path) -> None:
    for target in (finished.bundle, finished.recipe):
        result = finished.invoke("bench", target, "--quick", "--threads", 2, "--batch", 8)
        assert result.exit_code == 0, result.output
        assert "p50" in result.stdout
    output = tmp_path / "bench.json"
    result = finished.invoke("bench", finished.bundle, "--quick", "--json", "--output", output)
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["quick"] is True
    assert {"p50", "p90", "p99"} <= set(measured["latency"]["percentiles"])
    assert json.loads(output.read_text()) == measured
    assert str(output) in result.stderr


def test_accuracy_takes_the_runs_test_rows_and_the_bundles_samples_elsewhere(finished: Any, tmp_path: Path) -> None:
    result = finished.invoke("accuracy", finished.recipe, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    report = json.loads((finished.results / "report.json").read_text())
    assert measured["total"] == 359
    assert measured["accuracy"] == report["rows"][1]["mean"]
    low, high = measured["interval_95"]
    assert (low, high) == (report["rows"][1]["low"], report["rows"][1]["high"])

    alone = shutil.copytree(finished.bundle, tmp_path / "alone")
    assert json.loads(invoke("accuracy", alone, "--json").stdout)["total"] == 256
    assert json.loads(invoke("accuracy", alone, "--json", "--limit", 10).stdout)["total"] == 10
    assert "%" in invoke("accuracy", alone).stdout


@pytest.mark.parametrize("verb", ["bench", "accuracy"])
def test_a_format_that_the_bundle_does_not_have(finished: Any, verb: str) -> None:
    result = finished.invoke(verb, finished.bundle, "--format", "onxx")
    assert_one_error(result, 2)
    assert "Did you mean 'onnx'?" in result.stderr


@pytest.mark.parametrize("verb", ["bench", "accuracy"])
def test_a_recipe_that_was_not_run_says_what_to_run(empty_project: Any, verb: str) -> None:
    result = empty_project.invoke(verb, empty_project.recipe)
    assert_one_error(result, 2)
    assert f"Run `edgefold run {empty_project.recipe}` first." in result.stderr


@pytest.mark.parametrize("verb", ["bench", "accuracy"])
def test_of_several_bundles_one_must_be_named(empty_project: Any, verb: str) -> None:
    for seed in (0, 1):
        folder = empty_project.results / f"seed-{seed}" / "bundle"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    result = empty_project.invoke(verb, empty_project.recipe)
    assert_one_error(result, 2)
    assert "has 2 bundles" in result.stderr
    assert str(empty_project.results / "seed-1" / "bundle") in result.stderr


# plan, check, list, doctor


def test_plan_shows_stages_and_their_state(project: Any) -> None:
    (plan,) = plans_of(project.recipe, None)
    document = json.loads(project.invoke("plan", project.recipe, "--json").stdout)
    assert document["recipe"] == "tiny"
    assert [(stage["stage"], stage["key"], stage["state"]) for stage in document["stages"]] == [
        (stage.name, stage.key, "reused") for stage in plan.stages
    ]
    assert document["stages"][1]["resolved"]["parents"] == {
        "teachers": [plan.stage("teacher").key],
        "init_from": None,
    }
    project.edit("hidden: [8]", "hidden: [9]")
    result = project.invoke("plan", project.recipe)
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert rows["teacher"].rstrip().endswith("reused")
    assert rows["student"].rstrip().endswith("to train")
    assert "kl + ce of teacher" in rows["student"]
    assert "2×2" in rows["student"]


def test_check_without_a_name_checks_all_that_come_along() -> None:
    result = invoke("check")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == len(shipped_recipes())
    found = json.loads(invoke("check", "--json").stdout)
    assert [(Path(entry["recipe"]), entry["error"]) for entry in found] == [
        (path, None) for path in shipped_recipes().values()
    ]
    runs = {Path(entry["recipe"]).stem: entry["runs"] for entry in found}
    # One seed; three seeds; three seeds of six pairs.
    assert (runs["quickstart"], runs["mnist-2x5"], runs["srrl-cifar10"]) == (1, 3, 18)


def test_check_shows_the_problems_of_every_file(empty_project: Any) -> None:
    good = empty_project.recipe
    bad = [
        empty_project.write(empty_project.text.replace("epochs: 2", "epochs: two"), "one.yaml"),
        empty_project.write(empty_project.text.replace("objective: [kl, ce]", "objective: [lk, ce]"), "two.yaml"),
    ]
    result = invoke("check", good, *bad)
    assert_one_error(result, 2)
    assert f"{good}: ok, 2 stages, 1 run\n" in result.stdout
    for path, part in zip(bad, ("came 'two', expected a whole number", "unknown objective 'lk'"), strict=True):
        assert str(path) in result.stderr
        assert part in result.stderr
    as_json = invoke("check", good, *bad, "--json")
    assert as_json.exit_code == 2
    assert [entry["error"] is None for entry in json.loads(as_json.stdout)] == [True, False, False]


@pytest.mark.parametrize(
    ("section", "name"),
    [("objectives", "subclass_auxiliary"), ("models", "mnist_cnn"), ("datasets", "cifar100"),
     ("recipes", "subclass-distillation/mnist-2x5")],
)  # fmt: skip
def test_list_shows_one_section_or_all_four(section: str, name: str) -> None:
    result = invoke("list", section)
    assert result.exit_code == 0
    assert name in result.stdout
    assert json.loads(invoke("list", section, "--json").stdout).keys() == {section}
    everything = json.loads(invoke("list", "--json").stdout)
    assert list(everything) == ["objectives", "models", "datasets", "recipes"]
    assert name in {entry["name"] for entry in everything[section]}
    assert all(entry["summary"] for entry in everything[section])
    assert name in invoke("list").stdout


def test_list_shows_options_with_their_defaults() -> None:
    everything = json.loads(invoke("list", "--json").stdout)
    (kl,) = [entry for entry in everything["objectives"] if entry["name"] == "kl"]
    assert "tau: 4.0" in kl["options"]
    assert "tau: 4.0" in invoke("list", "objectives").stdout


def test_doctor_reports_each_package_engine_and_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data [set]").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEFOLD_DATA", "data [set]")
    findings = {finding["what"]: finding for finding in json.loads(invoke("doctor", "--json").stdout)}
    assert findings["torch (training and export)"]["usable"] is True
    assert findings["engine onnxruntime"]["usable"] is True
    assert "CPUExecutionProvider" in findings["engine onnxruntime"]["found"]
    assert {"python", "device cpu", "device cuda"} <= set(findings)
    assert findings["EDGEFOLD_DATA"]["found"] == "data [set]"
    result = invoke("doctor")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.search(r"ok\s+EDGEFOLD_DATA\s+data \[set\]", result.stdout)


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    findings = {finding["what"]: finding for finding in json.loads(invoke("doctor", "--json").stdout)}
    assert findings["pyarrow (parquet data)"] == {
        "what": "pyarrow (parquet data)",
        "usable": False,
        "found": "not installed",
        "remedy": "pip install 'edgefold[train]'",
    }
    assert "pip install 'edgefold[train]'" in invoke("doctor").stdout


def test_doctor_says_which_custom_operators_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    what = "custom ops (packed binary models)"
    monkeypatch.setenv("EDGEFOLD_OPS_LIBRARY", str(tmp_path / "none.so"))
    finding = next(each for each in json.loads(invoke("doctor", "--json").stdout) if each["what"] == what)
    assert finding["usable"] is False
    assert "none.so', which is no file" in finding["found"]
    assert "C++17 compiler" in finding["remedy"]


# What goes wrong


@pytest.mark.parametrize(
    "verb", ["run", "train", "export", "verify", "plan", "report", "analyse", "bench", "accuracy", "check"]
)
def test_an_unknown_recipe_names_the_nearest(empty_project: Any, verb: str) -> None:
    result = empty_project.invoke(verb, "quickstrat")
    assert_one_error(result, 2)
    assert "no recipe 'quickstrat'" in result.stderr
    assert "Did you mean 'quickstart'?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "mps", "meta", "cuda:99"])
def test_an_unknown_or_absent_device_is_refused(project: Any, device: str) -> None:
    result = project.invoke("run", project.recipe, "--device", device)
    assert_one_error(result, 2)
    assert "evice" in result.stderr


def test_an_unknown_stage_is_refused(project: Any) -> None:
    result = project.invoke("train", project.recipe, "--stage", "techer")
    assert_one_error(result, 2)
    assert "Did you mean 'teacher'?" in result.stderr


def test_unknown_verbs_and_options_are_usage_errors() -> None:
    for arguments in (
        ["rnu"],
        ["run"],
        ["run", "quickstart", "--nope"],
        ["list", "colours"],
        ["bench", "x", "--threads", "0"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_an_interrupt_ends_with_130(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "summarise", interrupt)
    result = project.invoke("run", project.recipe)
    assert result.exit_code == 130
    assert "interrupted; `edgefold run` continues where this stopped" in result.stderr
    assert "Traceback" not in result.output
    monkeypatch.undo()
    assert project.invoke("train", project.recipe).exit_code == 0  # the lock was given back


def test_a_disk_that_fills_up_is_one_message(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "summarise", fill_up)
    result = project.invoke("run", project.recipe)
    assert result.exit_code == 1
    assert result.stderr.endswith("error: the disk is full\nFree space and run it again; finished stages are kept.\n")
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    result = invoke("--debug", "run", "quickstrat", "--runs", tmp_path)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "RecipeError" in result.stderr
    assert "error: no recipe 'quickstrat'" in result.stderr


def test_a_bundle_is_found_by_its_recipe_without_torch(finished: Any) -> None:
    # Loaded beside the engine it would take its memory and disturb its threads.
    arguments = ["bench", str(finished.recipe), "--runs", str(finished.runs), "--quick"]
    program = f"import sys; sys.modules['torch'] = None; from compress.cli import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: onnx")


def test_a_recipe_whose_name_cannot_be_read_is_refused_as_a_whole(finished: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("name: ../outside\ndata: {source: digits}\nstages: {}\n")
    result = finished.invoke("bench", recipe)
    assert result.exit_code == 2
    assert "name" in result.stderr
    assert "stages" in result.stderr


def test_a_missing_extra_says_what_to_install() -> None:
    program = "import sys; sys.modules['torch'] = None; from compress.cli import main; main(['check'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: torch is not installed\npip install 'edgefold[train]'\n"


def test_the_version_is_the_distributions() -> None:
    assert importlib.metadata.version("edgefold") in invoke("--version").stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_verb(verb: str) -> None:
    assert verb in invoke("--help").stdout
    assert invoke(verb, "-h").exit_code == 0
