"""Two checkouts in different folders export the same bytes, and nothing that they write names a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("compress", "export", "runtime")
RECIPE = """\
name: tiny
description: Notes are in {folder}/notes/plan.txt
data: {{source: digits, root: "{folder}/data", relabel: {{modulo: 2}}}}
train: {{epochs: 1, batch_size: 64, optimizer: {{adam: {{lr: 1e-2}}}}}}
stages:
  teacher: {{model: {{mlp: {{hidden: [8]}}}}, objective: ce}}
  student:
    model: {{small_cnn: {{widths: [4, 8]}}}}
    subclasses: 2
    teacher: [teacher]
    objective: [kl, ce, subclass_auxiliary]
export:
  stage: student
  formats: [onnx, fp16, {{int8: {{rows: 64, method: minmax, gate: {{metric_drop_points: 50, top1_agreement: 0.5}}}}}}]
  batch_sizes: [1, 8]
benchmark: []
"""
BINARY = """\
name: binary
data: {source: digits, relabel: {modulo: 2}}
train: {epochs: 1, batch_size: 64}
stages: {student: {model: {binary_cnn: {widths: [8, 16]}}, objective: ce}}
export: {stage: student, formats: [onnx, packed], batch_sizes: [1]}
"""


def call(checkout: Path, *calls: Sequence[str]) -> None:
    """Call `edgefold` of a checkout several times in a process, from its own folder and with a home of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HOME": str(checkout / "home"), "PYTHONSAFEPATH": "1"}
    code = "import json, sys; from compress.cli import main\n"
    code += "for call in json.loads(sys.argv[1]): main(call, standalone_mode=False)"
    command = [sys.executable, "-c", code, json.dumps(calls)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two copies of the packages with runs/: the first trained and measured, the second exported from its stages."""
    first, second = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there") / "in" / "a-deeper-folder"
    for folder in (first, second):
        folder.mkdir(parents=True, exist_ok=True)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "home").mkdir()
        (folder / "tiny.yaml").write_text(RECIPE.format(folder=folder))
        (folder / "binary.yaml").write_text(BINARY)
    call(first, ["run", "tiny.yaml"], ["export", "binary.yaml"])
    shutil.copytree(first / "runs" / "stages", second / "runs" / "stages")
    call(second, ["export", "tiny.yaml"], ["export", "binary.yaml"])
    return first, second


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("tiny", {"model.onnx", "model.fp16.onnx", "model.int8.onnx"}),
        ("binary", {"model.onnx", "model.packed.onnx"}),
    ],
)
def test_two_exports_are_byte_identical(checkouts: tuple[Path, Path], name: str, models: set[str]) -> None:
    first, second = (files_of(checkout / "runs" / name / "bundle") for checkout in checkouts)
    others = {"MODEL_CARD.md", "manifest.json", "samples.npz", "labels.txt", "checksums.sha256"}
    assert first.keys() == second.keys() == models | others
    assert [file for file in first if first[file] != second[file]] == []


def test_the_second_one_trained_nothing(checkouts: tuple[Path, Path]) -> None:
    first, second = (files_of(checkout / "runs" / "stages") for checkout in checkouts)
    assert first == second


def test_no_artifact_names_a_folder(checkouts: tuple[Path, Path]) -> None:
    """Of the checkouts, this one, the homes, the interpreter: in no file of a run, its stages included."""
    written = {
        f"{checkout.name}/{name}": data for checkout in checkouts for name, data in files_of(checkout / "runs").items()
    }
    assert any(name.endswith("tiny/report.html") for name in written)
    assert any(name.endswith("tiny/MODEL_CARD.md") for name in written)
    places = [*map(str, checkouts), str(ROOT), str(Path.home()) + os.sep, sys.prefix, sys.base_prefix]
    found = [(name, place) for name, data in written.items() for place in places if place.encode() in data]
    assert found == []
