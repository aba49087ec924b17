"""`opset:` of a recipe and `edgefold export --opset`: every file in it, proven, and filed beside the recipe's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from compress.formats import Int4Spec, OnnxSpec, QonnxSpec, opset_problem
from compress.variants import Selection, load_variants
from runtime.bundle import open_bundle
from runtime.onnx_file import read_onnx_header

GATE = "gate: {metric_drop_points: 5, top1_agreement: 0.9}"
FORMS = f"""\
name: forms
data: {{source: digits, relabel: {{modulo: 2}}}}
train: {{epochs: 2, batch_size: 64, optimizer: {{adam: {{lr: 1e-2}}}}}}
stages:
  student: {{model: {{small_cnn: {{widths: [8, 12]}}}}, subclasses: 2, objective: [ce, subclass_auxiliary]}}
export:
  stage: student
  formats: [onnx, fp16, {{int8: {{rows: 64, {GATE}}}}}, {{int8_cpu: {{rows: 64, {GATE}}}}}]
  batch_sizes: [1, 8]
"""


def opsets(path: Any) -> dict[str, tuple[int | None, int | None]]:
    """Return opset and IR version of each format, after comparing the manifest with the files."""
    bundle = open_bundle(path)
    said = {name: (form.opset, form.ir_version) for name, form in bundle.formats.items()}
    for name, (opset, ir_version) in said.items():
        header = read_onnx_header(bundle.file_of(name))
        assert (header.opset, header.ir_version) == (opset, ir_version)
    return said


def test_an_export_for_an_older_engine_stands_beside_the_recipes_own(empty_project: Any) -> None:
    project = empty_project
    recipe = project.write(FORMS)
    project.run(recipe, until="export")
    own, older = project.runs / "forms", project.runs / "forms@opset13"
    before = (own / "bundle/manifest.json").read_bytes()
    outcome = project.invoke("export", recipe, "--opset", 13)
    assert outcome.exit_code == 0, outcome.output  # 3 where a gate is missed
    assert f"edgefold bench {older / 'bundle'}" in outcome.stdout
    assert opsets(older / "bundle") == dict.fromkeys(["onnx", "fp16", "int8", "int8_cpu"], (13, 7))
    assert opsets(own / "bundle") == dict.fromkeys(["onnx", "fp16", "int8", "int8_cpu"], (20, 10))
    parity = json.loads((older / "parity.json").read_text())["formats"]
    assert [form["passed"] for form in parity.values()] == [True] * 4
    # The same student: its stages were not trained again, and its logits are the same.
    assert "2  reused" in outcome.stderr
    assert "epoch 1/" not in outcome.stderr
    samples = [open_bundle(folder / "bundle").samples() for folder in (own, older)]
    np.testing.assert_array_equal(samples[0].logits, samples[1].logits)
    assert open_bundle(older / "bundle").name == "forms@opset13"
    assert (own / "bundle/manifest.json").read_bytes() == before
    # Verbs find each by its name.
    for name, folder in ((f"{recipe}@opset13", older), (recipe, own)):
        measured = json.loads(project.invoke("accuracy", name, "--json").stdout)
        assert measured["bundle"]["checksum"] == open_bundle(folder / "bundle").checksum
    nothing = project.invoke("bench", f"{recipe}@opset14")
    assert (nothing.exit_code, "has no bundle below" in nothing.stderr) == (2, True)
    assert "Run `edgefold export " in nothing.stderr
    assert "--opset 14` first." in nothing.stderr


def test_a_recipe_says_the_opset_of_its_files(empty_project: Any) -> None:
    recipe = empty_project.edit("export: {stage: student,", "export: {stage: student, opset: 17,")
    empty_project.run(recipe, until="verify")  # raises where a gate is missed
    folder = empty_project.runs / "tiny"
    assert opsets(folder / "bundle") == {"onnx": (17, 8)}
    assert json.loads((folder / "parity.json").read_text())["passed"]
    assert "opset: 17" in read_onnx_header(folder / "bundle/model.onnx").metadata["edgefold.recipe"]


@pytest.mark.parametrize(
    ("formats", "opset", "said"),
    [
        ("[onnx, bf16]", 17, "--opset: came 17, but bf16 needs 22 at least, since before it Conv takes no bfloat16"),
        ("[onnx]", 21, "21 is not in the range 13<=x<=20"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    empty_project: Any, formats: str, opset: int, said: str
) -> None:
    recipe = empty_project.edit("export: {stage: student,", f"export: {{stage: student, formats: {formats},")
    outcome = empty_project.invoke("export", recipe, "--opset", opset)
    assert outcome.exit_code == 2
    assert said in outcome.stderr
    assert not empty_project.runs.exists()


def test_results_are_filed_by_every_mark(empty_project: Any) -> None:
    (variant,) = load_variants(empty_project.recipe, Selection(scale=0.5, opset=17))
    assert variant.name == "tiny@0.5@opset17"
    assert variant.recipe.export.opset == 17
    assert load_variants(empty_project.recipe, Selection(opset=17))[0].name == "tiny@opset17"


def test_every_format_that_is_too_young_is_named() -> None:
    assert opset_problem([OnnxSpec(), Int4Spec(), QonnxSpec()], None) is None
    assert opset_problem([OnnxSpec(), QonnxSpec()], 15) is None
    said, remedy = opset_problem([OnnxSpec(), Int4Spec(), QonnxSpec()], 14) or ("", "")
    assert "int4 needs 21 at least, since before it there are no tensors of 4 bits; qonnx needs 15 at least" in said
    assert remedy == "Leave int4 and qonnx out of the formats, or leave opset out."
    assert (opset_problem([QonnxSpec()], 14) or ("", ""))[1] == "Leave qonnx out of the formats, or choose 15."


def test_a_recipe_that_exports_nothing_has_no_opset(empty_project: Any, untrained_text: str) -> None:
    outcome = empty_project.invoke("export", empty_project.write(untrained_text), "--opset", 17)
    assert outcome.exit_code == 2
    assert "recipe tiny exports nothing" in outcome.stderr
