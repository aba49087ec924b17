"""A binary recipe from end to end: the packed file and the portable one are the student that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import ops_builds
import packed_models
import pytest
from click.testing import CliRunner, Result

from compress.cli import main as edgefold
from runtime.bundle import open_bundle
from runtime.onnx_file import read_onnx_header

RECIPE = """\
name: tiny
data: {source: digits}
train: {epochs: 3, batch_size: 64, optimizer: {adam: {lr: 1e-2}}}
stages:
  student:
    model: {binary_resnet: {blocks: [1, 1], widths: [16, 40], stem: conv3, init: he}}
    objective: ce
export: {stage: student, formats: [onnx, packed], batch_sizes: [1, 8]}
benchmark: [{local: {quick: true}}]
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and the finished run, measurements included."""
    folder = tmp_path_factory.mktemp("binary")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFOLD_OPS_LIBRARY", str(ops_builds.operators()))
        result = call("run", folder / "tiny.yaml", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs/tiny" / name).read_text())


def test_both_forms_pass_the_gate_of_equality(folder: Path) -> None:
    parity = read(folder, "parity.json")
    assert list(parity["formats"]) == ["onnx", "packed"]
    for name, precision in (("onnx", "fp32"), ("packed", "packed")):
        form = parity["formats"][name]
        assert (form["passed"], form["precision"], form["batch_sizes"]) == (True, precision, [1, 8])
        assert form["comparison"]["max_error_over_std"] < 1e-5


@pytest.mark.parametrize("name", ["onnx", "packed"])
def test_every_test_row_is_predicted_as_by_torch(folder: Path, name: str) -> None:
    accuracy = read(folder, f"accuracy.{name}.json")
    assert accuracy["rows_unlike_torch"] == []
    assert accuracy["accuracy"] > 0.7
    assert read(folder, f"bench.{name}.local.json")["precision"] == {"onnx": "fp32", "packed": "packed"}[name]


def test_the_bundle_says_what_lies_in_it(folder: Path) -> None:
    bundle = open_bundle(folder / "runs/tiny/bundle")
    assert {name: (form.file, form.precision) for name, form in bundle.formats.items()} == {
        "onnx": ("model.onnx", "fp32"),
        "packed": ("model.packed.onnx", "packed"),
    }
    assert bundle.formats["packed"].size_bytes * 2 < bundle.formats["onnx"].size_bytes
    portable, packed = (read_onnx_header(bundle.file_of(name)) for name in bundle.formats)
    assert (portable.opsets, packed.opsets) == ({"": 20}, {"": 20, "edgefold": 1})
    assert packed.metadata["edgefold.ops"] == "1"
    assert packed.metadata["edgefold.class_names"] == portable.metadata["edgefold.class_names"]


def test_the_summary_has_a_row_for_each_form(folder: Path) -> None:
    report = read(folder, "report.json")
    rows = {row["name"]: row for row in report["rows"] if row["what"] == "export"}
    assert list(rows) == ["student · onnx", "student · packed"]
    assert all(row["parity"] == "passed" and row["p50_ms"] > 0 for row in rows.values())


def test_verify_and_inspect_know_both_forms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_OPS_LIBRARY", str(ops_builds.operators()))
    result = call("verify", folder / "runs/tiny/bundle", "--json")
    assert [form["format"] for form in json.loads(result.stdout)] == ["onnx", "packed"]
    samples = open_bundle(folder / "runs/tiny/bundle").samples()
    assert samples.logits is not None
    assert len(np.unique(samples.logits.argmax(1))) > 5


def test_bench_of_the_best_form_says_why_it_took_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_OPS_LIBRARY", str(folder / "nowhere.so"))
    result = call("bench", folder / "runs/tiny/bundle", "--format", "best", "--quick", "--json")
    document = json.loads(result.stdout)
    assert document["format"] == "onnx"
    assert any("packed does not run here: EDGEFOLD_OPS_LIBRARY is" in note for note in document["notes"])


def test_the_cpp_example_classifies_image_files(folder: Path, tmp_path: Path) -> None:
    bundle = open_bundle(folder / "runs/tiny/bundle")
    rows = bundle.samples().first(20)
    files = [tmp_path / f"{row}.pgm" for row in rows.row_ids]
    for file, image in zip(files, rows.inputs, strict=True):
        packed_models.write_image(file, image)
    done = ops_builds.run(
        ops_builds.examples() / "classify",
        "--onnxruntime", ops_builds.onnxruntime_library(), "--ops", ops_builds.operators(), bundle.path, *files,
    )  # fmt: skip
    assert rows.logits is not None
    expected = [bundle.class_names[i] for i in rows.logits.argmax(1)]
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected
    assert len(set(expected)) > 3
