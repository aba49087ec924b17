"""TensorRT's runner with stand-ins that compute on the host, and the real one where there is a GPU."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_in_tensorrt import VERSION, Calls, cuda_runtime, rtx, tensorrt

from runtime import cuda_memory
from runtime.bundle import Bundle, open_bundle, write_checksums
from runtime.cuda import CudaDevice, cuda_devices
from runtime.engine_file import engine_file_from_json
from runtime.errors import BundleError, DeviceError, EngineError, MissingExtraError, UsageError
from runtime.files import sha256_of_bytes
from runtime.runners import open_runner
from runtime.runners import tensorrt as runner_module

FORMAT, FILE = "tensorrt-sm87", "model.sm87.engine"
SHAPE, CLASSES = (4, 3, 1), 3  # of the bundle of conftest.py
GPU = CudaDevice("Orin", "sm87")


def plan_of(profiles: list[tuple[int, int, int]], **tensors: Any) -> bytes:
    usual = {"input": ["input", "uint8", [-1, *SHAPE]], "logits": ["output", "float32", [-1, CLASSES]]}
    return json.dumps({"tensors": {**usual, **tensors}, "profiles": profiles}).encode()


WriteEngine = Callable[..., Bundle]


@pytest.fixture
def with_engine(bundle_folder: Path) -> WriteEngine:
    """Return a function that puts an engine into the bundle; its keywords bend the description."""

    def put(*, plan: bytes | None = None, profiles: Any = ((1, 8, 64),), **changes: Any) -> Bundle:
        data = plan_of(list(profiles)) if plan is None else plan
        ends = [
            {end: {"input": [size, *SHAPE]} for end, size in zip(("least", "best", "most"), sizes, strict=True)}
            for sizes in profiles
        ]
        description = {
            "kind": "tensorrt engine", "format_version": 1, "plan_sha256": sha256_of_bytes(data), "onnx_sha256": "0",
            "onnx_file": "model.onnx", "module": "tensorrt", "version": VERSION, "compute_capability": "sm87",
            "device": "Orin", "profiles": ends, "inputs": [], "outputs": [], "flags": {}, "layers": [], **changes,
        }  # fmt: skip
        (bundle_folder / FILE).write_bytes(data)
        (bundle_folder / f"{FILE}.json").write_text(json.dumps(description))
        manifest = json.loads((bundle_folder / "manifest.json").read_text())
        entry = {"file": FILE, "size_bytes": len(data), "precision": "fp32", "source": "onnx", "capability": "sm87"}
        manifest["formats"][FORMAT] = entry
        (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
        write_checksums(bundle_folder)
        return open_bundle(bundle_folder)

    return put


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins in the place of tensorrt, tensorrt_rtx, cuda-python and the driver."""
    made: Calls = []
    monkeypatch.setattr(runner_module, "cuda_devices", lambda: (GPU,))
    for module in (tensorrt(made), rtx(made), cuda_runtime(made)):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def expected(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1).sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)


@pytest.mark.parametrize("options", [{}, {"copies": False}, {"cuda_graph": True}])
def test_logits_are_the_engine_s_at_every_batch(
    with_engine: WriteEngine, calls: Calls, options: dict[str, bool]
) -> None:
    bundle = with_engine()
    with open_runner(bundle, FORMAT, on_gpu=options) as runner:
        kept = [(batch, runner.infer(batch)) for batch in (rows(1), rows(8, 1), rows(8, 2), rows(64), rows(3))]
        # A later call must not write over what an earlier one gave.
        for batch, logits in kept:
            if not options.get("cuda_graph"):  # a graph of the stand-in launches nothing
                np.testing.assert_array_equal(logits, expected(batch))
        assert (runner.engine, runner.version, runner.providers) == ("tensorrt", VERSION, ("Orin (sm87)",))
    assert sys.modules["cuda.bindings.runtime"].buffers == {}
    assert calls[-1] == "destroy"


def test_a_timed_call_copies_unless_told_not_to_and_waits(with_engine: WriteEngine, calls: Calls) -> None:
    bundle = with_engine()
    with open_runner(bundle, FORMAT) as runner:
        call = runner.prepare(rows(8))
        calls.clear()
        call()
        assert calls == ["to device", "execute", "to host", "synchronize"]
        assert "copies of inputs and outputs between host and GPU are counted" in runner.notes
    with open_runner(bundle, FORMAT, on_gpu={"copies": False}) as runner:
        first, second = runner.prepare(rows(8, 1)), runner.prepare(rows(8, 2))
        calls.clear()
        outputs = first()
        assert calls == ["execute", "synchronize"]
        np.testing.assert_array_equal(outputs[0], expected(rows(8, 1)))
        np.testing.assert_array_equal(second()[0], expected(rows(8, 2)))
        assert "copies of inputs and outputs between host and GPU are not counted" in runner.notes


