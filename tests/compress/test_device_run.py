"""Devices that a recipe's `benchmark:` names: refused before training, measured after parity, never lost."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SSHD, ssh_server

from compress import device_run
from compress.device_run import Device, devices_of, serves
from compress.formats import PackedSpec
from compress.named_device import DeviceSpec
from compress.pipeline import plans_of
from compress.recipe import LocalSpec, Recipe, load_recipe
from compress.targets import Target
from runtime.errors import RecipeError, RunError, UsageError

BENCHMARK = "benchmark: [{local: {quick: true}}]"
HOSTS = "pi4: {host: pi4.local, threads: 4, limits: {p90_ms: 5}}\nphone: {serial: emulator-5554, formats: [onnx]}\n"


def recipe_with(project: Any, benchmark: str) -> Recipe:
    return load_recipe(project.edit(BENCHMARK, f"benchmark: {benchmark}"))[0]


def targets_file(folder: Path, text: str = HOSTS) -> Path:
    path = folder / "targets.yaml"
    path.write_text(text)
    return path


def test_a_word_that_is_no_kind_is_a_device(empty_project: Any, tmp_path: Path) -> None:
    recipe = recipe_with(empty_project, "[local, pi4, {pi4: {threads: 2, batch: 8, quick: true}}]")
    assert recipe.benchmark == (
        LocalSpec(),
        DeviceSpec(name="pi4"),
        DeviceSpec(name="pi4", threads=2, batch=8, quick=True),
    )
    assert recipe.local_targets == (LocalSpec(),)
    written = recipe.model_dump(mode="json")["benchmark"]
    assert written[1:] == [{"pi4": {}}, {"pi4": {"threads": 2, "batch": 8, "quick": True}}]
    devices = devices_of(recipe, targets_file(tmp_path))
    assert list(devices) == ["pi4", "pi4-threads-2-batch-8"]
    assert [(each.target.threads, each.target.batch) for each in devices.values()] == [(4, 1), (2, 8)]
    assert devices["pi4"].target.limits.p90_ms == 5


def test_a_full_result_serves_where_a_quick_one_is_enough() -> None:
    full, quick, batch = {"threads": 1, "quick": False}, {"threads": 1, "quick": True}, {"threads": 1}
    assert not serves(None, full)
    assert serves({"settings": full}, full)
    assert serves({"settings": full}, quick)
    assert serves({"settings": quick}, quick)
    assert not serves({"settings": quick}, full)
    assert not serves({"settings": {**full, "threads": 2}}, quick)
    assert serves({"settings": batch}, batch)
    assert not serves({"settings": None}, batch)


@pytest.mark.parametrize(
    ("benchmark", "said"),
    [
        (
            "\n  - local\n  - pi4:\n      thread: 2",
            "line 19: benchmark[1].pi4.thread: unknown key\n           Did you mean 'threads'? Known: engine, ",
        ),
        ("[{pi4: {threads: 0}}]", "benchmark[0].pi4.threads: came 0, expected at least 1"),
        ("[{pi4: {engine: openvin}}]", "benchmark[0].pi4.engine: came 'openvin', expected 'onnxruntime', 'openvino'"),
        ("[{pi4: {engine: tensorrt, precision: bf16}}]", "precision bf16 without engine openvino"),
        ("[{pi4: {engine: openvino}}, {pi4: {engine: openvino}}]", "target 'pi4-openvino' stands twice"),
        ("['a b']", "benchmark[0]: came 'a b', expected letters, digits"),
        ("[4]", "benchmark[0]: expected one target"),
        (
            "[{local: {thread: 2}}]",
            "'threads'? Known: engine, provider, precision, threads, batch, quick.",
        ),
        ("[pi4, local, pi4]", "benchmark[2]: target 'pi4' stands twice"),
    ],
)
def test_what_cannot_be_a_device_is_refused_with_its_line(empty_project: Any, benchmark: str, said: str) -> None:
    empty_project.edit(BENCHMARK, f"benchmark: {benchmark}")
    with pytest.raises(RecipeError) as caught:
        plans_of(empty_project.recipe, None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (HOSTS.replace("pi4:", "pi5:"), "has no target 'pi4', which benchmark of tiny names\nDid you mean 'pi5'?"),
        (HOSTS.replace("p90_ms: 5", "p90_ms: fast"), "line 1: pi4.limits.p90_ms: came 'fast', expected a number"),
        (
            HOSTS.replace("threads: 4", "formats: [int8]"),
            "target pi4 of {file} takes int8, and the recipe exports onnx",
        ),
        (None, "cannot be read: No such file"),
    ],
)
def test_targets_are_read_before_anything_is_trained(empty_project: Any, targets: str | None, said: str) -> None:
    empty_project.edit(BENCHMARK, "benchmark: [pi4]")
    file = targets_file(empty_project.folder, targets) if targets else empty_project.folder / "targets.yaml"
    result = empty_project.invoke("run", empty_project.recipe, "--targets", file)
    assert result.exit_code == 2
    assert said.format(file=file) in result.stderr
    assert not (empty_project.runs / "stages").exists()
    checked = empty_project.invoke("check", empty_project.recipe, "--targets", file)
    assert checked.exit_code == (2 if targets else 0)  # a check needs no devices
    assert targets is None or said.format(file=file) in checked.stderr


def test_a_recipe_s_engine_takes_the_place_of_the_target_s(empty_project: Any, tmp_path: Path) -> None:
    file = targets_file(
        tmp_path, "pi4: {host: a, provider: xnnpack}\npi5: {host: b, engine: openvino, precision: bf16}\n"
    )
    named = "{pi4: {engine: openvino, precision: bf16, threads: 2}}, {pi5: {engine: onnxruntime}}"
    devices = devices_of(recipe_with(empty_project, f"[pi4, pi5, {named}]"), file)
    choices = {label: each.target.choice.to_json() for label, each in devices.items()}
    assert choices == {
        "pi4": {"provider": "xnnpack"},
        "pi5": {"engine": "openvino", "precision": "bf16"},
        "pi4-openvino-bf16-threads-2": {"engine": "openvino", "precision": "bf16"},
        "pi5-onnxruntime": {"engine": "onnxruntime"},
    }
    # What was measured before targets had engines is not measured again.
    plain = Device("pi4", Target(host="a")).settings(False)
    assert plain == {"host": "a", "python": "python3", "threads": 1, "batch": 1, "quick": False}
    assert devices["pi5"].settings(False) == {**plain, "host": "b", "engine": "openvino", "precision": "bf16"}


def test_an_engine_that_runs_no_format_is_refused_before_training(empty_project: Any, tmp_path: Path) -> None:
    recipe = recipe_with(empty_project, "[{pi4: {engine: openvino}}]")
    packed = recipe.export.model_copy(update={"formats": (PackedSpec(),)})  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"target pi4-openvino of .* runs openvino, which runs none of packed"):
        devices_of(recipe.model_copy(update={"export": packed}), targets_file(tmp_path))


class Box:
    """Takes the place of the devices: notes what is asked, and fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failing = failing
        self.busy: set[tuple[Any, ...]] = set()
        monkeypatch.setattr(device_run, "bench_on_target", self.bench)
        monkeypatch.setattr(device_run, "accuracy_on_target", self.accuracy)

    def bench(self, name: str, target: Target, bundle: Any, *, formats: Any, quick: bool, notify: Any) -> Any:
        if name in self.failing:
            raise RunError(f"target {name}: the link ended")
        address = Device(name, target).address
        assert address not in self.busy  # two entries of one machine would slow each other
        self.busy.add(address)
        threading.Event().wait(0.05)
        self.busy.remove(address)
        self.asked.append(("bench", name))
        percentiles = {each: {"measured_ms": 1.0} for each in ("p50", "p90", "p99")}
        result = json.loads(next(bundle.path.parent.glob("bench.onnx.local*.json")).read_text())
        made = {**result, "latency": {**result["latency"], "percentiles": percentiles}, "target": {"name": name}}
        return dict.fromkeys(formats, made)

    def accuracy(
        self, name: str, target: Target, bundle: Any, rows: Path, *, formats: Any, here: Any, notify: Any
    ) -> Any:
        self.asked.append(("accuracy", name))
        assert rows.exists()
        predictions = {str(row): label for row, label in here["onnx"].items()}
        first = min(predictions, key=int)
        predictions[first] = 1 - predictions[first]
        identity = json.loads((bundle.path.parent / "accuracy.onnx.json").read_text())["bundle"]
        total = len(predictions)
        return {
            form: {"bundle": identity, "predictions": predictions, "correct": 1, "total": total} for form in formats
        }


