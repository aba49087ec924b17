"""What a recipe costs before it is run."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from compress.cli import main
from compress.cost import Cost, cost_of
from compress.units import count
from compress.variants import load_variants

TEXT = """\
name: priced
seeds: [0, 1]
data: {source: mnist, validation: 0, train_rows: 1000}
train: {epochs: 3, batch_size: 64}
stages:
  teacher: {model: {mlp: {hidden: [20]}}, objective: ce}
  plain: {model: {mlp: {hidden: [10]}}, objective: ce}
  kd: {like: plain, teacher: teacher, objective: [kl, ce], train: {epochs: 2}}
  few: {like: plain, labels: {rows: 100}, train: {drop_last: true}}
"""
TEACHER = 784 * 20 + 20 * 10
STUDENT = 784 * 10 + 10 * 10


def cost(folder: Path, text: str) -> Cost:
    (folder / "recipe.yaml").write_text(text)
    return cost_of(load_variants(folder / "recipe.yaml"))


def test_passes_of_student_and_teacher_are_counted_over_all_steps(tmp_path: Path) -> None:
    found = cost(tmp_path, TEXT)
    steps = 3 * 16 + 3 * 16 + 2 * 16 + 3 * 1
    macs = 3 * 1000 * 3 * TEACHER + 3 * 1000 * 3 * STUDENT + 2 * 1000 * (3 * STUDENT + TEACHER) + 3 * 100 * 3 * STUDENT
    assert (found.runs, found.steps, found.macs, found.data) == (2, 2 * steps, 2 * macs, "mnist")


def test_a_stage_that_two_runs_share_is_counted_once(tmp_path: Path) -> None:
    text = TEXT.replace("seeds: [0, 1]\n", "")
    swept = text + "sweep: {stages.kd.objective: [[kl, ce], [mse, ce]]}\n"
    once, twice = cost(tmp_path, text), cost(tmp_path, swept)
    assert once.macs is not None
    assert twice.macs == once.macs + 2 * 1000 * (3 * STUDENT + TEACHER)


def test_a_changed_teacher_is_a_changed_student(tmp_path: Path) -> None:
    text = TEXT.replace("seeds: [0, 1]\n", "")
    swept = text + "sweep: {stages.teacher.train: [{epochs: 3}, {epochs: 4}]}\n"
    once, twice = cost(tmp_path, text), cost(tmp_path, swept)
    assert once.macs is not None
    assert twice.macs == once.macs + 4 * 1000 * 3 * TEACHER + 2 * 1000 * (3 * STUDENT + TEACHER)


def test_what_only_files_can_tell_is_left_open(tmp_path: Path) -> None:
    text = TEXT.replace("source: mnist", "source: {parquet: {path: mine}}")
    found = cost(tmp_path, text)
    assert (found.steps, found.macs, found.data) == (None, None, "parquet")


def test_recipes_are_listed_with_data_and_cost() -> None:
    result = CliRunner().invoke(main, ["list", "recipes"])
    assert result.exit_code == 0
    assert "digits; 1 run, 2.52 k steps, " in result.stdout


def test_large_numbers_have_units() -> None:
    assert [count(number) for number in (999, 1.2e15, 3e18)] == ["999", "1.20 P", "3.00 E"]
