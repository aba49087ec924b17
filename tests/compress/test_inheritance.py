"""`like`: a stage that takes from an earlier one what it does not say itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.plan import plan
from compress.recipe import load_recipe
from compress.variants import load_variants
from runtime.errors import RecipeError

HEAD = """\
name: tiny
data: {source: digits}
train: {epochs: 2}
stages:
  teacher: {model: {mlp: {hidden: [16]}}, objective: ce}
  plain:
    model: {mlp: {hidden: [8]}}
    objective: ce
    train: {epochs: 3, batch_size: 32}
    expect: {test_accuracy_percent: 90, within: 1, source: "table 1"}
"""
SHORT = HEAD + (
    "  kd: {like: plain, teacher: teacher, objective: kl, train: {epochs: 4}}\n  mse: {like: kd, objective: mse}\n"
)
LONG = HEAD + (
    "  kd: {model: {mlp: {hidden: [8]}}, teacher: teacher, objective: kl, train: {epochs: 4, batch_size: 32}}\n"
    "  mse: {model: {mlp: {hidden: [8]}}, teacher: teacher, objective: mse, train: {epochs: 4, batch_size: 32}}\n"
)


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_it_is_the_same_recipe_as_one_that_spells_everything_out(tmp_path: Path) -> None:
    short, _ = load_recipe(recipe_file(tmp_path, SHORT))
    (short_run,) = load_variants(tmp_path / "recipe.yaml")
    long, _ = load_recipe(recipe_file(tmp_path, LONG))
    (long_run,) = load_variants(tmp_path / "recipe.yaml")
    assert short == long
    keys = [{stage.name: stage.key for stage in plan(run, None).stages} for run in (short_run, long_run)]
    assert keys[0] == keys[1]


def test_a_published_number_is_not_taken_over(tmp_path: Path) -> None:
    recipe, _ = load_recipe(recipe_file(tmp_path, SHORT))
    assert recipe.stages["plain"].expect is not None
    assert recipe.stages["kd"].expect is None


def test_null_takes_back_what_the_other_stage_says(tmp_path: Path) -> None:
    recipe, _ = load_recipe(recipe_file(tmp_path, SHORT + "  again: {like: mse, teacher: null, objective: ce}\n"))
    assert recipe.stages["again"].teacher is None
    assert recipe.stages["again"].train.batch_size == 32


def test_a_swept_setting_reaches_the_stages_that_are_like_it(tmp_path: Path) -> None:
    text = SHORT + "sweep: {stages.plain.model.mlp.hidden: [[8], [4]]}\n"
    for variant, hidden in zip(load_variants(recipe_file(tmp_path, text)), [(8,), (4,)], strict=True):
        models = {name: stage.model for name, stage in variant.recipe.stages.items()}
        assert {models[name].hidden for name in ("plain", "kd", "mse")} == {hidden}  # type: ignore[attr-defined]
        assert models["teacher"].hidden == (16,)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "kd: {like: plan, objective: ce}",
            [": 1 problem\n", "line 11: stages.kd.like: unknown stage 'plan'", "Did you mean 'plain'?"],
        ),
        ("kd: {like: kd, objective: ce}", ["stages.kd.like: a stage cannot be like itself"]),
        ("kd: {like: [plain], objective: ce}", ["stages.kd.like: expected the name of an earlier stage"]),
        ("kd: {like: last, objective: ce}\n  last: {like: plain}", ["'last' is a later stage", "above 'kd'"]),
        ("kd: {like: plain, objective: kl}", ["stages.kd.objective[0]: kl needs a teacher"]),
    ],
)
def test_a_wrong_one_is_named_with_its_line(tmp_path: Path, stage: str, expected: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_variants(recipe_file(tmp_path, f"{HEAD}  {stage}\n"))
    for part in expected:
        assert part in str(caught.value)
