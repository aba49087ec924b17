"""Keys: they hang on what decides the weights and on nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from compress.plan import Plan, plan
from compress.variants import load_variants
from export.graph import InputSignature
from runtime.errors import DataError, RecipeError

TEXT = """\
name: keys
description: A chain of three, and two stages beside it.
seed: 0
data: {source: digits, validation: 0.1}
train: {epochs: 2, batch_size: 64}
stages:
  teacher:
    model: {mlp: {hidden: [16]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  beside:
    model: {mlp: {hidden: [4]}}
    objective: ce
  assistant:
    model: {mlp: {hidden: [12]}}
    subclasses: 2
    teacher: teacher
    objective: kl
  continued:
    model: {mlp: {hidden: [4]}}
    init_from: beside
    objective: ce
    train: {epochs: 1}
  student:
    model: {mlp: {hidden: [8]}}
    subclasses: 2
    teacher: assistant
    objective: [kl, ce]
    train: {batch_size: 32}
export: {stage: student}
"""
ALL = {"teacher", "beside", "assistant", "continued", "student"}


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    def make(text: str = TEXT, file: str = "keys.yaml", data_root: Path | None = None) -> Plan:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return plan(load_variants(path)[0], data_root)

    return make


def keys(made: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in made.stages}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def replaced(old: str, new: str) -> str:
    assert TEXT.count(old) >= 1
    return TEXT.replace(old, new, 1)


def test_equal_recipes_have_equal_keys_and_stages_have_keys_of_their_own(plan_of: Callable[..., Plan]) -> None:
    first = keys(plan_of())
    assert keys(plan_of()) == first
    assert len(set(first.values())) == len(ALL)
    assert all(len(key) == 64 and int(key, 16) >= 0 for key in first.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: keys", "name: another"),
        ("description: A chain of three, and two stages beside it.", "description: Said otherwise."),
        ("description: A chain of three, and two stages beside it.\n", ""),
        ("seed: 0\n", ""),
        ("seed: 0\n", "seeds: [0]\n"),
        ("validation: 0.1", "validation: 0.1, root: /nowhere"),
        ("epochs: 2, batch_size: 64", "batch_size: 64, epochs: 2"),
        ("batch_size: 64}", "batch_size: 64, drop_last: false, optimizer: adam, schedule: constant}"),
        ("train: {epochs: 2", "train: {optimizer: {adam: {lr: 1e-3}}, epochs: 2"),
        ("objective: ce", "objective: [{ce: {weight: 1.0}}]"),
        ("export: {stage: student}", "export: {stage: beside, batch_sizes: [1]}"),
        ("export: {stage: student}", "export: {stage: student}\nbenchmark: [local]"),
        ("export: {stage: student}", "expect: {test_error_percent: 1, within: 2, source: x}"),
    ],
)
def test_what_does_not_decide_the_weights_is_in_no_key(plan_of: Callable[..., Plan], old: str, new: str) -> None:
    assert keys(plan_of(replaced(old, new))) == keys(plan_of())


def test_neither_the_files_place_nor_the_working_folder_is_in_a_key(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(plan_of())
    monkeypatch.chdir(tmp_path)
    assert keys(plan_of(file="elsewhere/other.yaml", data_root=tmp_path / "data")) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 0", "seed: 1"),
        ("validation: 0.1", "validation: 0.2"),
        ("validation: 0.1", "validation: 0"),
        ("validation: 0.1", "validation: 0.1, relabel: {modulo: 2}"),
        ("validation: 0.1", "validation: 0.1, normalize: unit"),
        ("validation: 0.1", "validation: 0.1, train_rows: 500"),
        ("validation: 0.1", "validation: 0.1, augment: [{crop: {padding: 1}}]"),
    ],
)
def test_seed_and_data_options_are_in_every_key(plan_of: Callable[..., Plan], old: str, new: str) -> None:
    assert changed(keys(plan_of()), keys(plan_of(replaced(old, new)))) == ALL


def test_views_of_the_same_number_of_classes_have_keys_of_their_own(plan_of: Callable[..., Plan]) -> None:
    views = ["{modulo: 2}", "{groups: [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}"]
    one, other = (keys(plan_of(replaced("validation: 0.1", f"validation: 0.1, relabel: {view}"))) for view in views)
    assert changed(one, other) == ALL


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("hidden: [16]", "hidden: [17]", {"teacher", "assistant", "student"}),
        ("hidden: [16]", "hidden: [16], init: glorot", {"teacher", "assistant", "student"}),
        ("hidden: [16]", "hidden: [16], dropout: 0.1", {"teacher", "assistant", "student"}),
        ("subclass_auxiliary]", "{subclass_auxiliary: {tau: 2.0}}]", {"teacher", "assistant", "student"}),
        ("[ce, subclass_auxiliary]", "[ce, {subclass_auxiliary: {weight: 0.5}}]",
         {"teacher", "assistant", "student"}),
        ("hidden: [12]", "hidden: [13]", {"assistant", "student"}),
        ("objective: kl", "objective: {kl: {tau: 2.0}}", {"assistant", "student"}),
        ("objective: kl", "objective: [kl, ce]", {"assistant", "student"}),
        ("hidden: [8]", "hidden: [9]", {"student"}),
        ("teacher: assistant", "teacher: teacher", {"student"}),
        ("[kl, ce]", "[ce, {kl: {weight: 0.5}}]", {"student"}),
        ("{batch_size: 32}", "{batch_size: 32, precision: bf16}", {"student"}),
        ("    objective: ce\n", "    objective: ce\n    train: {epochs: 3}\n", {"beside", "continued"}),
        ("train: {epochs: 1}", "train: {epochs: 3}", {"continued"}),
        ("    init_from: beside\n", "", {"continued"}),
    ],
)  # fmt: skip
def test_a_change_reaches_the_stage_and_all_below_it_and_none_beside_it(
    plan_of: Callable[..., Plan], old: str, new: str, expected: set[str]
) -> None:
    assert changed(keys(plan_of()), keys(plan_of(replaced(old, new)))) == expected


@pytest.mark.parametrize(
    ("old", "new", "untouched"),
    [("epochs: 2", "epochs: 5", {"continued"}), ("batch_size: 64", "batch_size: 16", {"student"})],
)
def test_a_stage_that_overrides_an_option_does_not_hang_on_the_recipes(
    plan_of: Callable[..., Plan], old: str, new: str, untouched: set[str]
) -> None:
    own = {
        "continued": ("    init_from: beside\n", ""),
        "student": ("    teacher: assistant\n    objective: [kl, ce]", "    objective: ce"),
    }
    # Without parents: a parent that does hang on the option would pass its change down.
    apart = TEXT
    for old_part, new_part in own.values():
        assert old_part in apart
        apart = apart.replace(old_part, new_part)
    assert changed(keys(plan_of(apart)), keys(plan_of(apart.replace(old, new, 1)))) == ALL - untouched


def test_a_renamed_stage_keeps_its_key(plan_of: Callable[..., Plan]) -> None:
    before = keys(plan_of())
    after = keys(plan_of(TEXT.replace("  teacher:\n", "  expert:\n").replace("teacher: teacher", "teacher: expert")))
    assert after.pop("expert") == before.pop("teacher")
    assert after == before


def test_the_key_is_of_the_datas_content_and_not_of_its_place(
    plan_of: Callable[..., Plan],
    tmp_path: Path,
    image_parquet: Callable[..., Path],
    png: Callable[[int], bytes],
) -> None:
    text = replaced("source: digits", "source: {parquet: {path: pets}}")
    moved = text.replace("path: pets", "path: animals")
    file = image_parquet(tmp_path / "one" / "pets")
    copied = image_parquet(tmp_path / "two" / "animals")
    os.utime(copied, (0, 0))
    before = plan_of(text, data_root=tmp_path / "one")
    after = plan_of(moved, data_root=tmp_path / "two")
    assert keys(after) == keys(before)
    assert after.fingerprint == before.fingerprint
    image_parquet(file.parent, replace={17: png(1000)})
    assert changed(keys(before), keys(plan_of(text, data_root=tmp_path / "one"))) == ALL


def test_stage_options_stand_over_the_recipes_in_what_is_planned(plan_of: Callable[..., Plan]) -> None:
    made = plan_of()
    train = {stage.name: (stage.train.epochs, stage.train.batch_size) for stage in made.stages}
    assert train == {
        "teacher": (2, 64), "beside": (2, 64), "assistant": (2, 64), "continued": (1, 64), "student": (2, 32)
    }  # fmt: skip
    assert made.stage("student").resolved["train"]["batch_size"] == 32
    assert made.stage("continued").resolved["parents"] == {
        "teachers": [],
        "init_from": made.stage("beside").key,
    }
    assert made.stage("student").resolved["parents"] == {
        "teachers": [made.stage("assistant").key],
        "init_from": None,
    }


def test_stages_come_in_running_order_with_heads_and_models_resolved(plan_of: Callable[..., Plan]) -> None:
    made = plan_of()
    assert [stage.name for stage in made.stages] == ["teacher", "beside", "assistant", "continued", "student"]
    student = made.stage("student")
    assert (student.heads.classes, student.heads.subclasses, student.heads.teacher_subclasses) == (10, 2, 2)
    assert student.signature == InputSignature((8, 8, 1))
    model = student.build_model()
    # 64 inputs to 8, then 8 to 10 classes of 2 subclasses, with biases.
    assert student.parameters == sum(p.numel() for p in model.parameters()) == 64 * 8 + 8 + 8 * 20 + 20
    assert model(torch.zeros(3, 1, 8, 8)).logits.shape == (3, student.outputs)


def test_the_exports_key_is_of_the_deployed_stage_and_of_how_it_is_exported(
    plan_of: Callable[..., Plan],
) -> None:
    before = plan_of().key
    assert plan_of(replaced("name: keys", "name: another")).key == before
    assert (
        plan_of(replaced("hidden: [4]}}\n    objective", "hidden: [4]}}\n    subclasses: 1\n    objective")).key
        == before
    )
    others = [
        replaced("hidden: [8]", "hidden: [9]"),
        replaced("hidden: [16]", "hidden: [17]"),
        replaced("{stage: student}", "{stage: beside}"),
        replaced("{stage: student}", "{stage: student, batch_sizes: [1]}"),
        replaced("{stage: student}", "{stage: student, subclass_probabilities: true}"),
    ]
    assert len({before, *(plan_of(text).key for text in others)}) == 1 + len(others)


def test_each_seed_of_a_recipe_is_a_plan_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "seeds.yaml"
    path.write_text(replaced("seed: 0", "seeds: [0, 7]"))
    one, other = (plan(variant, None) for variant in load_variants(path))
    assert (one.variant.folder, other.variant.folder) == ("seed-0", "seed-7")
    assert changed(keys(one), keys(other)) == ALL


def test_data_that_is_not_there_is_said_before_anything_runs(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mnist: the folder does not exist") as caught:
        plan_of(replaced("source: digits", "source: mnist"), data_root=tmp_path)
    assert "train-00000-of-00001.parquet" in caught.value.remedy


def test_a_model_that_does_not_fit_the_data_is_named_before_training(tmp_path: Path) -> None:
    """What only the files can tell: `check` passes, the plan says which stage and why."""
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (6, 6), 20 * i).save(tmp_path / "photos" / name / f"{i}.png")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"name: small\ndata: {{source: {{folder: {{path: {tmp_path}/photos}}}}}}\n"
        "stages: {student: {model: mnist_cnn, objective: ce}}\n"
    )
    (variant,) = load_variants(recipe)
    with pytest.raises(
        RecipeError, match=r"stages\.student\.model: mnist_cnn needs images of at least 10×10, came 6×6"
    ):
        plan(variant, None)


def test_an_opset_is_part_of_the_exports_key_and_of_no_stages(plan_of: Callable[..., Plan]) -> None:
    plain, older = plan_of(), plan_of(replaced("{stage: student}", "{stage: student, opset: 17}"))
    assert keys(older) == keys(plain)
    assert older.key != plain.key
    export = plain.recipe.export
    assert export is not None
    assert "opset" not in export.settings  # or every bundle of before would be made anew
    assert set(export.settings) == {"stage", "formats", "batch_sizes", "subclass_probabilities"}