def test_a_graph_is_captured_once_a_shape_and_then_launched(with_engine: WriteEngine, calls: Calls) -> None:
    with open_runner(with_engine(), FORMAT, on_gpu={"cuda_graph": True}) as runner:
        prepared = [runner.prepare(rows(8, seed)) for seed in range(3)]
        assert [calls.count(name) for name in ("begin capture", "end capture", "instantiate")] == [1, 1, 1]
        calls.clear()
        prepared[0]()
        assert calls == ["to device", "launch graph", "to host", "synchronize"]
        assert "memory by cuda-python, CUDA graph on" in runner.notes
    assert calls.count("destroy graph") == 1


def test_rtx_makes_its_kernels_and_graphs_itself(with_engine: WriteEngine, calls: Calls) -> None:
    bundle = with_engine(module="tensorrt_rtx")
    with open_runner(bundle, FORMAT, on_gpu={"cuda_graph": True}) as runner:
        np.testing.assert_array_equal(runner.infer(rows(2)), expected(rows(2)))
        assert runner.engine == "tensorrt_rtx"
    assert "context eager whole" in calls
    assert "begin capture" not in calls


def test_each_batch_runs_in_the_profile_that_is_tuned_for_it(with_engine: WriteEngine, calls: Calls) -> None:
    with open_runner(with_engine(profiles=((1, 1, 1), (1, 8, 16))), FORMAT) as runner:
        assert [runner.takes_batch(size) for size in (0, 1, 16, 17)] == [False, True, True, False]
        for size, profile in ((1, 0), (2, 1), (16, 1)):
            np.testing.assert_array_equal(runner.infer(rows(size)), expected(rows(size)))
            assert [each for each in calls if each.startswith("profile")][-1] == f"profile {profile}"
        assert calls.count("profile 0") == calls.count("profile 1") == 1
        with pytest.raises(UsageError, match=r"a batch of 17 is outside .*1-1-1, 1-8-16") as caught:
            runner.infer(rows(17))
        assert "--profile 1,17" in caught.value.remedy


def test_outputs_beyond_the_manifest_s_need_a_place_too(with_engine: WriteEngine, calls: Calls) -> None:
    plan = plan_of([(1, 8, 64)], extra=["output", "float32", [-1, 5]])
    with open_runner(with_engine(plan=plan), FORMAT) as runner:
        assert runner.infer(rows(2)).shape == (2, CLASSES)


# What cannot be run


