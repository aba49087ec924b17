"""The recipes of Loo et al. 2024 and Müller et al. 2020: what of their set-ups is the papers' own."""

from __future__ import annotations

import pytest

from compress.library import find_recipe
from compress.objectives import TermSpec
from compress.recipe import Recipe, load_recipe

LELP = ["lelp-table-1", "lelp-table-3", "lelp-figure-5", "lelp-figure-6", "lelp-more-classes"]


def recipe_of(name: str) -> Recipe:
    return load_recipe(find_recipe(name))[0]


def kinds(objective: tuple[TermSpec, ...]) -> list[str]:
    return [term.kind for term in objective]


@pytest.mark.parametrize("name", LELP)
def test_students_of_a_lelp_teacher_see_no_labels(name: str) -> None:
    recipe = recipe_of(name)
    students = {stage: spec for stage, spec in recipe.stages.items() if spec.teachers}
    assert students
    assert not {stage for stage, spec in students.items() if "ce" in kinds(spec.objective)}
    assert recipe.all_seeds == (0, 1, 2)


def test_the_rivals_of_table_3_are_the_papers() -> None:
    stages = recipe_of("lelp-table-3").stages
    assert list(stages) == [
        "teacher", "subclass_teacher", "plain", "kd", "embedding", "fitnet", "vid", "rkd", "crd", "dkd", "subclass",
        "lelp",
    ]  # fmt: skip
    assert {name: spec.teachers for name, spec in stages.items() if spec.subclasses > 1} == {
        "subclass_teacher": (), "subclass": ("subclass_teacher",), "lelp": ("teacher",)
    }  # fmt: skip
    assert len({str(spec.model) for name, spec in stages.items() if "teacher" not in name}) == 1


def test_the_ablation_changes_nothing_but_the_projection() -> None:
    stages = recipe_of("lelp-figure-5").stages
    compared = {name: spec for name, spec in stages.items() if kinds(spec.objective) == ["lelp"]}
    assert {name: spec.objective[0].project for name, spec in compared.items()} == {  # type: ignore[attr-defined]
        each: each for each in ("lelp", "pca", "random", "identity")
    }
    assert len({str(spec.model_copy(update={"objective": ()})) for spec in compared.values()}) == 1


def test_students_of_cifar_2x5_differ_in_what_they_learn_from_one_teacher() -> None:
    stages = recipe_of("scd-table-2").stages
    assert {name: spec.teachers for name, spec in stages.items()} == {
        "teacher": (), "plain": (), "distilled": ("teacher",), "penultimate": ("teacher",), "subclass": ("teacher",)
    }  # fmt: skip
    assert {name: kinds(spec.objective) for name, spec in stages.items()} == {
        "teacher": ["ce", "subclass_auxiliary"],
        "plain": ["ce"],
        "distilled": ["kl", "ce"],
        "penultimate": ["embedding", "ce"],
        "subclass": ["kl", "ce"],
    }
    assert {name: spec.subclasses for name, spec in stages.items()} == {
        "teacher": 5, "plain": 1, "distilled": 1, "penultimate": 1, "subclass": 5
    }  # fmt: skip
