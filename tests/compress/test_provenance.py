"""The recipe as text that travels: the same stages when it is read again, and no place on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.pipeline import plans_of
from compress.provenance import recipe_text, without_places
from compress.variants import Selection

RECIPE = """\
name: tiny
description: Two parities, as in /home/ann/notes/plan.txt and (see https://example.org/a/b) 1/2 of the rows.
seeds: [3, 4]
data: {source: digits, root: /home/ann/data, relabel: {modulo: 2}}
train: {epochs: 3, batch_size: 32, optimizer: {adam: {lr: 5e-3}}}
stages:
  teacher: {model: {mlp: {hidden: [16]}}, subclasses: 2, objective: [ce, subclass_auxiliary], train: {epochs: 5}}
  student: {model: {mlp: {hidden: [4]}}, subclasses: 2, teacher: teacher, objective: [kl, ce]}
export: {stage: student, formats: [onnx, {int8: {rows: 64}}], batch_sizes: [1, 8]}
benchmark: [local]
sweep: {stages.student.objective: [[kl, ce], [mse, ce]]}
expect: {test_accuracy_percent: 90, within: 1, source: nowhere}
"""


def plans(path: Path, text: str) -> tuple[Any, ...]:
    path.write_text(text)
    return plans_of(path, None)


def test_read_again_it_gives_the_same_stages_and_the_same_export(tmp_path: Path) -> None:
    for plan in plans(tmp_path / "tiny.yaml", RECIPE):
        (again,) = plans(tmp_path / "again.yaml", recipe_text(plan.variant))
        assert [stage.key for stage in again.stages] == [stage.key for stage in plan.stages]
        assert again.key == plan.key
        assert again.variant.seed == plan.variant.seed


def test_it_says_what_was_run_and_nothing_else(tmp_path: Path) -> None:
    first, *others = plans(tmp_path / "tiny.yaml", RECIPE)
    text = recipe_text(first.variant)
    value = yaml.safe_load(text)
    assert list(value) == ["name", "description", "seed", "data", "stages", "export"]
    assert (value["seed"], value["stages"]["student"]["train"]["epochs"]) == (3, 3)
    assert value["stages"]["teacher"]["train"]["epochs"] == 5
    assert "root" not in value["data"]
    assert "/home" not in text
    assert "as in plan.txt and (see https://example.org/a/b) 1/2 of the rows" in " ".join(text.split())
    assert len({text, *(recipe_text(plan.variant) for plan in others)}) == 4


def test_a_shortened_run_says_what_it_ran(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    plan = plans_of(tmp_path / "tiny.yaml", None, Selection(seeds=(3,), variants=("1",), scale=0.4))[0]
    assert yaml.safe_load(recipe_text(plan.variant))["stages"]["teacher"]["train"]["epochs"] == 2


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/data/mnist", "mnist"),
        ("~/data/mnist", "mnist"),
        ("C:\\data\\mnist", "mnist"),
        ("/with a space/my data", "my data"),
        ([{"onnx": "../models/t.onnx", "logits": "a/b/c"}], [{"onnx": "t.onnx", "logits": "a/b/c"}]),
        ({"folder": {"path": "pets"}}, {"folder": {"path": "pets"}}),
        ("student/conv1", "student/conv1"),
        ("from /a/b to /c/d", "from b to d"),
        ("and / or", "and / or"),
        (3.5, 3.5),
        (None, None),
    ],
)  # fmt: skip
def test_of_a_path_only_its_name_is_left(value: Any, left: Any) -> None:
    assert without_places(value) == left
