"""The papers' settings as recipes: an assistant between, several teachers, a noisy teacher, few labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.analysis.record import analyse_run
from compress.pipeline import plans_of
from compress.progress import Progress
from compress.rows import Rows
from compress.stages import Settings, Stages
from runtime.errors import RecipeError

HEAD = "name: chain\ndata: {source: digits, validation: 0}\ntrain: {epochs: 2, batch_size: 64}\nstages:\n"


def trained(folder: Path, stages: str, head: str = HEAD) -> Stages:
    path = folder / "chain.yaml"
    path.write_text(head + stages)
    (plan,) = plans_of(path, None)
    made = Stages(plan, Settings(folder / "runs", device="cpu"), lambda event: None)
    made.train()
    return made


def test_kl_then_mse_through_an_assistant(tmp_path: Path) -> None:
    """Kim et al. 2021, sequential distillation: each stage learns from the one before."""
    stages = trained(
        tmp_path,
        "  teacher: {model: {mlp: {hidden: [32]}}, objective: ce}\n"
        "  assistant: {model: {mlp: {hidden: [16]}}, teacher: teacher, objective: {kl: {tau: 3}}}\n"
        "  student: {model: {mlp: {hidden: [8]}}, teacher: assistant, objective: {mse: {reduction: mean}}}\n",
    )
    teacher, assistant, student = stages.plan.stages
    assert assistant.resolved["parents"]["teachers"] == [teacher.key]
    assert student.resolved["parents"]["teachers"] == [assistant.key]
    log = stages.artifacts["student"].log()
    assert list(log[0]["losses"]) == ["total", "mse"]
    assert log[-1]["losses"]["mse"] < log[0]["losses"]["mse"]


ENSEMBLE = (
    "  a: {model: {mlp: {hidden: [16]}}, objective: ce}\n"
    "  b: {model: {small_cnn: {widths: [4]}}, objective: ce}\n"
    "  student: {model: {mlp: {hidden: [8]}}, teacher: [a, b], objective: [{mse: {reduction: mean}}], %s}\n"
)


@pytest.mark.parametrize(("option", "scale"), [("ensemble: mean", 0.5), ("ensemble: sum", 1.0), ("subclasses: 1", 0.5)])
def test_a_student_of_two_teachers_learns_their_combined_logits(tmp_path: Path, option: str, scale: float) -> None:
    """The loss of the first batch, from the untrained student and both teachers by hand."""
    head = HEAD.replace("batch_size: 64", "batch_size: 2000").replace("epochs: 2", "epochs: 1")
    stages = trained(tmp_path, ENSEMBLE % option, head)
    rows = Rows(stages.dataset.train, torch.device("cpu"))
    x = stages.preprocess(rows.inputs)
    torch.manual_seed(0)
    untrained = stages.plan.stage("student").build_model()
    with torch.no_grad():
        target = scale * sum(stages.model(name)(x).logits for name in ("a", "b"))
        expected = (untrained(x).logits - target).square().mean()
    (record,) = stages.artifacts["student"].log()
    assert record["losses"]["mse"] == pytest.approx(float(expected), rel=1e-4)


def test_the_way_of_combining_and_the_order_are_in_the_key(tmp_path: Path) -> None:
    keys = set()
    for option in ("ensemble: mean", "ensemble: sum"):
        path = tmp_path / "recipe.yaml"
        path.write_text(HEAD + ENSEMBLE % option)
        (plan,) = plans_of(path, None)
        keys.add(plan.stage("student").key)
    assert len(keys) == 2


@pytest.mark.parametrize("term", ["embedding", "srrl", "lelp", "at", "kmeans"])
def test_what_several_teachers_do_not_have_is_said_before_training(tmp_path: Path, term: str) -> None:
    path = tmp_path / "recipe.yaml"
    subclasses = "subclasses: 2" if term in ("lelp", "kmeans") else "subclasses: 1"
    path.write_text((HEAD + ENSEMBLE % subclasses).replace("[{mse: {reduction: mean}}]", f"[kl, {term}]"))
    with pytest.raises(RecipeError, match=rf"line 7.*{term} reads the teacher's .* of several teachers there are log"):
        plans_of(path, None)


def test_teachers_of_different_heads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = (HEAD + ENSEMBLE % "subclasses: 1").replace("[16]}}, objective: ce", "[16]}}, subclasses: 2, objective: ce")
    path.write_text(text)
    with pytest.raises(RecipeError, match="the teachers have 1, 2 subclasses per class"):
        plans_of(path, None)


def test_a_student_gets_the_teachers_labels_for_rows_that_have_none(tmp_path: Path) -> None:
    stages = trained(
        tmp_path,
        "  teacher: {model: {mlp: {hidden: [32]}}, objective: ce, labels: {rows: 100}}\n"
        "  student: {model: {mlp: {hidden: [8]}}, teacher: teacher, objective: [kl, ce],\n"
        "            labels: {rows: 100, rest: teacher}}\n",
    )
    teacher, student = (stages.plan.stage(name) for name in ("teacher", "student"))
    seen = stages._data_of(teacher, None).train
    assert len(seen) == 100
    known = stages._data_of(student, stages._teacher(student)).train
    assert len(known) == len(stages.dataset.train)
    own = set(seen.row_ids.tolist())
    model, true = stages.model("teacher"), stages.dataset.train.labels
    predicted = model(stages.preprocess(Rows(stages.dataset.train, torch.device("cpu")).inputs)).logits.argmax(1)
    for place, row in enumerate(known.row_ids.tolist()):
        assert known.labels[place] == (true[place] if row in own else predicted[place])


def test_a_teacher_stopped_early_is_another_stage_than_the_whole_one(tmp_path: Path) -> None:
    events: list[Progress | str] = []
    path = tmp_path / "recipe.yaml"
    path.write_text(
        HEAD + "  whole: {model: {mlp: {hidden: [16]}}, objective: ce, train: {epochs: 3}}\n"
        "  noisy: {model: {mlp: {hidden: [16]}}, objective: ce, train: {epochs: 3, stop_after: 1}}\n"
    )
    (plan,) = plans_of(path, None)
    stages = Stages(plan, Settings(tmp_path / "runs", device="cpu"), events.append)
    stages.train()
    assert len(stages.artifacts["noisy"].log()) == 1
    assert stages.artifacts["noisy"].log()[0]["losses"] == stages.artifacts["whole"].log()[0]["losses"]
    last = [event for event in events if isinstance(event, Progress) and event.stage == "noisy"][-1]
    assert (last.epochs, last.fraction) == (1, 1.0)


def test_the_analysis_compares_with_the_combined_logits_and_says_what_several_teachers_lack(tmp_path: Path) -> None:
    stages = trained(tmp_path, ENSEMBLE % "ensemble: sum")
    (record,) = analyse_run(stages, ["student"])["stages"].values()
    assert record["teacher"] == "a + b"
    x = stages.preprocess(stages.test_rows.inputs)
    with torch.no_grad():
        target = sum(stages.model(name)(x).logits.double() for name in ("a", "b"))
        distances = (stages.model("student")(x).logits.double() - target).norm(dim=1)
    assert record["test"]["values"]["teacher_logit_distance"] == pytest.approx(float(distances.mean()), rel=1e-5)
    assert record["test"]["values"]["nmi_teacher_classes"] is None
    assert (
        record["test"]["missing"]["embedding_distance"]
        == "the teacher gives no embedding (several have none in common)"
    )
