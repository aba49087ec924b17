"""The recipes of Kim et al. 2021 (KL against MSE): the published code's schedule and losses, and what each varies."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from compress.library import find_recipe, shipped_recipes
from compress.variants import Variant, load_variants

FOLDER = "kl-vs-mse/"
CIFAR = sorted(name for name in shipped_recipes() if name.startswith(FOLDER) and not name.endswith("imagenet"))


@cache
def variants_of(name: str) -> tuple[Variant, ...]:
    return load_variants(find_recipe(name))


def rows_of(name: str) -> list[Variant]:
    """Return one variant a row of the sweep."""
    variants = variants_of(FOLDER + name)
    return [variant for variant in variants if variant.seed == variants[0].seed]


def temperatures(variant: Variant) -> dict[str, Any]:
    first = {name: stage.objective[0] for name, stage in variant.recipe.stages.items()}
    return {name: term.tau for name, term in first.items() if term.kind == "kl"}


@pytest.mark.parametrize("name", CIFAR)
def test_schedule_is_that_of_the_published_code(name: str) -> None:
    recipe = variants_of(name)[0].recipe
    train, optimizer = recipe.train, recipe.train.optimizer
    assert (train.epochs, train.batch_size, train.select, recipe.data.validation) == (200, 128, "last", 0)
    assert (train.schedule.at, train.schedule.gamma) == ((100, 150), 0.1)
    assert (optimizer.kind, optimizer.lr, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.1, 0.9, True)
    assert (optimizer.weight_decay, optimizer.decay) == (5e-4, "weights")
    assert [spec.kind for spec in recipe.data.augment] == ["crop", "flip"]


@pytest.mark.parametrize("name", CIFAR)
def test_mse_is_the_codes_mean_because_the_rate_is_the_codes_too(name: str) -> None:
    for variant in variants_of(name):
        terms = [term for stage in variant.recipe.stages.values() for term in stage.objective]
        assert all(term.reduction == "mean" for term in terms if term.kind == "mse")


def test_temperatures_go_up_to_infinity_and_every_student_has_one_teacher() -> None:
    rows = rows_of("kl-temperatures")
    assert [row.label for row in rows] == ["WRN-16-2", "WRN-16-4", "WRN-28-2", "WRN-28-4", "WRN-40-6"]
    for row in rows:
        stages = row.recipe.stages
        assert temperatures(row) == {"kl_1": 1, "kl_3": 3, "kl_5": 5, "kl_20": 20, "kl_inf": "inf"}
        assert (stages["teacher"].model.depth, stages["teacher"].model.widen) == (28, 4)
        students = {f"WRN-{stage.model.depth}-{stage.model.widen}" for stage in list(stages.values())[1:]}
        assert students == {row.label}


def test_shares_of_label_and_teacher_add_up() -> None:
    shares = []
    for row in rows_of("kl-label-weight"):
        terms = [stage.objective[0] for stage in row.recipe.stages.values() if stage.teachers]
        assert all(term.kl_weight + term.ce_weight == pytest.approx(1) for term in terms)
        (share,) = {term.kl_weight for term in terms}
        assert row.label == f"alpha {share:g}"
        shares.append(share)
    assert shares == [0.1, 0.5, 0.9]


def test_chain_goes_through_the_middle_model_by_either_loss() -> None:
    stages = rows_of("kl-mse-chain")[0].recipe.stages
    for first in ("kl", "mse"):
        assert stages[f"middle_{first}"].objective[0].kind == first
        for second in ("kl", "mse"):
            student = stages[f"{first}_{second}"]
            assert student.teachers == (f"middle_{first}",)
            assert [term.kind for term in student.objective] == [second]
            assert student.model == stages["plain"].model != stages["middle"].model


def test_noisy_teacher_is_stopped_and_its_students_are_not() -> None:
    recipe = rows_of("kl-mse-noisy-teacher")[0].recipe
    assert {name: recipe.train_spec(name).epochs_run for name in recipe.stages} == {
        name: 10 if name == "teacher" else 200 for name in recipe.stages
    }


def test_noisy_labels_are_the_same_for_all_seeds() -> None:
    variants = variants_of(FOLDER + "kl-mse-noisy-labels")
    noise = [(variant.label, variant.recipe.data.label_noise) for variant in variants]
    assert [(label, spec.symmetric, spec.seed) for label, spec in noise if spec] == [
        (f"{share} % wrong", share / 100, 0) for share in (40, 80) for _ in range(3)
    ]


def test_ensembles_take_the_mean() -> None:
    stages = rows_of("kl-mse-ensemble")[0].recipe.stages
    taught = {name: (stage.teachers, stage.ensemble) for name, stage in stages.items() if stage.teachers}
    assert taught["one_kl"] == (("teacher",), None)
    assert taught["two_mse"] == (("teacher", "second"), "mean")
    assert taught["three_kl"] == (("teacher", "second", "third"), "mean")


def test_students_see_a_part_of_the_rows_and_the_teacher_all() -> None:
    for row, rows in zip(rows_of("kl-mse-data-fraction"), (5_000, 10_000, 25_000), strict=True):
        stages = dict(row.recipe.stages)
        assert stages.pop("teacher").labels is None
        assert {(stage.labels.rows, stage.labels.rest) for stage in stages.values() if stage.labels} == {
            (rows, "leave_out")
        }
        assert all(stage.labels for stage in stages.values())
