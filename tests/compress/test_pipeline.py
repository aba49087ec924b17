"""A recipe from end to end: the bundle, the proof that it is the model, what gates do, what is measured again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import variant_run
from compress.pipeline import plans_of
from compress.recipe import LocalSpec
from compress.stages import Settings
from compress.variant_run import VariantRun
from export.fold import fold_logits
from runtime.bundle import open_bundle
from runtime.errors import GateError, TrainingError, UsageError
from runtime.measure import BenchPlan
from runtime.own_process import run_in_own_process
from runtime.processes import Candidate
from runtime.runners import open_runner

BUNDLE_FILES = {"MODEL_CARD.md", "manifest.json", "model.onnx", "samples.npz", "labels.txt", "checksums.sha256"}
EXPECT = "expect: {{test_accuracy_percent: {published}, {tolerance}, source: table 1}}\n"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def bundle_bytes(project: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in project.bundle.iterdir()}


def opened(project: Any) -> VariantRun:
    """The finished run of a project, with its stages found again."""
    (plan,) = plans_of(project.recipe, None)
    run = VariantRun(plan, Settings(project.runs, None, "cpu"), lambda event: None)
    run.train()
    return run


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, finished: Any) -> list[tuple[BenchPlan, tuple[str, ...]]]:
    """Instead of measuring: hands out the finished run's bench.json, and keeps plan and options of each candidate."""
    kept: list[tuple[BenchPlan, tuple[str, ...]]] = []
    document = read(finished.results / "bench.onnx.local.json")
    del document["settings"]

    def fake(candidates: Sequence[Candidate], plan: BenchPlan, **_: Any) -> list[dict[str, Any]]:
        kept.extend((plan, each.options) for each in candidates)
        return [
            {
                **document,
                "quick": plan.quick,
                "bundle": {**document["bundle"], "checksum": open_bundle(each.bundle).checksum},
            }
            for each in candidates
        ]

    monkeypatch.setattr(variant_run, "measured_in_turn", fake)
    return kept


# What a finished run has made


def test_a_run_leaves_everything_that_the_design_names(finished: Any) -> None:
    assert {path.name for path in finished.bundle.iterdir()} == BUNDLE_FILES
    made = {path.name for path in finished.results.iterdir()}
    assert {"run.json", "parity.json", "accuracy.onnx.json", "bench.onnx.local.json"} <= made
    assert {"report.html", "report.json"} <= made
    assert not list(finished.runs.rglob("*.part"))
    (plan,) = plans_of(finished.recipe, None)
    run = read(finished.results / "run.json")
    assert run["stages"] == {stage.name: stage.key for stage in plan.stages}
    assert (run["recipe"], run["seed"], run["settings"]) == ("tiny", 0, {})


def test_the_bundle_says_what_was_trained(finished: Any) -> None:
    bundle = open_bundle(finished.bundle)
    (plan,) = plans_of(finished.recipe, None)
    assert (bundle.name, bundle.stage, bundle.recipe_key) == ("tiny", "student", plan.key)
    assert (bundle.classes, bundle.subclasses, tuple(bundle.batch_sizes)) == (2, 2, (1, 8))
    assert tuple(bundle.class_names) == ("0/2/4/6/8", "1/3/5/7/9")
    test = opened(finished).artifacts["student"].metrics["test"]
    assert bundle.metrics == {"test_accuracy": test["accuracy"], "test_rows": test["total"]}
    samples = bundle.samples()
    assert len(samples.inputs) == 256
    assert samples.inputs.dtype == np.uint8


def test_the_samples_are_real_test_rows_with_torchs_logits(finished: Any) -> None:
    run, samples = opened(finished), open_bundle(finished.bundle).samples()
    test = run.dataset.test
    position = {row: i for i, row in enumerate(test.row_ids.tolist())}
    rows = [position[row] for row in samples.row_ids.tolist()]
    np.testing.assert_array_equal(samples.inputs, test.inputs[rows])
    np.testing.assert_array_equal(samples.labels, test.labels[rows])
    with torch.no_grad():
        logits = run.model("student")(run.preprocess(torch.from_numpy(samples.inputs))).logits
    np.testing.assert_allclose(samples.logits, fold_logits(logits, 2).numpy(), rtol=1e-5, atol=1e-6)