def test_no_gpu_and_another_gpu_are_no_failure_of_the_model(
    with_engine: WriteEngine, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engine()
    monkeypatch.setattr(runner_module, "cuda_devices", lambda: ())
    with pytest.raises(DeviceError, match="needs an SM87 GPU, and this machine has no CUDA device"):
        open_runner(bundle, FORMAT)
    monkeypatch.setattr(runner_module, "cuda_devices", lambda: (CudaDevice("RTX 4090", "sm89"),))
    with pytest.raises(DeviceError, match="needs an SM87 GPU, and here is RTX 4090 of SM89") as caught:
        open_runner(bundle, FORMAT)
    assert caught.value.remedy == f"On the device: edgefold export engine {bundle.path} --format onnx"
    # TensorRT ends a process that has no device, so it was not even imported.
    assert calls == []


def test_an_engine_is_of_one_version(with_engine: WriteEngine, calls: Calls) -> None:
    with pytest.raises(EngineError, match=r"was built by tensorrt 9\.9, which alone loads it, and here is 10\.3\.0"):
        open_runner(with_engine(version="9.9"), FORMAT)


def test_the_module_that_built_it_has_to_be_there(
    with_engine: WriteEngine, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engine(module="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=r"tensorrt_rtx is not installed; .*was built by it") as caught:
        open_runner(bundle, FORMAT)
    assert "edgefold[rtx]" in caught.value.remedy


def test_what_tensorrt_logs_is_in_the_error(with_engine: WriteEngine, calls: Calls) -> None:
    with pytest.raises(EngineError, match="cannot load it: Serialization assertion failed: magicTag"):
        open_runner(with_engine(plan=b"no plan"), FORMAT)


def test_description_and_manifest_have_to_fit_the_engine(with_engine: WriteEngine, calls: Calls) -> None:
    with pytest.raises(BundleError, match=r"not the engine that model\.sm87\.engine\.json describes"):
        open_runner(with_engine(plan_sha256="0" * 64), FORMAT)
    with pytest.raises(BundleError, match=r"is 'tensorrt engine 2', expected 'tensorrt engine 1'"):
        open_runner(with_engine(format_version=2), FORMAT)
    with pytest.raises(BundleError, match="no description of an engine"):
        open_runner(with_engine(profiles_=1, layers=[{}]), FORMAT)
    with pytest.raises(BundleError, match="'logits' is float16 in the engine, expected float32"):
        open_runner(with_engine(plan=plan_of([(1, 8, 64)], logits=["output", "float16", [-1, 3]])), FORMAT)
    with pytest.raises(BundleError, match="the engine's inputs are input, mask, expected input"):
        open_runner(with_engine(plan=plan_of([(1, 8, 64)], mask=["input", "int32", [-1, 3]])), FORMAT)


def test_options_of_the_gpu_are_refused_elsewhere(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="options of TensorRT engines, and 'onnx' is none"):
        open_runner(bundle, "onnx", on_gpu={"cuda_graph": True})


def test_best_takes_an_engine_where_it_runs(
    with_engine: WriteEngine, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engine()
    with open_runner(bundle, "best") as runner:
        assert runner.format == FORMAT
    monkeypatch.setattr(runner_module, "cuda_devices", lambda: ())
    with open_runner(bundle, "best") as runner:
        assert runner.format == "onnx"
        assert any("tensorrt-sm87 does not run here" in note for note in runner.notes)


def test_a_description_is_read_as_it_was_written(with_engine: WriteEngine) -> None:
    layer = {
        "name": "a", "kind": "gemm", "inputs": ["Int8"], "constants": ["Int8"], "outputs": ["Float"], "nodes": ["n"],
    }  # fmt: skip
    tensor = {"name": "input", "dtype": "uint8", "shape": [-1, 4]}
    bundle = with_engine(layers=[layer], inputs=[tensor], flags={"tf32": False})
    text = bundle.read_bytes(f"{FILE}.json")
    described = engine_file_from_json(text, "x")
    assert json.loads(json.dumps(described.to_json())) == json.loads(text)
    assert described.layers[0].inputs == ("Int8",)


# Memory


class FakeTensor:
    """A tensor of bytes over an array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def __getitem__(self, part: slice) -> FakeTensor:
        return FakeTensor(self.array[part])

    def copy_(self, other: FakeTensor, non_blocking: bool) -> None:
        assert non_blocking
        self.array[:] = other.array


def fake_torch(available: bool = True) -> ModuleType:
    module = ModuleType("torch")

    class Entered:
        def __init__(self, *arguments: object, **options: object) -> None:
            self.cuda_stream = 7

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...
        def synchronize(self) -> None: ...

    module.uint8 = np.uint8  # type: ignore[attr-defined]
    module.from_numpy = FakeTensor  # type: ignore[attr-defined]
    module.empty = lambda size, dtype, device: FakeTensor(np.zeros(size, dtype))  # type: ignore[attr-defined]
    module.cuda = SimpleNamespace(is_available=lambda: available, Stream=Entered, stream=Entered)  # type: ignore[attr-defined]
    return module


def test_torch_stands_in_where_there_is_no_cuda_python(
    with_engine: WriteEngine, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    with open_runner(with_engine(), FORMAT) as runner:
        np.testing.assert_array_equal(runner.infer(rows(8)), expected(rows(8)))
        assert any("memory by torch" in note for note in runner.notes)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=False))
    with pytest.raises(MissingExtraError, match="neither cuda-python nor a torch with CUDA is installed"):
        cuda_memory.cuda_memory()


def test_a_status_of_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cuda_runtime([])
    memory = cuda_memory.CudaPython(runtime)
    monkeypatch.setattr(runtime, "cudaMalloc", lambda size: (2, 0))
    with pytest.raises(EngineError, match="CUDA: 2"):
        memory.allocate(1)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="needs a CUDA device")
def test_a_real_engine_gives_the_logits_of_the_file(bundle_folder: Path, tmp_path: Path) -> None:
    export_engines = pytest.importorskip("export.engines")
    from runtime.manifest import EngineRequest

    folder = tmp_path / "real"
    shutil.copytree(bundle_folder, folder)
    bundle = open_bundle(folder)
    built = export_engines.build_engines(bundle, [EngineRequest(profiles=((1, 8, 24),))])
    bundle = export_engines.add_engines(bundle, built)
    samples = bundle.samples()
    assert samples.logits is not None
    for options in ({}, {"copies": False}, {"cuda_graph": True}):
        with open_runner(bundle, built[0].name, on_gpu=options) as runner:
            for size in (1, 8, 24):
                logits = runner.infer(samples.inputs[:size])
                np.testing.assert_allclose(logits, samples.logits[:size], rtol=1e-3, atol=1e-3)
