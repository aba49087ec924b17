"""Engines that are built where they run: by TensorRT-RTX, which needs no GPU for it; run by stand-ins."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_in_tensorrt import Calls, builder_and_runtime, cuda_runtime

from runtime import engine_build, engine_cache, processes, remote_end, tensorrt_library
from runtime.__main__ import main
from runtime.bundle import Bundle, open_bundle, write_checksums
from runtime.cuda import CudaDevice
from runtime.engine_cache import DESCRIPTION, PLAN, RECORD, KeptEngine, engine_here, wanted_engine
from runtime.errors import DeviceError, EngineError, ExportError, MissingExtraError, UsageError
from runtime.runners import open_runner, runs_on
from runtime.runners import tensorrt as runner_module
from runtime.runners.choice import EngineChoice

SHAPE, CLASSES = (4, 3, 1), 3  # of the bundle of conftest.py
GPU = CudaDevice("RTX 4090", "sm89")
TENSORRT = EngineChoice("tensorrt")


class Machine:
    """What the cache asks of a machine; `engines` is its folder."""

    def __init__(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        self._patch = patch
        self.engines = cache / "edgefold" / "engines"
        self.lines: list[str] = []
        patch.setenv("XDG_CACHE_HOME", str(cache))
        self.has(GPU)

    def has(self, *devices: CudaDevice, driver: str = "570.86.10") -> None:
        for module in (engine_cache, engine_build, tensorrt_library, runner_module):
            self._patch.setattr(module, "cuda_devices", lambda: devices)
        self._patch.setattr(engine_cache, "driver_version", lambda: driver)

    def engine(self, bundle: Bundle, *, module: str = "tensorrt_rtx", batch: int = 1) -> KeptEngine:
        return engine_here(bundle, "onnx", module, batch, self.lines.append)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "cache")


@pytest.fixture
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Calls:
    """A TensorRT that builds and runs, with memory of a GPU: stand-ins."""
    made: Calls = []
    for module in (builder_and_runtime(made, SHAPE, {"logits": CLASSES}), cuda_runtime(made)):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def builds(calls: Calls) -> list[str]:
    return [each for each in calls if each.startswith("build ")]


def test_an_engine_is_built_once_and_kept_with_its_description(
    rtx: ModuleType, machine: Machine, bundle: Bundle
) -> None:
    first = machine.engine(bundle)
    assert machine.lines == [f"building a tensorrt_rtx {rtx.__version__} engine of model.onnx for RTX 4090, once"]
    assert (first.build.cached, first.build.seconds > 0) == (False, True)
    described = first.description
    assert (described.onnx_sha256, described.compute_capability) == (bundle.checksums["model.onnx"], "sm89")
    # Batches that were verified, and the one that was asked for, tuned for it.
    assert [each.batch_sizes for each in described.profiles] == [(1, 8, 8), (1, 1, 1)]

    second = machine.engine(bundle)
    assert second.build == engine_cache.EngineBuild(True, first.build.seconds, first.build.key)
    assert (second.plan, second.description) == (first.plan, first.description)
    assert len(machine.lines) == 1
    (folder,) = machine.engines.iterdir()
    assert folder.name == first.build.key
    assert {each.name for each in folder.iterdir()} == {PLAN, DESCRIPTION, RECORD}
    assert json.loads((folder / RECORD).read_text())["facts"]["driver"] == "570.86.10"


def test_whatever_an_engine_depends_on_is_in_its_key(
    calls: Calls, machine: Machine, bundle: Bundle, write_bundle: Any, build_model: Any, tmp_path: Path
) -> None:
    def key(of: Bundle = bundle, batch: int = 1) -> str:
        return wanted_engine(of, "onnx", None, batch).key

    other = open_bundle(write_bundle(tmp_path / "b", model=build_model(opset=19).SerializeToString()))
    keys = [key(), key(other), key(batch=3)]
    machine.has(CudaDevice("RTX 4090 D", "sm89"))
    keys.append(key())
    machine.has(CudaDevice("RTX 4090", "sm90"))
    keys.append(key())
    machine.has(GPU, driver="580.1")
    keys.append(key())
    machine.has(GPU)
    sys.modules["tensorrt"].__version__ = "10.4.0"  # type: ignore[attr-defined]
    keys.append(key())
    assert len(set(keys)) == len(keys)
    sys.modules["tensorrt"].__version__ = "10.3.0"  # type: ignore[attr-defined]
    assert key() == keys[0]
    # A bundle with another name and the same file is the same engine.
    same = open_bundle(write_bundle(tmp_path / "c", name="other"))
    assert key(same) == keys[0]


def emptied(folder: Path) -> None:
    for each in folder.iterdir():
        each.unlink()


def changed(file: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / file).read_bytes()
        assert old in content
        (folder / file).write_bytes(content.replace(old, new))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        changed(PLAN, b"logits", b"logitz"),
        changed(DESCRIPTION, b'"onnx_sha256": "', b'"onnx_sha256": "0'),
        changed(DESCRIPTION, b'"version": "10.3.0"', b'"version": "9.0.0"'),
        changed(DESCRIPTION, b"{", b""),
        changed(RECORD, b"RTX 4090", b"RTX 3090"),
        changed(RECORD, b'"seconds"', b'"minutes"'),
        lambda folder: (folder / RECORD).write_text("[]"),
        lambda folder: (folder / PLAN).unlink(),
        emptied,
    ],
    ids=["plan", "model", "version", "description", "machine", "record", "list", "missing", "empty"],
)  # fmt: skip
def test_what_is_damaged_or_of_something_else_is_built_again(
    calls: Calls, machine: Machine, bundle: Bundle, damage: Callable[[Path], None]
) -> None:
    first = machine.engine(bundle, module="tensorrt")
    damage(machine.engines / first.build.key)
    again = machine.engine(bundle, module="tensorrt")
    assert (again.build.cached, again.plan) == (False, first.plan)
    assert len(builds(calls)) == 2
    assert machine.engine(bundle, module="tensorrt").build.cached
    assert [each.name for each in machine.engines.iterdir()] == [first.build.key]


def test_engines_that_nobody_asked_for_in_a_month_are_forgotten(calls: Calls, machine: Machine, bundle: Bundle) -> None:
    old, used, fresh = (machine.engine(bundle, module="tensorrt", batch=size).build.key for size in (1, 2, 3))
    half_written = machine.engines / f".{old}.abc.part"
    half_written.mkdir()
    for each in (old, used, half_written.name):
        os.utime(machine.engines / each, (time.time() - 31 * 86_400,) * 2)
    assert machine.engine(bundle, module="tensorrt", batch=2).build.cached
    assert (machine.engines / old).exists()  # it is looked for when one is written
    newest = machine.engine(bundle, module="tensorrt", batch=4).build.key
    assert {each.name for each in machine.engines.iterdir()} == {used, fresh, newest}


def test_a_cache_that_cannot_be_written_costs_the_next_time_only(
    calls: Calls, machine: Machine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_end, "_TEMPORARY", ())
    monkeypatch.delenv("TMPDIR", raising=False)
    (tmp_path / "cache").write_text("no folder")
    assert not machine.engine(bundle, module="tensorrt").build.cached
    assert not machine.engine(bundle, module="tensorrt").build.cached
    assert machine.lines[1].startswith("note: the engine is not kept for the next time: ")


# The runner


def expected(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1).sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)


def test_a_format_runs_on_an_engine_of_it(calls: Calls, machine: Machine, bundle: Bundle) -> None:
    rows = bundle.samples().inputs
    with open_runner(bundle, "onnx", choice=TENSORRT, say=machine.lines.append) as runner:
        np.testing.assert_array_equal(runner.infer(rows[:5]), expected(rows[:5]))
        assert (runner.engine, runner.format, runner.file.precision) == ("tensorrt", "onnx", "fp32")
        assert runner.engine_build is not None
        assert not runner.engine_build.cached
        assert [runner.rows_at_once(most) for most in (1, 7, 256)] == [1, 7, 8]
        with pytest.raises(UsageError, match="a batch of 9 is outside the engine's profiles") as caught:
            runner.infer(rows[:9])
        assert caught.value.remedy == "Run it with --batch 9, and an engine for it is built."
    with open_runner(bundle, "onnx", choice=TENSORRT, batch=9, on_gpu={"copies": False}) as runner:
        assert runner.rows_at_once(256) == 9
    with open_runner(bundle, "best", choice=TENSORRT) as runner:
        assert runner.engine_build is not None
        assert runner.engine_build.cached
    # The GPU runs a batch of 9 in the profile that is tuned for it.
    assert builds(calls) == ["build [[1, 8, 8], [1, 1, 1]]", "build [[1, 8, 9], [9, 9, 9]]"]


def test_an_engine_that_does_not_load_says_where_it_is_kept(calls: Calls, machine: Machine, bundle: Bundle) -> None:
    key = machine.engine(bundle, module="tensorrt").build.key
    refusing = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    sys.modules["tensorrt"].Runtime = lambda log: refusing  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="cannot load it: it gave no reason") as caught:
        open_runner(bundle, "onnx", choice=TENSORRT)
    assert caught.value.remedy.startswith(f"Remove {machine.engines / key} and run it again")


def test_results_say_what_building_took_and_all_rows_are_run(
    calls: Calls, machine: Machine, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(bundle_folder), "--engine", "tensorrt", "--processes", "1"]
    words += ["--seconds", "0.01", "--calls", "20", "--batch", "2", "--output", str(tmp_path / "bench.json")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "building a tensorrt 10.3.0 engine of model.onnx for RTX 4090, once" in said.err
    result = json.loads((tmp_path / "bench.json").read_text())
    build = result["engine_build"]
    assert (build["cached"], len(build["key"])) == (False, 64)
    assert f"built here now in {build['seconds']:.1f} s, kept as {build['key'][:12]}" in said.out
    assert result["engine"]["chosen"] == {"engine": "tensorrt"}
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine_build"] == {**build, "cached": True}
    # Of 24 rows 8 run at once, and not the 256 that other engines take.
    assert main(["accuracy", str(bundle_folder), "--engine", "tensorrt", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)
    assert (accuracy["batch"], accuracy["total"], set(accuracy["predictions"].values())) == (8, 24, {2})


def test_of_several_processes_the_building_is_said_before_the_first(
    calls: Calls, machine: Machine, bundle: Bundle, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(processes, "measured_in_turn", lambda *_, **__: [])
    words = ["bench", str(bundle_folder), "--engine", "tensorrt", "--json"]
    assert main(words) == 0
    assert capsys.readouterr().err == "building a tensorrt 10.3.0 engine of model.onnx for RTX 4090, once\n"
    assert builds(calls) == []
    machine.engine(bundle, module="tensorrt")
    assert main(words) == 0
    assert capsys.readouterr().err == ""


def test_without_a_gpu_or_a_tensorrt_one_message_says_so(
    machine: Machine, bundle: Bundle, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in tensorrt_library.MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match="neither tensorrt nor tensorrt_rtx is installed"):
        open_runner(bundle, "onnx", choice=TENSORRT)
    with pytest.raises(MissingExtraError, match="tensorrt_rtx is not installed"):
        open_runner(bundle, "onnx", choice=EngineChoice("tensorrt_rtx"))
    machine.has()
    with pytest.raises(DeviceError, match=r"model\.onnx: TensorRT needs an NVIDIA GPU, and this machine has no CUDA"):
        open_runner(bundle, "onnx", choice=TENSORRT)
    # Of several processes it is found before the first.
    assert main(["bench", str(bundle_folder), "--engine", "tensorrt", "--quick", "--processes", "2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert not machine.engines.exists()


def test_a_gpu_that_rtx_does_not_serve_is_named(rtx: ModuleType, machine: Machine, bundle: Bundle) -> None:
    machine.has(CudaDevice("H100", "sm90"))
    with pytest.raises(EngineError, match=r"does not build for 'sm90'; expected one of .*sm89"):
        machine.engine(bundle)


def with_format(folder: Path, name: str, file: str, content: bytes, **entry: Any) -> Bundle:
    """Put a format into a bundle's folder."""
    (folder / file).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["formats"][name] = {"file": file, "size_bytes": len(content), "precision": "int8", **entry}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_checksums(folder)
    return open_bundle(folder)