def test_every_batch_size_of_the_profile_passes_the_fp32_gate(finished: Any) -> None:
    parity = read(finished.results / "parity.json")
    assert parity["passed"] is True
    (onnx,) = parity["formats"].values()
    assert (onnx["format"], onnx["rows"], onnx["passed"]) == ("onnx", 359, True)
    assert onnx["gate"] == {"max_error_over_std": 1e-4, "top1_agreement": 1.0, "metric_drop_points": 0.0}
    assert list(onnx["by_batch_size"]) == ["1", "8"]
    for compared in onnx["by_batch_size"].values():
        assert compared["passed"] is True
        assert compared["max_error_over_std"] < 1e-4
        assert compared["top1_agreement"] == 1.0
        assert compared["reference_std"] > 0.1
    assert parity["bundle"]["checksum"] == open_bundle(finished.bundle).checksum


def test_the_runtimes_accuracy_is_torchs_to_the_last_image(finished: Any) -> None:
    run, measured = opened(finished), read(finished.results / "accuracy.onnx.json")
    test = run.artifacts["student"].metrics["test"]
    assert measured["rows_unlike_torch"] == []
    assert (measured["correct"], measured["total"]) == (test["correct"], test["total"]) == (test["correct"], 359)
    with torch.no_grad():
        logits = run.model("student")(run.preprocess(torch.from_numpy(run.dataset.test.inputs))).logits
    predicted = fold_logits(logits, 2).argmax(1).tolist()
    row_ids = run.dataset.test.row_ids.tolist()
    assert measured["predictions"] == {str(row): label for row, label in zip(row_ids, predicted, strict=True)}


def test_rows_on_which_the_export_differs_from_torch_are_named(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.results / "accuracy.onnx.json").unlink()
    run = opened(project)
    true_logits = run._reference_logits()
    other = true_logits.copy()
    other[[3, 100]] = -other[[3, 100]]
    monkeypatch.setattr(run, "_reference_logits", lambda: other)
    row_ids = run.dataset.test.row_ids
    assert run.accuracy("onnx")["rows_unlike_torch"] == [int(row_ids[3]), int(row_ids[100])]


def test_folded_probabilities_are_the_summed_subclass_probabilities(finished: Any) -> None:
    bundle = open_bundle(finished.bundle)
    assert [output.name for output in bundle.outputs] == ["logits", "subclass_probabilities"]
    inputs = opened(finished).dataset.test.inputs
    with open_runner(bundle) as runner:
        outputs = runner.infer_outputs(inputs)
    subclasses = outputs["subclass_probabilities"]
    assert subclasses.shape == (359, 4)
    exponential = np.exp(outputs["logits"].astype(np.float64))
    probabilities = exponential / exponential.sum(1, keepdims=True)
    np.testing.assert_allclose(subclasses.reshape(-1, 2, 2).sum(2), probabilities, atol=1e-6)
    np.testing.assert_allclose(subclasses.sum(1), 1.0, atol=1e-6)
    # Both subclasses of a class take part, or the sum would show nothing.
    assert (subclasses.mean(0) > 0.01).all()


def test_two_independent_runs_give_the_same_bytes(finished: Any, empty_project: Any) -> None:
    outcome, _ = empty_project.run(until="export")
    assert bundle_bytes(empty_project) == bundle_bytes(finished)
    assert outcome.missed == ()
    assert outcome.report is None


# Gates


