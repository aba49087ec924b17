"""The recipes that come along: each passes its check, says what it is and how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.library import find_recipe, shipped_folder, shipped_recipes
from compress.plan import plan
from compress.recipe import load_recipe
from compress.variants import load_variants

NAMES = sorted(shipped_recipes())


def test_quickstart_and_the_papers_table_are_there() -> None:
    assert {"quickstart", "subclass-distillation/mnist-2x5"} <= set(NAMES)


def test_the_folder_holds_recipes_and_nothing_else() -> None:
    files = {path for path in shipped_folder().rglob("*") if path.is_file()}
    assert files == set(shipped_recipes().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_passes_its_check_without_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFOLD_DATA", raising=False)
    variants = load_variants(find_recipe(name))
    assert variants
    assert variants[0].recipe.export is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_explains_itself(name: str) -> None:
    recipe, _ = load_recipe(shipped_recipes()[name])
    assert recipe.description.endswith(".")
    assert recipe.name == name.rsplit("/", 1)[-1]
    head = shipped_recipes()[name].read_text(encoding="utf-8").split("name:")[0]
    assert head.startswith("# ")
    assert f"edgefold run {name}" in head


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_shipped_recipe_are_of_its_own(name: str) -> None:
    # Shipped recipes run everywhere, so none of them may know a folder of one machine.
    recipe, _ = load_recipe(shipped_recipes()[name])
    assert recipe.data.root is None
    assert "/" not in str(recipe.data.source.model_dump().get("path", ""))


def test_recipe_names_are_run_folders_and_therefore_unique() -> None:
    names = [load_recipe(path)[0].name for path in shipped_recipes().values()]
    assert len(set(names)) == len(names)


def test_quickstart_needs_no_data_and_makes_a_small_student() -> None:
    (variant,) = load_variants(find_recipe("quickstart"))
    made = plan(variant, None)
    teacher, student = made.stage("teacher"), made.stage(made.recipe.exported_stage)
    assert student.teachers == ("teacher",)
    assert student.heads.subclasses > 1
    assert teacher.parameters > 5 * student.parameters
    assert made.recipe.benchmark


def test_mnist_2x5_has_the_setup_of_the_papers_notebook() -> None:
    variants = load_variants(find_recipe("mnist-2x5"))
    assert [variant.seed for variant in variants] == [0, 1, 2]
    recipe = variants[0].recipe
    assert recipe.data.relabel is not None
    assert recipe.data.relabel.groups == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    assert (recipe.data.validation, recipe.data.normalize) == (0, "unit")
    train = recipe.train
    assert (train.epochs, train.batch_size, train.drop_last) == (12, 256, True)
    assert (train.optimizer.kind, train.optimizer.lr) == ("adam", 1e-3)
    stages = recipe.stages
    assert stages["teacher"].model.kind == "mnist_cnn"
    (ce, auxiliary) = stages["teacher"].objective
    assert (ce.kind, auxiliary.kind, auxiliary.tau, auxiliary.weight) == ("ce", "subclass_auxiliary", 1.0, 1.0)
    students = {name: stage for name, stage in stages.items() if name != "teacher"}
    assert {(stage.model.kind, stage.model.hidden) for stage in students.values()} == {("mlp", (784, 784))}
    assert {name: stage.subclasses for name, stage in stages.items()} == {
        "teacher": 5, "plain": 1, "distilled": 1, "subclass": 5, "subclass_no_labels": 5
    }  # fmt: skip
    for name in ("distilled", "subclass"):
        kl, hard = students[name].objective
        assert (kl.kind, kl.tau, kl.weight, hard.kind, hard.weight) == ("kl", 4.0, 0.5, "ce", 0.5)
        assert students[name].teachers == ("teacher",)
    (term,) = students["subclass_no_labels"].objective
    assert (term.kind, term.tau) == ("intra_subclass", 4.0)
    published = {name: stage.expect.test_error_percent.mean for name, stage in stages.items() if stage.expect}
    assert published == {
        "teacher": 0.73, "plain": 1.57, "distilled": 1.23, "subclass": 0.93, "subclass_no_labels": 2.06
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_found_by_its_path_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_recipe(name)
    monkeypatch.chdir(tmp_path)
    assert find_recipe(str(path)) == path
    assert find_recipe(name) == path