def test_what_tensorrt_builds_and_what_it_refuses(
    calls: Calls, machine: Machine, bundle_folder: Path, build_model: Any
) -> None:
    formats = ("onnx", "fp16", "bf16", "int8", "int8_cpu", "int4", "packed", "qonnx", "tensorrt-sm89")
    assert [each for each in formats if runs_on(each, TENSORRT)] == ["onnx", "fp16", "bf16", "int8"]
    model = build_model()
    model.opset_import.add(domain="edgefold", version=1)
    model.graph.node[1].domain = "edgefold"
    model.graph.node[1].op_type = "PackedConv"
    opsets = {"opset": 20, "ir_version": 10}
    bundle = with_format(bundle_folder, "packed", "model.packed.onnx", model.SerializeToString(), **opsets)
    with pytest.raises(ExportError, match="has edgefold's packed operators, which are no GPU's"):
        open_runner(bundle, "packed", choice=TENSORRT)
    bundle = with_format(bundle_folder, "int4", "model.int4.onnx", build_model(opset=21).SerializeToString(), **opsets)
    with pytest.raises(UsageError, match="format 'int4' does not run on tensorrt; it is for onnxruntime on the CPU"):
        open_runner(bundle, "int4", choice=TENSORRT)
    engine = {"source": "onnx", "capability": "sm89", "precision": "fp32"}
    (bundle_folder / "model.sm89.engine.json").write_text("{}")
    bundle = with_format(bundle_folder, "tensorrt-sm89", "model.sm89.engine", b"plan", **engine)
    with pytest.raises(UsageError, match="'tensorrt-sm89' is an engine, and tensorrt builds one of ONNX") as caught:
        open_runner(bundle, "tensorrt-sm89", choice=TENSORRT)
    assert caught.value.remedy == "Choose --format onnx, or leave the engine out."
    assert builds(calls) == []


def test_the_choice_is_one_engine_with_a_name_of_its_own() -> None:
    assert (TENSORRT.key("fp16"), EngineChoice("tensorrt_rtx").label) == ("fp16@tensorrt", "tensorrt_rtx")
    assert TENSORRT.arguments == ["--engine=tensorrt"]
    with pytest.raises(UsageError, match="provider cuda with engine tensorrt: providers are those of onnxruntime"):
        EngineChoice("tensorrt", "cuda")
    with pytest.raises(UsageError, match="precision bf16 without engine openvino"):
        EngineChoice("tensorrt", precision="bf16")
