"""Recipes: every problem at once, with line and nearest name; what a valid one resolves to."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.formats import Fp16Spec, Int8CpuSpec, Int8Spec, OnnxSpec, PackedSpec
from compress.library import find_recipe, shipped_recipes
from compress.recipe import load_recipe
from compress.variants import load_variants
from export.parity import GATES, Gate
from runtime.errors import RecipeError

VALID = """\
name: tiny
data:
  source: digits
train: {epochs: 2, optimizer: {adam: {lr: 1e-3}}}
stages:
  teacher:
    model: {mlp: {hidden: [16]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  student:
    model: {mlp: {hidden: [8]}}
    subclasses: 2
    teacher: teacher
    objective: [{kl: {tau: inf, weight: 0.5}}, ce]
    train: {epochs: 3}
export: {stage: student}
"""


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_variants(recipe_file(folder, text))
    assert caught.value.exit_code == 2
    return caught.value.message


def test_stage_overrides_the_common_training_options_key_by_key(tmp_path: Path) -> None:
    recipe, _ = load_recipe(recipe_file(tmp_path, VALID))
    train = recipe.train_spec("student")
    assert (train.epochs, train.optimizer.kind, train.optimizer.lr) == (3, "adam", 1e-3)
    assert recipe.train_spec("teacher").epochs == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "export: {stage: student}",
            "export: {stage: student}\nbenchmark: [{local: {engine: openvino, provider: cuda}}]",
            ["benchmark[0]", "provider cuda with engine openvino: providers are those of onnxruntime"],
        ),
        (
            "export: {stage: student}",
            "export: {stage: student}\nbenchmark: [{local: {engine: openvine}}]",
            ["benchmark[0].local.engine", "'onnxruntime', 'openvino', 'tensorrt' or 'tensorrt_rtx'"],
        ),
        ("  source: digits", "  source: digits\n  colour: red", ["line 4", "data.colour", "unknown key"]),
        (
            "objective: [ce, subclass_auxiliary]",
            "objective: [ce, subclass_auxilary]",
            ["line 9", "unknown objective 'subclass_auxilary'", "Did you mean 'subclass_auxiliary'?"],
        ),
        (
            "    model: {mlp: {hidden: [8]}}",
            "    model: {mlpp: {hidden: [8]}}",
            ["line 11", "unknown model 'mlpp'", "Did you mean 'mlp'?"],
        ),
        (
            "    model: {mlp: {hidden: [8]}}",
            "    model: {mlp: {hiden: [8]}}",
            ["line 11", "stages.student.model.mlp.hiden: unknown key", "Did you mean 'hidden'?"],
        ),
        (
            "    train: {epochs: 3}",
            "    train: {epochs: 3}\n    train: {epochs: 4}",
            ["line 16", "key 'train' stands twice, first on line 15"],
        ),
        (
            "{adam: {lr: 1e-3}}",
            "{adam: {lr: abc}}",
            ["line 4", "train.optimizer.adam.lr", "came 'abc', expected a number"],
        ),
        ("    teacher: teacher", "    teacher: student", ["line 13", "a stage cannot name itself"]),
        (
            "    teacher: teacher",
            "    teacher: teachr",
            ["line 13", "unknown stage 'teachr'", "Did you mean 'teacher'?"],
        ),
        (
            "    subclasses: 2\n    teacher",
            "    subclasses: 3\n    teacher",
            [
                "line 14",
                "the student has 3 subclasses per class and the teacher 2",
                "30 logits cannot be compared with 20",
            ],
        ),
        (
            "    subclasses: 2\n    objective: [ce, sub",
            "    objective: [ce, sub",
            ["line 8", "this stage has no subclasses"],
        ),
        ("tau: inf", "tau: -1", ["line 14", "stages.student.objective[0].kl.tau", "more than 0"]),
        ("export: {stage: student}", "export: {stage: studen}", ["line 16", "Did you mean 'student'?"]),
        ("export: {stage: student}", "export: {stage: student, formats: [onx]}", ["line 16", "unknown format 'onx'"]),
        (
            "export: {stage: student}",
            "export: {stage: student, formats: [onnx, packed]}",
            ["line 16", "packed is for binary models, and mlp of stage 'student' has no binary layers"],
        ),
        (
            "export: {stage: student}",
            "export: {stage: student, formats: [onnx, onnx]}",
            ["line 16", "export.formats: a format stands twice"],
        ),
        ("export: {stage: student}", "export: {stage: student, opset: 12}", ["line 16", "export.opset", "at least 13"]),
        (
            "export: {stage: student}",
            "export: {stage: student, opset: 17, formats: [onnx, bf16]}",
            [
                "line 16",
                "export.opset: came 17, but bf16 needs 22 at least, since",
                "Leave bf16 out of the formats, or leave",
            ],
        ),
        (
            "    objective: [{kl: {tau: inf, weight: 0.5}}, ce]",
            "    objective: ce",
            ["line 13", "no term of the objective reads the teacher"],
        ),
        ("    teacher: teacher\n", "", ["kl needs a teacher"]),
        ("    teacher: teacher\n", "    teacher: [teacher, teacher]\n", ["line 13", "a teacher stands twice"]),
        ("    teacher: teacher\n", "    teacher: [teacher, techer]\n", ["line 13", "Did you mean 'teacher'?"]),
        ("    teacher: teacher\n", "    teacher: []\n", ["line 13", "stages.student.teacher"]),
        (
            "    teacher: teacher\n",
            "    teacher: teacher\n    ensemble: sum\n",
            ["line 14", "stages.student.ensemble", "there is one teacher"],
        ),
        (
            "    teacher: teacher\n    objective: [{kl: {tau: inf, weight: 0.5}}, ce]\n",
            "    labels: {rows: 100, rest: teacher}\n    objective: ce\n",
            ["line 13", "stages.student.labels.rest", "rest: teacher needs a teacher"],
        ),
        ("epochs: 2", "epochs: 2, stop_after: 3", ["line 4: train.stop_after: stop_after is 3 of 2 epochs"]),
        ("epochs: 2", "epochs: 2.5", ["line 4", "train.epochs", "expected a whole number"]),
        ("name: tiny", "name: ../x", ["line 1", "name", "letters, digits"]),
        (
            "hidden: [16]",
            "hidden: [16, '32']",
            ["line 7", "stages.teacher.model.mlp.hidden[1]", "expected a whole number"],
        ),
    ],
)
def test_one_fault_gives_one_clear_message(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert VALID.count(old) >= 1
    message = problems(tmp_path, VALID.replace(old, new, 1))
    for part in expected:
        assert part in message
    assert "1 problem" in message.splitlines()[0]


BINARY = """\
name: tiny
data: {source: digits}
stages:
  student:
    model: {binary_resnet: {blocks: [1], widths: [8], stem: conv3}}
    objective: ce
export: {stage: student, formats: [onnx, packed]}
"""


def test_a_binary_student_is_packed_beside_the_portable_form(tmp_path: Path) -> None:
    recipe, _ = load_recipe(recipe_file(tmp_path, BINARY))
    assert recipe.export is not None
    assert recipe.export.formats == (OnnxSpec(), PackedSpec())
    message = problems(tmp_path, BINARY.replace("[onnx, packed]", "[packed]"))
    assert "line 7: export.formats: packed without onnx, which every machine can run" in message
    assert "Write `formats: [onnx, packed]`." in message


def test_precisions_with_their_options(tmp_path: Path) -> None:
    real = BINARY.replace("{binary_resnet: {blocks: [1], widths: [8], stem: conv3}}", "small_cnn")
    recipe, _ = load_recipe(recipe_file(tmp_path, real.replace("packed", "fp16, int8")))
    assert recipe.export is not None
    int8 = Int8Spec(rows=512, method="auto", keep_float=(), gate=None)
    assert recipe.export.formats == (OnnxSpec(), Fp16Spec(), int8)
    assert int8.resolved_gate == GATES["int8"]
    options = "{int8: {rows: 64, method: entropy, keep_float: [first, last], gate: {top1_agreement: 0.99}}}"
    recipe, _ = load_recipe(recipe_file(tmp_path, real.replace("packed", options)))
    assert recipe.export is not None
    int8 = recipe.export.formats[1]
    assert isinstance(int8, Int8Spec)
    assert int8.resolved_gate == Gate(0.3, 0.99, 1.0)
    recipe, _ = load_recipe(recipe_file(tmp_path, real.replace("packed", "{int8_cpu: {rows: 64}}")))
    assert recipe.export is not None
    assert recipe.export.formats[1] == Int8CpuSpec(rows=64)
    message = problems(tmp_path, real.replace("packed", "{int8: {method: mse, keep_float: [middle]}}"))
    assert "line 7: export.formats[1].int8.method: came 'mse'" in message
    assert "line 7: export.formats[1].int8.keep_float[0]: came 'middle'" in message


def test_a_binary_student_is_neither_half_precision_nor_int8(tmp_path: Path) -> None:
    message = problems(tmp_path, BINARY.replace("packed", "fp16, int8"))
    assert "line 7: export.formats: fp16 and int8 would round what signs are taken of" in message
    assert "Write `formats: [onnx, packed]`" in message


def test_layers_of_more_than_one_bit_are_not_packed(tmp_path: Path) -> None:
    message = problems(tmp_path, BINARY.replace("stem: conv3", "stem: conv3, weights: ternary"))
    assert "packed is for binary models, and binary_resnet of stage 'student' has no binary layers" in message


def test_a_later_stage_cannot_be_the_teacher(tmp_path: Path) -> None:
    head, teacher_on = VALID.split("  teacher:\n", 1)
    teacher, student_on = teacher_on.split("  student:\n", 1)
    student, tail = student_on.split("export:", 1)
    message = problems(tmp_path, f"{head}  student:\n{student}  teacher:\n{teacher}export:{tail}")
    assert "'teacher' is a later stage" in message
    assert "move 'teacher' above 'student'" in message


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    broken = VALID.replace("name: tiny", "name: tiny\nnmae: x").replace("lr: 1e-3", "lr: abc").replace("[8]", "[0]")
    message = problems(tmp_path, broken)
    assert "3 problems" in message.splitlines()[0]
    lines = [int(line.split()[1].rstrip(":")) for line in message.splitlines() if line.startswith("  line")]
    assert lines == sorted(lines)
    assert len(lines) == 3


def test_seeds_and_sweep_make_a_grid(tmp_path: Path) -> None:
    text = VALID + "seeds: [0, 4]\nsweep: {stages.student.model.mlp.hidden: [[4], [8]], train.epochs: [1, 2]}\n"
    variants = load_variants(recipe_file(tmp_path, text))
    assert len(variants) == 8
    assert len({variant.folder for variant in variants}) == 8
    assert [variant.seed for variant in variants[:2]] == [0, 4]
    settings = {variant.folder.split("/")[0]: dict(variant.settings) for variant in variants}
    assert settings["variant-2"] == {"stages.student.model.mlp.hidden": (4,), "train.epochs": 2}
    assert variants[-1].recipe.stages["student"].model.hidden == (8,)


def test_a_swept_value_is_checked_like_a_written_one(tmp_path: Path) -> None:
    message = problems(tmp_path, VALID + "sweep: {stages.student.model: [mlp, mlq]}\n")
    assert "unknown model 'mlq'" in message
    assert "line 17" in message
    message = problems(tmp_path, VALID + "sweep: {stages.studen.model: [mlp]}\n")
    assert "'stages.studen.model' is not a place in this recipe" in message


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_passes_check(name: str) -> None:
    assert load_variants(find_recipe(name))


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("quickstrat")
    assert "Did you mean 'quickstart'?" in caught.value.remedy
