"""Quantised students by a recipe: from a float stage to files that run, and what training on the grid is good for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.evaluate import predict, score
from compress.layers.quant import QuantLayer
from compress.pipeline import plans_of
from compress.progress import Progress
from compress.rows import Rows
from compress.stages import Settings
from compress.variant_run import VariantRun
from runtime.bundle import open_bundle

DATA = os.environ.get("EDGEFOLD_DATA")  # read here: the tests of this folder hide it

DIGITS = """\
name: few-bits
data: {source: digits, validation: 0}
train: {epochs: 6, batch_size: 64, optimizer: {adam: {lr: 5e-3}}}
stages:
  teacher: {model: {mlp: {hidden: [64]}}, objective: ce}
  float: {model: {small_cnn: {widths: [8, 12]}}, objective: ce}
  quantized:
    like: float
    init_from: float
    teacher: teacher
    objective: [{kl: {weight: 0.5}}, ce, {srrl: {reduction: code}}]
    quantize: {weights: 4, activations: 4}
    train: {epochs: 6, optimizer: {adam: {lr: 2e-3}}}
export: {stage: quantized, formats: [onnx, int4, qonnx], batch_sizes: [1, 8]}
"""


def quiet(event: Progress | str) -> None:
    pass


def test_a_recipe_gives_a_distilled_few_bit_student_and_its_files(empty_project: Any) -> None:
    project = empty_project
    recipe = project.write(DIGITS)
    outcome, narration = project.run(recipe, until="verify")
    assert narration.trained == ["teacher", "float", "quantized"]
    folder = project.runs / "few-bits"
    bundle = open_bundle(folder / "bundle")
    assert {name: file.precision for name, file in bundle.formats.items()} == {
        "onnx": "int8", "int4": "int4", "qonnx": "qonnx"
    }  # fmt: skip
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert "| onnx | int8 |" in card
    assert "| quantized | small_cnn W4A4 | teacher |" in card
    assert bundle.formats["int4"].size_bytes < bundle.formats["onnx"].size_bytes
    parity = json.loads((folder / "parity.json").read_text())["formats"]
    assert all(report["passed"] and report["comparison"]["rms_error_over_std"] < 0.02 for report in parity.values())
    tests = {row.name: row.mean for row in outcome.rows}
    assert tests["float"] > 0.8
    assert tests["quantized"] > tests["float"] - 0.1
    assert {row.model for row in outcome.rows} == {"mlp", "small_cnn", "small_cnn W4A4"}
    plan = project.invoke("plan", recipe)
    assert "small_cnn W4A4" in plan.stdout
    assert "reused" in plan.stdout
    _, narration = project.run(recipe, until="verify")
    assert narration.trained == []


def test_a_finished_quantised_stage_teaches_in_another_recipe(empty_project: Any) -> None:
    project = empty_project
    text = DIGITS.split("export:")[0]
    project.run(project.write(text), until="train")
    key = json.loads((project.runs / "few-bits" / "run.json").read_text())["stages"]["quantized"]
    head = text.split("stages:")[0].replace("few-bits", "pupil")
    project.write(
        f"{head}stages:\n  pupil: {{model: {{mlp: {{hidden: [8]}}}}, objective: kl, "
        f"teacher: {{artifact: {project.runs / 'stages' / key}}}}}\n",
        "pupil.yaml",
    )
    outcome, _ = project.run(project.folder / "pupil.yaml", until="train")
    taught_by = outcome.rows[0].agreement_with_teacher
    assert taught_by is not None
    assert taught_by > 0.5


MNIST = """\
name: mnist-few-bits
data: {source: mnist, validation: 0, train_rows: 8000}
train: {epochs: 1, batch_size: 64, optimizer: {adam: {lr: 1e-2}}, schedule: cosine}
stages:
  float: {model: {small_cnn: {widths: [8, 16, 16]}}, objective: ce, train: {epochs: 3}}
  w8: {like: float, init_from: float, teacher: float, objective: kl, quantize: {weights: 8}, train: {epochs: 1}}
  w4: {like: w8, quantize: {weights: 4, activations: 4, first_last: same}}
  w2: {like: w8, quantize: {weights: 2, activations: 4, first_last: same}}
"""


def rounded_after_training(run: VariantRun, stage: str) -> nn.Module:
    """Return the float stage's model on the grid of `stage`, with steps of one batch and nothing learned."""
    model = run.plan.stage(stage).build_model()
    model.load_state_dict(run.artifacts["float"].weights())
    model.eval()
    for each in model.modules():
        each.training = isinstance(each, QuantLayer)
    with torch.no_grad():
        model(run.preprocess(torch.from_numpy(run.dataset.train.inputs[:64])))
    return model.eval()


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="needs EDGEFOLD_DATA to name a folder with mnist/")
def test_training_on_the_grid_beats_rounding_on_mnist(tmp_path: Path) -> None:
    root = Path(str(DATA))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MNIST, encoding="utf-8")
    (plan,) = plans_of(recipe, root)
    run = VariantRun(plan, Settings(tmp_path / "runs", root, "cpu"), quiet)
    run.train()
    trained = {name: artifact.metrics["test"]["accuracy"] for name, artifact in run.artifacts.items()}

    def rounded(stage: str) -> float:
        rows = Rows(run.dataset.test, torch.device("cpu"))
        model: Any = rounded_after_training(run, stage)
        return score(predict(model, run.preprocess, rows), rows.labels, 1).accuracy

    after = {name: rounded(name) for name in ("w8", "w4", "w2")}
    assert trained["float"] > 0.9
    assert abs(trained["w8"] - trained["float"]) < 0.01
    assert abs(after["w8"] - trained["float"]) < 0.01
    assert trained["w4"] > after["w4"] + 0.02
    assert trained["w4"] > trained["float"] - 0.025
    assert trained["w2"] > after["w2"] + 0.3
    assert trained["w2"] > trained["float"] - 0.12
