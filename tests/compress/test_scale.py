"""`--scale`: the same recipe with a fraction of epochs and rows, marked everywhere, never judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from compress.cli import main
from compress.datasets import DataSpec, describe, load
from compress.pipeline import plans_of
from compress.recipe import Recipe, load_recipe
from compress.scale import scaled, with_smaller_batches
from compress.variants import Selection, load_variants
from runtime.errors import UsageError

TEXT = """\
name: long
seeds: [0, 1]
data: {source: digits, relabel: {modulo: 2}, train_rows: 1200}
train: {epochs: 200, batch_size: 128, schedule: {step: {at: [100, 150]}}, warmup_epochs: 10}
stages:
  teacher: {model: {mlp: {hidden: [16]}}, objective: ce, train: {stop_after: 40}}
  student:
    model: {mlp: {hidden: [8]}}
    teacher: teacher
    objective: [kl, ce]
    labels: {rows: 400, rest: teacher}
    train: {epochs: 100, batch_size: 8}
expect: {test_accuracy_percent: {student: 99.9}, within: 0.1, source: "table 1"}
export: {stage: student, batch_sizes: [1, 4]}
sweep:
  - {label: narrow}
  - {label: wide, stages.student.model.mlp.hidden: [12]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "long.yaml"
    path.write_text(TEXT)
    return path


def long(path: Path) -> Recipe:
    return load_recipe(path)[0]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# The recipe


def test_what_is_counted_in_epochs_and_rows_shrinks_along(path: Path) -> None:
    recipe = scaled(long(path), 0.1)
    teacher, student = (recipe.train_spec(name) for name in ("teacher", "student"))
    assert (teacher.epochs, teacher.stop_after, teacher.warmup_epochs) == (20, 4, 1.0)
    assert teacher.schedule.model_dump()["at"] == (10, 15)
    assert (student.epochs, student.stop_after, student.batch_size) == (10, None, 8)
    # The student's 100 epochs are half the recipe's, and its schedule stands where it stood.
    assert student.schedule.model_dump()["at"] == (10, 15)
    assert (recipe.data.share, recipe.data.train_rows) == (0.1, 120)
    assert recipe.stages["student"].labels is not None
    assert recipe.stages["student"].labels.rows == 40


def test_nothing_is_scaled_away(path: Path) -> None:
    recipe = scaled(long(path), 1e-6)
    train = recipe.train_spec("teacher")
    assert (train.epochs, train.stop_after) == (1, 1)
    assert train.warmup_epochs < train.epochs
    assert recipe.data.train_rows == 20
    assert recipe.stages["student"].labels is not None
    assert recipe.stages["student"].labels.rows == 10
    assert with_smaller_batches(train, 8).batch_size == 2


def test_a_whole_run_is_left_as_it_was(path: Path) -> None:
    whole, one = load_variants(path), load_variants(path, Selection(scale=1.0))
    assert whole == one
    assert {variant.name for variant in whole} == {"long"}


def test_batches_leave_an_epoch_a_few_steps_and_the_rate_goes_with_them() -> None:
    train = Recipe.model_fields["train"].default.model_copy(update={"batch_size": 128})
    cut = [with_smaller_batches(train, rows) for rows in (3, 160, 2048, 50_000)]
    assert [each.batch_size for each in cut] == [2, 10, 128, 128]
    rate = train.optimizer.lr
    assert [each.optimizer.lr for each in cut] == pytest.approx([rate * 2 / 128, rate * 10 / 128, rate, rate])


# The data


def test_a_share_of_every_split_is_kept_class_by_class() -> None:
    spec = DataSpec.model_validate({"source": "digits", "share": 0.25, "validation": 0})
    whole, part = (load(each, seed=0) for each in (spec.model_copy(update={"share": None}), spec))
    for split in ("train", "test"):
        all_rows, kept = getattr(whole, split), getattr(part, split)
        counts = np.bincount(all_rows.labels, minlength=10)
        np.testing.assert_allclose(np.bincount(kept.labels, minlength=10), counts / 4, atol=1)
        assert set(kept.row_ids) < set(all_rows.row_ids)
        assert (np.diff(kept.row_ids) > 0).all()
        np.testing.assert_array_equal(kept.inputs, all_rows.inputs[np.isin(all_rows.row_ids, kept.row_ids)])
    again = load(spec, seed=7)
    np.testing.assert_array_equal(again.train.row_ids, part.train.row_ids)


def test_a_class_keeps_a_few_rows_however_small_the_share() -> None:
    spec = DataSpec.model_validate({"source": "digits", "share": 1e-4, "validation": 0})
    data = load(spec, seed=0)
    np.testing.assert_array_equal(np.bincount(data.train.labels), [2] * 10)
    assert describe(spec).rows == {"train": 20, "validation": 0, "test": 20}


# Runs


def test_seeds_and_rows_of_the_sweep_can_be_chosen(path: Path) -> None:
    chosen = load_variants(path, Selection(seeds=(1,), variants=("wide",)))
    assert [(variant.label, variant.seed, variant.folder) for variant in chosen] == [("wide", 1, "variant-2/seed-1")]
    assert chosen == load_variants(path, Selection(seeds=(1,), variants=("2",)))
    with pytest.raises(UsageError, match="no seed 3") as caught:
        load_variants(path, Selection(seeds=(3,)))
    assert "0, 1" in caught.value.remedy
    with pytest.raises(UsageError, match="no variant 'wider'") as caught:
        load_variants(path, Selection(variants=("wider",)))
    assert "1 narrow; 2 wide" in caught.value.remedy


def test_keys_of_a_scaled_run_are_its_own(path: Path) -> None:
    whole, part = (plans_of(path, None, Selection((0,), ("1",), scale))[0] for scale in (1.0, 0.05))
    assert not {stage.key for stage in whole.stages} & {stage.key for stage in part.stages}
    assert (whole.name, part.name) == ("long", "long@0.05")


def test_a_scaled_run_ends_in_a_report_that_says_so_and_judges_nothing(path: Path, tmp_path: Path) -> None:
    where = ["--runs", tmp_path / "runs", "--scale", "0.01", "--seed", "0", "--variant", "narrow"]
    result = invoke("run", path, *where, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "scaled to 0.01 of the recipe's epochs and rows" in result.stdout
    assert "not judged" in result.stdout
    folder = tmp_path / "runs" / "long@0.01"
    page = (folder / "report.html").read_text()
    assert "<title>long@0.01" in page
    assert "Scaled to 0.01" in page
    assert "not judged" in page
    report = json.loads((folder / "report.json").read_text())
    assert (report["scale"], report["recipe"]) == (0.01, "long@0.01")
    student = next(row for row in report["rows"] if row["name"] == "student")
    assert student["expectation"]["passed"] is None
    bundle = folder / "variant-1" / "seed-0" / "bundle"
    assert json.loads((bundle / "manifest.json").read_text())["name"] == "long@0.01"
    assert not (tmp_path / "runs" / "long").exists()
    planned = invoke("plan", path, *where)
    assert "long@0.01: plan, scaled to 0.01" in planned.stdout
    assert planned.stdout.count("reused") == 2
    assert "long@0.01/variant-1/seed-0  narrow" in result.stderr
    every = invoke("plan", path)
    assert every.stdout.count("variant-2/seed-1  wide") == 2


@pytest.mark.parametrize("scale", ["0", "1.5", "-1", "much"])
def test_a_scale_is_a_fraction(path: Path, scale: str) -> None:
    result = invoke("run", path, "--scale", scale)
    assert result.exit_code == 2
    assert "--scale" in result.output
