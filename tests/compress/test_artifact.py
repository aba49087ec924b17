"""Stages on disk: reused while whole, made again when damaged, shared by recipes, locked while in work."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.artifact import StageStore, locked
from compress.pipeline import plans_of

ROOT = Path(__file__).parents[2]

HOLDER = """\
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def stage_folder(project: Any, name: str) -> Path:
    (plan,) = plans_of(project.recipe, None)
    return project.runs / "stages" / plan.stage(name).key


def flip(path: Path, after: bytes | None = None) -> None:
    """Change one byte: in the middle, or the one that follows `after`."""
    data = bytearray(path.read_bytes())
    position = len(data) // 2 if after is None else data.index(after) + len(after)
    data[position] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights flipped": lambda folder: flip(folder / "weights.safetensors"),
    "weights truncated": lambda folder: truncate(folder / "weights.safetensors"),
    "weights empty": lambda folder: (folder / "weights.safetensors").write_bytes(b""),
    "weights missing": lambda folder: (folder / "weights.safetensors").unlink(),
    "log flipped": lambda folder: flip(folder / "log.jsonl"),
    "log truncated": lambda folder: truncate(folder / "log.jsonl"),
    "log missing": lambda folder: (folder / "log.jsonl").unlink(),
    "stage truncated": lambda folder: truncate(folder / "stage.json"),
    "stage empty": lambda folder: (folder / "stage.json").write_bytes(b""),
    "stage not text": lambda folder: (folder / "stage.json").write_bytes(b"\xff\xfe{"),
    "stage not a mapping": lambda folder: (folder / "stage.json").write_text("[]"),
    "a flipped digit in a metric": lambda folder: flip(folder / "stage.json", b'"correct": '),
    "a flipped digit in the key": lambda folder: flip(folder / "stage.json", b'"key": "'),
}


def test_a_second_run_trains_nothing_and_writes_no_stage(project: Any) -> None:
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (project.runs / "stages").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }
    assert len(before) == 6
    _, narration = project.run(until="train")
    assert narration.events == []
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_damaged_stage_is_made_again_with_a_warning(project: Any, damage: str, stage: str) -> None:
    folder, other = stage_folder(project, "teacher"), stage_folder(project, "student")
    if stage == "student":
        folder, other = other, folder
    weights = (folder / "weights.safetensors").read_bytes()
    record = json.loads((folder / "stage.json").read_text())
    untouched = (other / "stage.json").stat().st_mtime_ns
    DAMAGES[damage](folder)

    outcome, narration = project.run(until="train")
    (warning,) = narration.warnings
    assert str(folder) in warning
    assert damage.split()[0] in warning or "stage.json" in warning
    assert narration.trained == [stage]
    assert (folder / "weights.safetensors").read_bytes() == weights
    again = json.loads((folder / "stage.json").read_text())
    assert again["metrics"] == record["metrics"]
    assert (other / "stage.json").stat().st_mtime_ns == untouched
    assert [row.name for row in outcome.rows if row.what == "stage"] == ["teacher", "student"]

    assert project.run(until="train")[1].events == []


def test_a_stage_of_another_key_is_not_taken_for_this_one(project: Any) -> None:
    teacher, student = stage_folder(project, "teacher"), stage_folder(project, "student")
    weights = (student / "weights.safetensors").read_bytes()
    for file in ("weights.safetensors", "log.jsonl", "stage.json"):
        (student / file).write_bytes((teacher / file).read_bytes())
    _, narration = project.run(until="train")
    assert narration.trained == ["student"]
    assert len(narration.warnings) == 1
    assert (student / "weights.safetensors").read_bytes() == weights


def test_another_recipe_with_the_same_teacher_reuses_its_stage(project: Any) -> None:
    text = project.text.replace("name: tiny", "name: second").replace("hidden: [8]", "hidden: [6]")
    text = text.replace("  teacher:\n", "  expert:\n").replace("teacher: teacher", "teacher: expert")
    second = project.write(text, "elsewhere.yaml")
    _, narration = project.run(second, until="train")
    assert narration.trained == ["student"]
    assert narration.warnings == []
    used = json.loads((project.runs / "second" / "run.json").read_text())["stages"]
    assert used["expert"] == stage_folder(project, "teacher").name
    assert used["student"] != stage_folder(project, "student").name
    assert len(list((project.runs / "stages").glob("*/stage.json"))) == 3


