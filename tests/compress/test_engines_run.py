"""A recipe whose targets name another engine: parity, accuracy and latency of each format on each engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

TARGETS = "benchmark: [{local: {quick: true}}, {local: {quick: true, engine: openvino}}]"
OF_THE_ENGINE = {"accuracy.onnx@openvino.json", "bench.onnx.local-openvino.json"}


@pytest.fixture
def on_two_engines(project: Any) -> Any:
    """A finished run whose recipe names OpenVINO beside the engine that it was measured with, run again."""
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    before = {path.name: path.stat().st_mtime_ns for path in project.results.iterdir()}
    project.edit("benchmark: [{local: {quick: true}}]", TARGETS)
    outcome, narration = project.run()
    return project, outcome, narration, before


def test_another_engine_gets_results_of_its_own(on_two_engines: Any) -> None:
    project, outcome, narration, before = on_two_engines
    assert narration.trained == []
    made = {path.name for path in project.results.iterdir()} - set(before)
    assert made >= OF_THE_ENGINE
    kept = ("bench.onnx.local.json", "accuracy.onnx.json")  # measured before, on the format's own engine
    assert all((project.results / name).stat().st_mtime_ns == before[name] for name in kept)

    parity = json.loads((project.results / "parity.json").read_text())["formats"]
    assert list(parity) == ["onnx", "onnx@openvino"]
    other = parity["onnx@openvino"]
    assert other["passed"]
    assert other["engine"]["name"].startswith("openvino 20")
    assert other["gate"]["max_error_over_std"] == 1e-4
    accuracy = json.loads((project.results / "accuracy.onnx@openvino.json").read_text())
    assert (accuracy["engine"]["name"], accuracy["rows_unlike_torch"]) == ("openvino", [])

    rows = {row.name: row for row in outcome.rows if row.what == "export"}
    assert list(rows) == ["student · onnx", "student · onnx@openvino"]
    for label, row in zip(("", "openvino"), rows.values(), strict=True):
        bench = json.loads((project.results / f"bench.onnx.local{'-' * bool(label)}{label}.json").read_text())
        assert (row.engine, row.parity) == (label, "passed")
        assert row.p50_ms == bench["latency"]["percentiles"]["p50"]["measured_ms"]
        assert bench["engine"]["name"] == (label or "onnxruntime")

    # What is there of both is not made again, and the tables name the engine.
    result = project.invoke("verify", project.recipe)
    assert result.exit_code == 0, result.stderr
    assert "openvino 20" in result.stdout
    assert "onnxruntime" in result.stdout


def test_an_engine_that_misses_its_gate_fails_the_run(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    from runtime.runners.openvino import OpenVinoRunner

    infer = OpenVinoRunner.infer
    monkeypatch.setattr(OpenVinoRunner, "infer", lambda runner, batch: -infer(runner, batch))
    project.edit("benchmark: [{local: {quick: true}}]", TARGETS)
    result = project.invoke("run", project.recipe)
    assert result.exit_code == 3
    assert "onnx@openvino" in result.stderr
    parity = json.loads((project.results / "parity.json").read_text())
    assert [each["passed"] for each in parity["formats"].values()] == [True, False]


def test_a_bundle_is_verified_on_the_engine_that_is_named(project: Any) -> None:
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    result = project.invoke("verify", project.bundle, "--engine", "openvino", "--json")
    assert result.exit_code == 0, result.stderr
    (report,) = json.loads(result.stdout)
    assert (report["format"], report["engine"]["chosen"]) == ("onnx", {"engine": "openvino"})
    refused = project.invoke("verify", project.recipe, "--engine", "openvino")
    assert refused.exit_code == 2
    assert "benchmark: [local, {local: {engine: openvino}}]" in refused.stderr
    lacking = project.invoke("verify", project.bundle, "--provider", "cuda")
    assert lacking.exit_code == 2
    assert "has no CUDAExecutionProvider" in lacking.stderr
