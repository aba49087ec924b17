"""Engines of a bundle: what is added, what stays, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import OnnxForm, write_bundle
from export.engines import FP32_GATE, add_engines, build_engines
from export.parity import Gate
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from runtime.__main__ import main as runtime_main
from runtime.bundle import Bundle, open_bundle
from runtime.engine_file import engine_file_from_json
from runtime.errors import BundleError, ExportError, UsageError
from runtime.files import sha256_of_bytes
from runtime.manifest import EngineRequest

pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")

GATE = Gate(1.0, 0.5, 50.0)
WANTED = (EngineRequest("int8", ("sm86",), profiles=((8,),)), EngineRequest())


@pytest.fixture(scope="module")
def forms(exported: Any) -> list[OnnxForm]:
    rows = exported.images(64)
    made = int8_from_onnx(exported.model, rows, rows, np.zeros(64, np.int64), gate=GATE)
    return [OnnxForm("fp16", fp16_from_onnx(exported.model)), OnnxForm("int8", made.model, GATE)]


@pytest.fixture
def bundle(tmp_path: Path, parts: dict[str, Any], forms: list[OnnxForm]) -> Bundle:
    write_bundle(tmp_path / "bundle", **parts, forms=forms, engines=WANTED)
    return open_bundle(tmp_path / "bundle")


def test_an_engine_joins_the_bundle_with_its_description(bundle: Bundle) -> None:
    before = {file: bundle.read_bytes(file) for file in bundle.checksums if file != "manifest.json"}
    (built,) = build_engines(bundle, [EngineRequest("int8", ("sm86",), profiles=((1, 4), (8, 16, 64)))])
    after = add_engines(bundle, [built])
    assert list(after.formats) == ["onnx", "fp16", "int8", "tensorrt-sm86-int8"]
    entry = after.formats["tensorrt-sm86-int8"]
    assert (entry.file, entry.precision, entry.source, entry.capability) == (
        "model.sm86-int8.engine", "int8", "int8", "sm86",
    )  # fmt: skip
    assert entry.gate == {"max_error_over_std": 1.0, "top1_agreement": 0.5, "metric_drop_points": 50.0}
    assert {file: after.read_bytes(file) for file in before} == before
    described = engine_file_from_json(after.read_bytes("model.sm86-int8.engine.json"), "")
    assert described.plan_sha256 == sha256_of_bytes(after.read_bytes(entry.file))
    assert described.onnx_sha256 == bundle.checksums["model.int8.onnx"]
    assert (described.onnx_file, described.module) == ("model.int8.onnx", "tensorrt_rtx")
    assert [each.batch_sizes for each in described.profiles] == [(1, 4, 4), (8, 16, 64)]
    convolutions = [layer for layer in described.layers if layer.kind == "correlation"]
    assert convolutions
    assert all(layer.inputs == ("Int8",) and layer.constants[0] == "Int8" for layer in convolutions)
    assert {each.dtype for each in described.inputs} == {"uint8"}
    assert b"small int8" in after.read_bytes(entry.file)  # of what it is, without a path
    # The same again takes its place; a plan may differ in a few bytes (tests/runtime/test_engine_build.py).
    again = add_engines(after, build_engines(after, [replace(after.engines[0], profiles=((1, 4), (8, 16, 64)))]))
    assert (again.formats, again.engines) == (after.formats, after.engines)
    same = {file for file in after.checksums if after.checksums[file] == again.checksums[file]}
    assert set(after.checksums) - same <= {"model.sm86-int8.engine", "model.sm86-int8.engine.json"}


def test_inspection_shows_what_the_description_says(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    after = add_engines(bundle, build_engines(bundle, [EngineRequest("int8", ("sm89",), profiles=((1, 4), (8,)))]))
    assert runtime_main(["inspect", str(after.path)]) == 0
    text = capsys.readouterr().out
    _, engine = text.split("tensorrt-sm89-int8: model.sm89-int8.engine, int8, ")
    assert f"model.int8.onnx (sha256 {bundle.checksums['model.int8.onnx']})" in engine
    assert "Int8 in " in engine
    assert "not built: TensorRT engine of int8 for sm86 (on the device: edgefold export engine" in engine
    assert runtime_main(["inspect", str(after.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engines"]["tensorrt-sm89-int8"]["compute_capability"] == "sm89"


def test_what_is_wanted_travels_until_it_is_built(bundle: Bundle) -> None:
    assert bundle.engines == bundle.missing_engines == WANTED
    after = add_engines(bundle, build_engines(bundle, bundle.missing_engines))
    assert list(after.formats)[3:] == ["tensorrt-sm86-int8", "tensorrt-portable"]
    assert after.engines == WANTED
    assert after.missing_engines == ()
    assert after.formats["tensorrt-portable"].gate == vars(FP32_GATE)
    other = replace(after, engines=(EngineRequest("int8", ("sm86", "sm89")), EngineRequest("fp16")))
    assert other.missing_engines == (EngineRequest("int8", ("sm89",)), EngineRequest("fp16"))


def test_damage_to_an_engine_or_its_description_is_found(bundle: Bundle) -> None:
    after = add_engines(bundle, build_engines(bundle, [EngineRequest("fp16", ("sm75",))]))
    path = after.path / "model.sm75-fp16.engine.json"
    text = path.read_text()
    path.write_text(text + " ")
    with pytest.raises(BundleError, match="is altered or damaged"):
        open_bundle(after.path)
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(after.path)


def test_what_cannot_be_built_is_said_and_changes_nothing(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no format 'bf16' in this bundle"):
        build_engines(bundle, [EngineRequest("bf16")])
    with pytest.raises(UsageError, match="one engine is asked for twice: tensorrt-sm86-fp16"):
        build_engines(bundle, [EngineRequest("fp16", ("sm86",))] * 2)
    after = add_engines(bundle, build_engines(bundle, [EngineRequest("fp16", ("sm86",))]))
    with pytest.raises(UsageError, match=r"model\.sm86-fp16\.engine is no ONNX file") as caught:
        build_engines(after, [EngineRequest("tensorrt-sm86-fp16")])
    assert "onnx, fp16, int8" in caught.value.remedy
    with pytest.raises(ExportError, match=r"cannot build .*model\.onnx:\n(.|\n)*FP32 GEMM is not supported"):
        build_engines(after, [EngineRequest("onnx", ("sm75",))])
    assert open_bundle(after.path).checksum == after.checksum


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ({"from": "onnx"}, r"engines is .*, expected a list"),
        ([{"from": "onnx", "capabilities": "sm86"}], r"engines\[0\]\.capabilities is \"sm86\", expected a list"),
        (
            [{"from": "onnx", "capabilities": [], "profiles": [[0]]}],
            r"profiles\[0\]\[0\] is 0, expected an integer >= 1",
        ),
    ],
)
def test_malformed_requests_are_named(bundle: Bundle, engines: Any, message: str) -> None:
    from runtime.manifest import manifest_from_json

    manifest = json.loads(bundle.read_bytes("manifest.json"))
    with pytest.raises(BundleError, match=message):
        manifest_from_json(json.dumps({**manifest, "engines": engines}), "manifest.json")


def test_a_device_needs_neither_torch_nor_onnx(bundle: Bundle) -> None:
    code = (
        "import sys; from compress.cli import main; "
        "main(['export', 'engine', sys.argv[1], '--format', 'fp16', '--capability', 'SM89'], standalone_mode=False); "
        "print(*{'torch', 'onnx', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle.path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"tensorrt-sm89-fp16: {bundle.path / 'model.sm89-fp16.engine'}, ")
    assert "tensorrt_rtx" in lines[1]
    assert "for sm89, batches 1-8-64" in lines[1]
    assert "of Half" in lines[2]
    assert lines[3] == ""
    assert "tensorrt-sm89-fp16" in open_bundle(bundle.path).formats