def test_equal_stages_of_one_recipe_are_trained_once(empty_project: Any) -> None:
    text = empty_project.text.split("export:")[0]
    twin = "  twin:\n    model: {mlp: {hidden: [32]}}\n    subclasses: 2\n    objective: [ce, subclass_auxiliary]\n"
    outcome, narration = empty_project.run(empty_project.write(text + twin), until="train")
    assert narration.trained == ["teacher", "student"]
    assert [row.name for row in outcome.rows] == ["teacher", "student", "twin"]
    assert outcome.rows[0].accuracies == outcome.rows[2].accuracies


def test_a_changed_teacher_is_trained_again_with_all_below_it(project: Any) -> None:
    project.edit("hidden: [32]", "hidden: [24]")
    assert project.run(until="train")[1].trained == ["teacher", "student"]


def test_training_one_stage_makes_it_and_those_it_needs(empty_project: Any) -> None:
    outcome, narration = empty_project.run(until="train", only="teacher")
    assert narration.trained == ["teacher"]
    assert [row.name for row in outcome.rows] == ["teacher"]
    assert empty_project.run(until="train", only="student")[1].trained == ["student"]


def test_a_finished_stage_keeps_what_made_it_and_no_checkpoint(finished: Any) -> None:
    (plan,) = plans_of(finished.recipe, None)
    for stage in plan.stages:
        folder = finished.runs / "stages" / stage.key
        assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "log.jsonl", "stage.json"}
        record = json.loads((folder / "stage.json").read_text())
        assert record["key"] == stage.key
        assert record["resolved"] == json.loads(json.dumps(stage.resolved))
        assert record["versions"]["torch"] == torch.__version__
        artifact = StageStore(finished.runs).find(stage.key, pytest.fail)
        assert artifact is not None
        assert [line["epoch"] for line in artifact.log()] == [1, 2]
        assert artifact.metrics["parameters"] == sum(value.numel() for value in artifact.weights().values())


def test_a_stage_without_its_record_is_not_there_and_needs_no_warning(project: Any) -> None:
    # What a run leaves that was killed after the weights and before stage.json, which comes last.
    folder = stage_folder(project, "student")
    (folder / "stage.json").unlink()
    assert StageStore(project.runs).find(folder.name, pytest.fail) is None
    _, narration = project.run(until="train")
    assert (narration.trained, narration.warnings) == (["student"], [])


def test_what_a_killed_writer_left_is_removed(project: Any) -> None:
    folder = stage_folder(project, "student")
    (folder / "stage.json").unlink()
    left = [folder / ".weights.safetensors.abc.part", project.results / ".bundle.abc.part" / "model.onnx"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    project.run(until="train")
    assert not any(path.exists() for path in left)
    assert not left[1].parent.exists()


# Locks


@pytest.fixture
def holder(project: Any) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the run folder until a line comes on its stdin."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(project.results / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate(timeout=20)


def test_a_second_process_waits_says_so_and_then_finishes(
    project: Any, holder: subprocess.Popen[str], narration: Any
) -> None:
    from compress.pipeline import run_plans
    from compress.stages import Settings

    waited = threading.Event()
    still_held: list[bool] = []

    def listen(event: Any) -> None:
        narration(event)
        if isinstance(event, str) and "in use by another edgefold process" in event:
            still_held.append(holder.poll() is None)
            waited.set()

    def release() -> None:
        waited.wait(timeout=30)
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()

    releaser = threading.Thread(target=release)
    releaser.start()
    outcome = run_plans(plans_of(project.recipe, None), Settings(project.runs, None, "cpu"), listen, until="train")
    releaser.join()
    assert still_held == [True]
    assert holder.wait(timeout=20) == 0
    assert narration.messages == [
        f"recipe tiny ({project.results}) is in use by another edgefold process; "
        "waiting for it to end (Ctrl-C to give up)"
    ]
    assert len(outcome.rows) == 3


def test_the_lock_is_given_back_when_a_run_fails(tmp_path: Path) -> None:
    said: list[str] = []

    def fail() -> None:
        with locked(tmp_path / "folder" / ".lock", "it", said.append):
            raise RuntimeError("on the way")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="on the way"):
            fail()
    assert said == []


# Nothing is unpickled

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SOURCES = [path for package in ("compress", "export", "runtime") for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load":  # of weights that were made elsewhere: tensors alone, by torch's own reader
                assert "weights_only=True" in map(ast.unparse, node.keywords)
                continue
            assert called not in {"torch.save", "torch.hub.load", "yaml.load", "yaml.unsafe_load"}
            pickles = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in pickles)
