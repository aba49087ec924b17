"""Exported files in other versions and builds of ONNX Runtime, each in a virtual environment of its own.

pytest -m versions tests/export/test_engine_versions.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_versions import interpreter, run_device_side

from compress.models.shufflenet_v1 import ShuffleNetV1Spec
from export.bundle import OnnxForm, write_bundle
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.older_opset import at_opset
from export.parity import GATES, compare
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.to_onnx import onnx_from_graph
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

MAIN = "import sys; from runtime.__main__ import main; print(main(sys.argv[1:]))"

pytestmark = pytest.mark.versions


@pytest.fixture
def bundle_of_forms(tmp_path: Path, parts: dict[str, Any]) -> Path:
    """A bundle with FP32, FP16 and INT8, and the recipe small.yaml for its origin."""
    model = onnx.load_model_from_string(parts["onnx"])
    for key, value in (("edgefold.name", "small"), ("edgefold.recipe", "name: small\nstages: {}\n")):
        model.metadata_props.add(key=key, value=value)
    whole = model.SerializeToString()
    int8 = int8_from_onnx(whole, parts["inputs"], parts["inputs"], parts["labels"], gate=GATES["int8"], method="minmax")
    forms = [OnnxForm("fp16", fp16_from_onnx(whole)), OnnxForm("int8", int8.model)]
    write_bundle(tmp_path / "bundle", **{**parts, "onnx": whole}, forms=forms)
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


# Those that do not read what is exported by default, from the last one on that is made for a Python of `runtime`.
TOO_OLD = ["1.12.1", "1.14.1", "1.15.1", "1.16.3", "1.17.3"]

CRASHES = [("1.14.1", "fp16")]


@pytest.mark.parametrize("version", TOO_OLD)
def test_what_an_old_engine_refuses_runs_there_exported_for_it(
    version: str, bundle_of_forms: Path, parts: dict[str, Any], tmp_path: Path
) -> None:
    python = interpreter(version)
    refused = run_device_side(python, "-c", MAIN, "accuracy", bundle_of_forms, "--format", "onnx")
    assert refused.stdout == "1\n"
    assert f"onnxruntime {version} cannot load this model (opset 20, IR 10)" in refused.stderr
    command = "edgefold export small --opset 17"
    assert f"pip install 'onnxruntime>=1.18', or export it again for this engine: {command}" in refused.stderr
    doctor = run_device_side(python, "-m", "runtime", "doctor", "--bundle", bundle_of_forms)
    runs = [name for name in ("onnx", "fp16", "int8") if (version, name) not in CRASHES]
    assert doctor.stdout.count(f"or export it again for this engine: {command}") == len(runs)

    bundle = open_bundle(bundle_of_forms)
    older = {name: at_opset(bundle.file_of(name).read_bytes(), 17) for name in bundle.formats}
    forms = [OnnxForm(name, model) for name, model in older.items() if name != "onnx"]
    write_bundle(tmp_path / "older", **{**parts, "onnx": older["onnx"]}, forms=forms)
    doctor = run_device_side(python, "-m", "runtime", "doctor", "--bundle", tmp_path / "older")
    assert doctor.stdout.count(f"onnxruntime {version} reads it") == len(runs)
    for name in set(bundle.formats) - set(runs):
        refused = run_device_side(python, "-c", MAIN, "accuracy", tmp_path / "older", "--format", name)
        assert f"onnxruntime {version} crashes on {name} on a CPU" in refused.stderr
    for name in runs:
        classes = []
        for engine, path in ((python, tmp_path / "older"), (interpreter("1.31.1"), bundle_of_forms)):
            output = tmp_path / "accuracy.json"
            run_device_side(engine, "-m", "runtime", "accuracy", path, "--format", name, "--output", output)
            classes.append(json.loads(output.read_text())["predictions"])
        unlike = [row for row, label in classes[0].items() if classes[1][row] != label]
        print(f"{name} of opset 17 in {version}: {len(unlike)} of {len(classes[0])} classes unlike 1.31.1")
        assert len(unlike) <= (len(classes[0]) // 100 if name == "int8" else 0)


@pytest.mark.parametrize("version", ["1.12.1", "1.13.1"])
def test_a_layout_that_an_engine_gets_wrong_is_not_used(version: str, parts: dict[str, Any], tmp_path: Path) -> None:
    signature = InputSignature((96, 64, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = ShuffleNetV1Spec().build(signature=signature, outputs=5)
        preprocess = Preprocess(signature, Normalization(1 / 255, (0.4,) * 3, (0.25,) * 3))
        graph = DeployableGraph(preprocess, student, 5).train()
        random = np.random.default_rng(0)
        colours = random.integers(0, 192, (80, 1, 1, 3), dtype=np.uint8)
        images = colours + random.integers(0, 64, (80, *signature.shape), dtype=np.uint8)
        with torch.no_grad():
            graph(torch.from_numpy(images[64:]))  # which gives the batch norms statistics
            logits = graph.eval()(torch.from_numpy(images[:64])).numpy()
    own = {
        "signature": signature,
        "classes": 5,
        "subclasses": 1,
        "class_names": tuple("abcde"),
        "row_ids": np.arange(64),
    }
    own |= {"inputs": images[:64], "labels": logits.argmax(axis=1), "logits": logits}
    model = at_opset(onnx_from_graph(graph, signature, metadata={}), 17)
    write_bundle(tmp_path / "bundle", **{**parts, **own, "onnx": model})
    output = tmp_path / "accuracy.json"
    run_device_side(interpreter(version), "-m", "runtime", "accuracy", tmp_path / "bundle", "--output", output)
    assert json.loads(output.read_text())["accuracy"] == 1.0


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