def test_a_failed_parity_gate_ends_with_exit_code_3_and_keeps_the_files(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle_bytes(project)
    (project.results / "parity.json").unlink()
    true_logits = VariantRun._reference_logits
    with monkeypatch.context() as patch:
        patch.setattr(VariantRun, "_reference_logits", lambda run: true_logits(run) + 0.5)
        result = project.invoke("run", project.recipe)
    assert result.exit_code == 3
    assert result.stderr.count("error:") == 1
    assert "format onnx (fp32) misses parity gates on 359 rows" in result.stderr
    assert "batch 8: max error / std is" in result.stderr
    assert f"The files are kept in {project.results}." in result.stderr
    assert "Traceback" not in result.output
    parity = read(project.results / "parity.json")
    assert (parity["passed"], parity["formats"]["onnx"]["passed"]) == (False, False)
    assert bundle_bytes(project) == before
    assert "failed" in result.stdout
    assert (project.results / "report.html").exists()
    (row,) = [row for row in read(project.results / "report.json")["rows"] if row["what"] == "export"]
    assert row["parity"] == "failed"

    # A failed comparison is not kept: with the cause gone the next run compares again and passes.
    outcome, _ = project.run()
    assert outcome.missed == ()
    assert read(project.results / "parity.json")["passed"] is True


def test_verify_of_a_recipe_fails_with_exit_code_3_too(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.results / "parity.json").unlink()
    true_logits = VariantRun._reference_logits
    monkeypatch.setattr(VariantRun, "_reference_logits", lambda run: -true_logits(run))
    result = project.invoke("verify", project.recipe)
    assert result.exit_code == 3
    assert "FAILED" in result.stdout
    assert "top-1 agreement is 0.00 %" in result.stderr


@pytest.mark.parametrize(
    ("published", "tolerance", "exit_code"),
    [
        ("{ours}", "within: 0.01", 0),
        ("50", "no_worse_by: 0.0", 0),
        ("50", "within: 1.5", 3),
        ("100", "no_worse_by: 0.1", 3),
    ],
)
def test_a_published_number_sets_the_exit_code(project: Any, published: str, tolerance: str, exit_code: int) -> None:
    before = bundle_bytes(project)
    test = opened(project).artifacts["student"].metrics["test"]
    ours = 100 * test["correct"] / test["total"]
    project.write(project.text + EXPECT.format(published=published.format(ours=ours), tolerance=tolerance))
    result = project.invoke("run", project.recipe, "--json")
    assert result.exit_code == exit_code, result.stderr
    outcome = json.loads(result.stdout)
    expectations = {row["name"]: row["expectation"] for row in outcome["rows"]}
    assert expectations["teacher"] is None
    assert expectations["student"]["passed"] is (exit_code == 0)
    assert bundle_bytes(project) == before
    assert Path(outcome["report"]).exists()
    if exit_code:
        (message,) = outcome["missed"]
        bound = tolerance.replace("_", " ").replace(":", "")
        assert message == f"student: test accuracy % is {ours:.2f}, expected {published} ({bound}; table 1)"
        assert message in result.stderr
        assert result.stderr.count("error:") == 1
    else:
        assert outcome["missed"] == []


def test_an_expectation_of_an_earlier_stage_is_judged_as_well(project: Any) -> None:
    project.edit(
        "objective: [ce, subclass_auxiliary]",
        "objective: [ce, subclass_auxiliary]\n    expect: {test_error_percent: 0, no_worse_by: 1, source: nowhere}",
    )
    outcome, narration = project.run(until="train")
    assert narration.trained == []
    with pytest.raises(GateError, match=r"teacher: test error % is \d+\.\d\d, expected 0") as caught:
        outcome.require_gates()
    assert caught.value.exit_code == 3


# Several seeds, and no benchmark


def test_seeds_give_mean_and_sample_standard_deviation(project: Any) -> None:
    text = project.text.replace("name: tiny", "name: seeds\nseeds: [0, 1]").split("benchmark:")[0]
    outcome, narration = project.run(project.write(text, "seeds.yaml"))
    assert narration.trained == ["teacher", "student"]  # of seed 1; seed 0 is that of tiny.yaml
    folder = project.runs / "seeds"
    assert read(folder / "seed-0" / "run.json")["stages"] == read(project.results / "run.json")["stages"]
    tests = [
        read(project.runs / "stages" / read(folder / f"seed-{seed}" / "run.json")["stages"]["student"] / "stage.json")[
            "metrics"
        ]["test"]
        for seed in (0, 1)
    ]
    one, other = (test["correct"] / test["total"] for test in tests)
    assert one != other
    rows = {row.name: row for row in outcome.rows}
    assert list(rows) == ["teacher", "student", "student · onnx"]
    for row in (rows["student"], rows["student · onnx"]):
        assert row.accuracies == (one, other)
        assert row.mean == pytest.approx((one + other) / 2)
        assert row.deviation == pytest.approx(abs(one - other) / 2**0.5)
        assert row.deviation == pytest.approx(statistics.stdev([one, other]))
        assert row.low < row.mean < row.high
    assert rows["student · onnx"].parity == "passed"
    assert rows["student · onnx"].p50_ms is None
    for seed in (0, 1):
        assert {path.name for path in (folder / f"seed-{seed}" / "bundle").iterdir()} == BUNDLE_FILES
        assert read(folder / f"seed-{seed}" / "accuracy.onnx.json")["rows_unlike_torch"] == []
    assert outcome.report == folder / "report.html"
    page = outcome.report.read_text()
    assert f"{100 * rows['student'].mean:.2f} % ± {100 * rows['student'].deviation:.2f}" in page
    assert "seeds 0, 1" in page


# What is measured again, and what is not


def test_a_second_run_measures_nothing_again(project: Any, measured: list[Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.results.glob("*.json")}
    before.pop(project.results / "report.json")
    before.pop(project.results / "run.json")
    _, narration = project.run()
    assert (measured, narration.events) == ([], [])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_full_run_after_a_quick_one_measures_in_full(project: Any, measured: list[Any]) -> None:
    project.edit("[{local: {quick: true}}]", "[local]")
    project.run(quick=True)
    outcome, _ = project.run(quick=False)
    assert [plan.quick for plan, _ in measured] == [False]
    assert "quick" not in outcome.rows[-1].latency_note
    project.run(quick=True)  # a full one is as good
    assert len(measured) == 1


def test_each_target_of_a_recipe_keeps_its_own_measurement(project: Any, measured: list[Any]) -> None:
    project.edit("[{local: {quick: true}}]", "[local, {local: {threads: 2}}]")
    project.run()
    assert [options[1] for _, options in measured] == ["--threads=1", "--threads=2"]
    files = list(project.results.glob("bench.onnx.*.json"))
    assert {read(file)["settings"]["threads"] for file in files} == {1, 2}
    project.run()
    assert [options[1] for _, options in measured] == ["--threads=1", "--threads=2"]


def test_a_run_killed_right_after_the_device_side_wrote_goes_on(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The device side's file is whole by then, but without what this side adds to it.
    path, key = project.results / "accuracy.onnx.json", "rows_unlike_torch"
    before = read(path)
    path.unlink()

    def write(verb: str, *arguments: object) -> None:
        output = Path(str(arguments[arguments.index("--output") + 1]))
        output.write_text(json.dumps({name: value for name, value in before.items() if name != key}))

    def write_and_die(verb: str, *arguments: object) -> None:
        write(verb, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(variant_run, "run_in_own_process", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            project.run()
    monkeypatch.setattr(variant_run, "run_in_own_process", write)
    project.run()
    assert read(path) == before
    assert not list(project.results.glob(".*.part"))


def test_a_truncated_measurement_is_made_again(project: Any, measured: list[Any]) -> None:
    path = project.results / "bench.onnx.local.json"
    path.write_bytes(path.read_bytes()[:1000])
    project.run()
    assert [options[0] for _, options in measured] == ["--format=onnx"]
    assert read(path)["latency"]["calls"] > 0


@pytest.mark.parametrize("file", sorted(BUNDLE_FILES))
def test_a_damaged_bundle_is_written_again_with_a_warning(
    project: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    before = bundle_bytes(project)
    # The serialised model is taken from the bundle: exporting five times would only cost time.
    monkeypatch.setattr(variant_run, "onnx_from_graph", lambda *graph, metadata: before["model.onnx"])
    data = bytearray(before[file])
    data[len(data) // 2] ^= 1
    (project.bundle / file).write_bytes(data)
    _, narration = project.run(until="verify")
    (warning,) = narration.warnings
    assert str(project.bundle) in warning
    assert bundle_bytes(project) == before


def test_results_of_another_version_of_the_recipe_are_not_shown_as_its_own(project: Any) -> None:
    old_rows = read(project.results / "report.json")["rows"]
    # Same name, other classes and other weights, and no benchmark.
    project.edit("{modulo: 2}", "{groups: [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}")
    project.write(project.recipe.read_text().split("benchmark:")[0])

    trained, _ = project.run(until="train")
    assert [row.name for row in trained.rows] == ["teacher", "student"]
    exported, _ = project.run(until="export")
    row = exported.rows[-1]
    assert row.what == "export"
    assert (row.parity, row.p50_ms, row.p90_ms, row.latency_note) == (None, None, None, "")
    assert row.accuracies == exported.rows[1].accuracies
    assert row.mean != old_rows[-1]["mean"]

    measured, _ = project.run()
    row, student = measured.rows[-1], measured.rows[1]
    accuracy = read(project.results / "accuracy.onnx.json")
    assert (row.parity, row.p50_ms) == ("passed", None)
    assert row.accuracies == student.accuracies  # measured on rows with the new labels
    assert accuracy["rows_unlike_torch"] == []
    page = measured.report.read_text()
    assert "Accuracy against latency" not in page


def test_training_one_stage_of_an_exported_recipe_shows_that_stage(project: Any) -> None:
    outcome, _ = project.run(until="train", only="teacher")
    assert [row.name for row in outcome.rows if row.what == "stage"] == ["teacher"]


# The device's side


@pytest.mark.parametrize(("verb", "options"), [("accuracy", ()), ("bench", ("--quick",))])
def test_what_the_device_side_refuses_comes_as_one_message(tmp_path: Path, verb: str, options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        run_in_own_process(verb, tmp_path / "nothing", *options)
    assert caught.value.exit_code == 2
    assert "nothing: does not exist" in caught.value.message
    # The command line puts "error:" before it.
    assert "error:" not in caught.value.message


def test_the_device_side_is_found_from_a_folder_that_has_its_name(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__main__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(project.folder)
    (project.results / "accuracy.onnx.json").unlink()
    monkeypatch.chdir(tmp_path)
    run_in_own_process("accuracy", project.bundle, "--output", project.results / "accuracy.onnx.json")
    assert read(project.results / "accuracy.onnx.json")["total"] == 256


def test_training_one_stage_leaves_the_others_named_until_the_recipe_changes_them(project: Any) -> None:
    before = read(project.results / "run.json")["stages"]
    project.run(until="train", only="teacher")
    assert read(project.results / "run.json")["stages"] == before
    project.edit("hidden: [8]", "hidden: [9]")
    project.run(until="train", only="teacher")
    assert read(project.results / "run.json")["stages"] == {"teacher": before["teacher"]}


def test_an_unknown_stage_names_the_nearest(project: Any) -> None:
    with pytest.raises(UsageError, match="no stage 'studnt'") as caught:
        project.run(until="train", only="studnt")
    assert "Did you mean 'student'?" in caught.value.remedy


def test_a_recipe_without_export_ends_after_training_with_a_report(empty_project: Any, untrained_text: str) -> None:
    outcome, _ = empty_project.run(empty_project.write(untrained_text))
    assert [row.name for row in outcome.rows] == ["plain"]
    assert outcome.report is not None
    assert not empty_project.bundle.exists()


def test_settings_of_a_target_are_those_of_the_recipe(finished: Any) -> None:
    settings = read(finished.results / "bench.onnx.local.json")["settings"]
    assert settings == {**settings, **LocalSpec(quick=True).model_dump(exclude_none=True)}


def test_an_unknown_device_is_refused_before_any_work(project: Any) -> None:
    with pytest.raises(UsageError, match="device 'gpu' is not known"):
        VariantRun(plans_of(project.recipe, None)[0], Settings(project.runs, None, "gpu"), print)


def test_logits_that_are_not_finite_are_named_and_nothing_is_kept(
    empty_project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowed(model: Any, preprocess: Any, rows: Any) -> torch.Tensor:
        return torch.full((len(rows), 4), torch.inf)

    monkeypatch.setattr("compress.stages.predict", overflowed)
    with pytest.raises(TrainingError, match="stage teacher: its logits on the test rows are not finite"):
        empty_project.run()
    assert not list((empty_project.runs / "stages").rglob("stage.json"))
