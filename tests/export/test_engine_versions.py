"""Exported files in other versions and builds of ONNX Runtime, each in a virtual environment of its own.

pytest -m versions tests/export/test_engine_versions.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_versions import interpreter, run_device_side

from export.bundle import OnnxForm, write_bundle
from export.parity import GATES, compare
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from runtime.bundle import open_bundle
from runtime.runners import open_runner

# The floor of opset 20 and IR 10, one in between, and the last for Python 3.10.
VERSIONS = ["1.18.1", "1.19.2", "1.21.1", "1.23.2"]

# Logits of every format, as the device's runner gives them and once more with the engine's own changes left out.
CHILD = """
import sys
import numpy as np
import onnxruntime
from runtime.bundle import open_bundle
from runtime.runners import open_runner

bundle = open_bundle(sys.argv[1])
rows = bundle.samples().inputs
logits = {}
for format in bundle.formats:
    with open_runner(bundle, format) as runner:
        logits[format] = runner.infer(rows)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(bundle.file_of(format)), options, providers=["CPUExecutionProvider"])
    logits[format + ".plain"] = session.run(["logits"], {"input": rows})[0]
np.savez(sys.argv[2], version=onnxruntime.__version__, **logits)
"""

pytestmark = pytest.mark.versions


@pytest.fixture
def bundle_of_forms(tmp_path: Path, parts: dict[str, Any]) -> Path:
    """A bundle with FP32, FP16 and INT8."""
    int8 = int8_from_onnx(
        parts["onnx"], parts["inputs"], parts["inputs"], parts["labels"], gate=GATES["int8"], method="minmax"
    )
    forms = [OnnxForm("fp16", fp16_from_onnx(parts["onnx"])), OnnxForm("int8", int8.model)]
    write_bundle(tmp_path / "bundle", **parts, forms=forms)
    return tmp_path / "bundle"


@pytest.mark.parametrize("version", VERSIONS)
def test_files_load_and_give_the_same_logits(version: str, bundle_of_forms: Path, tmp_path: Path) -> None:
    for python, file in ((interpreter(version), "old.npz"), (interpreter("1.31.1"), "new.npz")):
        run_device_side(python, "-c", CHILD, bundle_of_forms, tmp_path / file)
    old, new = (np.load(tmp_path / file) for file in ("old.npz", "new.npz"))
    assert (str(old["version"]), str(new["version"])) == (version, "1.31.1")
    samples = open_bundle(bundle_of_forms).samples()
    assert samples.logits is not None
    for form, precision in (("onnx", "fp32"), ("fp16", "fp16"), ("int8", "int8")):
        for logits in (old[form], old[f"{form}.plain"]):
            assert compare(samples.logits, logits, samples.labels, GATES[precision]).reasons == ()
        # As it is written, the graph means the same in both; what an engine makes of it (from 1.21 on it rounds the
        # biases in front of INT8 to 32 bits) is judged by the gate.
        error = np.abs(old[f"{form}.plain"] - new[f"{form}.plain"]).max() / samples.logits.std()
        assert error < 1e-5
        print(f"{form} in {version} and 1.31.1: {error:.1e} apart, / std")


def test_a_provider_that_is_there_runs_the_model(bundle_of_forms: Path, tmp_path: Path) -> None:
    # The only build of the index, besides the plain one, whose provider runs on a CPU.
    python = interpreter("1.24.1", "onnxruntime-openvino")
    with open_runner(open_bundle(bundle_of_forms)) as runner:
        expected = runner.infer(open_bundle(bundle_of_forms).samples().inputs).argmax(axis=1)
    output = tmp_path / "accuracy.json"
    done = run_device_side(
        python, "-m", "runtime", "accuracy", bundle_of_forms, "--provider", "openvino", "--output", output
    )
    result = json.loads(output.read_text())
    assert result["engine"]["chosen"] == {"provider": "openvino"}
    assert list(result["predictions"].values()) == expected.tolist()
    assert "does not say" not in done.stderr
    bench = tmp_path / "bench.json"
    run_device_side(
        python, "-m", "runtime", "bench", bundle_of_forms, "--provider", "openvino", "--quick", "--output", bench
    )
    engine = json.loads(bench.read_text())["engine"]
    assert engine["providers"] == ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    assert engine["nodes"]["OpenVINOExecutionProvider"] > 0


def test_a_plugin_without_its_device_is_refused(bundle_of_forms: Path) -> None:
    python = interpreter("1.31.1")
    done = run_device_side(python, "-m", "pip", "install", "-q", "onnxruntime-ep-openvino==1.8.1")
    program = (
        "import sys; from runtime.__main__ import main;"
        "code = main(['accuracy', sys.argv[1], '--provider', 'openvino']); print(code)"
    )
    done = run_device_side(python, "-c", program, bundle_of_forms)
    if "OpenVINOExecutionProvider finds no device here" in done.stderr:
        assert done.stdout == "1\n"
    else:  # an Intel machine has one
        assert done.stdout.endswith("0\n")