def test_results_are_kept_beside_torch_and_not_made_again(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit(BENCHMARK, "benchmark: [{local: {quick: true}}, pi4, {pi4: {threads: 2}}]")
    file = targets_file(project.folder, "pi4: {host: pi4.local}\n")
    box = Box(monkeypatch)
    result = project.invoke("run", project.recipe, "--targets", file)
    assert result.exit_code == 0, result.stderr
    assert sorted(box.asked) == [(verb, name) for verb in ("accuracy", "bench") for name in ("pi4", "pi4-threads-2")]
    accuracy = json.loads((project.results / "accuracy.onnx.pi4-threads-2.json").read_text())
    here = json.loads((project.results / "accuracy.onnx.json").read_text())
    assert accuracy["rows_unlike_torch"] == [min(map(int, here["predictions"]))]
    assert accuracy["torch_correct"] == here["correct"]  # this machine's file is torch's to the last row
    rows = json.loads((project.results / "report.json").read_text())["rows"]
    assert [row["target"] for row in rows if row["what"] == "export"] == ["local", "pi4", "pi4-threads-2"]
    project.invoke("report", project.recipe, "--targets", file)
    assert len(box.asked) == 4
    targets_file(project.folder, "pi4: {host: other.local}\n")
    project.invoke("report", project.recipe, "--targets", file)
    assert len(box.asked) == 8


def test_another_engine_is_shown_and_a_changed_one_measured_anew(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit(BENCHMARK, "benchmark: [{local: {quick: true}}, pi4, {pi4: {engine: openvino}}]")
    file = targets_file(project.folder, "pi4: {host: pi4.local}\n")
    box = Box(monkeypatch)
    result = project.invoke("run", project.recipe, "--targets", file)
    assert result.exit_code == 0, result.stderr
    rows = json.loads((project.results / "report.json").read_text())["rows"]
    shown = [(row["target"], row["name"], row["engine"], row["parity"]) for row in rows if row["what"] == "export"]
    assert shown == [
        ("local", "student · onnx", "", "passed"),
        ("pi4", "student · onnx", "", "passed"),
        ("pi4-openvino", "student · onnx@openvino", "openvino", "passed"),
    ]
    assert (
        json.loads((project.results / "bench.onnx.pi4-openvino.json").read_text())["settings"]["engine"] == "openvino"
    )
    assert len(box.asked) == 4
    targets_file(project.folder, "pi4: {host: pi4.local, engine: openvino}\n")
    project.invoke("report", project.recipe, "--targets", file)
    assert sorted(box.asked[4:]) == [("accuracy", "pi4"), ("bench", "pi4")]  # the other was measured so before


def test_a_device_that_fails_costs_no_other_result(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit(BENCHMARK, "benchmark: [{local: {quick: true}}, pi4, phone]")
    file = targets_file(project.folder, HOSTS.replace("p90_ms: 5", "p90_ms: 0.5"))
    Box(monkeypatch, failing=("phone",))
    result = project.invoke("run", project.recipe, "--targets", file)
    assert result.exit_code == 1
    assert "error: target phone: the link ended" in result.stderr
    assert "target pi4, student · onnx: p90_ms is 1, allowed 0.5" in result.stderr
    assert (project.results / "bench.onnx.pi4.json").exists()
    page = (project.results / "report.html").read_text()
    assert "Not measured: target phone: the link ended" in page
    assert "On pi4: none passed parity and the limits (p90 ≤ 0.5 ms)." in page


@pytest.mark.skipif(SSHD is None, reason="needs sshd (apt install openssh-server)")
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (apt install openssh-client)")
def test_a_recipe_is_measured_on_a_device_by_ssh(project: Any, tmp_path: Path) -> None:
    project.edit(BENCHMARK, "benchmark: [{local: {quick: true}}, {box: {quick: true}}]")
    with ssh_server(tmp_path / "server") as server:
        reached = f"host: 127.0.0.1, ssh_config: {server.config}, python: {sys.executable}"
        file = targets_file(project.folder, f"box: {{{reached}, port: {server.port}, limits: {{size_kb: 1}}}}\n")
        result = project.invoke("run", project.recipe, "--targets", file)
    assert result.exit_code == 3, result.stderr
    assert "error: target box, student · onnx: size_kb is " in result.stderr
    bench, accuracy = (
        json.loads((project.results / f"{kind}.onnx.box.json").read_text()) for kind in ("bench", "accuracy")
    )
    assert bench["target"]["name"] == "box"
    assert accuracy["host_agreement"]["rate"] == 1.0
    assert (accuracy["rows_unlike_torch"], accuracy["torch_correct"]) == ([], accuracy["correct"])
    assert "Accuracy against latency and size on box" in (project.results / "report.html").read_text()
    assert "| onnx | box: " in (project.results / "MODEL_CARD.md").read_text()
    compared = project.invoke("compare", project.results)
    assert "On box: none passed parity and the limits (size ≤ 1 kB)." in compared.stdout
