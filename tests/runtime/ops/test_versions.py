"""One library in old and new versions of onnxruntime, each in a virtual environment of its own.

    pytest -m versions tests/runtime/ops/test_versions.py

onnxruntime-node's own version is tried by test_examples.py, its ARM library by test_aarch64.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import ops_builds
import packed_models
import pytest
from filelock import FileLock

# The oldest that is supported, the last for Python 3.10, and the newest; those before 1.19 are built for numpy 1.
VERSIONS = ["1.18.1", "1.20.1", "1.23.2", "1.31.1"]

CHILD = """
import sys
import numpy as np
import onnxruntime

folder, library, version = sys.argv[1:]
assert onnxruntime.__version__ == version
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
np.savez(folder + "/outputs.npz", *session.run(None, {"image": np.load(folder + "/images.npy")}))
try:
    onnxruntime.InferenceSession(folder + "/bad.onnx", options, providers=["CPUExecutionProvider"])
except Exception as error:
    print(error)
"""

pytestmark = pytest.mark.versions


def interpreter(version: str) -> Path:
    """Return the Python of a virtual environment that has this onnxruntime."""
    home = ops_builds.ROOT / "build" / f"onnxruntime-{version}"
    home.parent.mkdir(exist_ok=True)
    with FileLock(home.with_suffix(f"{home.suffix}.lock")):
        if not (home / "bin" / "python").exists():
            ops_builds.run(sys.executable, "-m", "venv", home)
        numpy = "numpy<2" if int(version.split(".")[1]) < 19 else "numpy"
        done = subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "-q", f"onnxruntime=={version}", numpy],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"onnxruntime {version} cannot be installed: {done.stderr[-300:]}")
    return home / "bin" / "python"


@pytest.mark.parametrize("version", VERSIONS)
def test_outputs_are_equal_in_each_version(version, tmp_path):
    model, images = packed_models.image_classifier(), packed_models.random_images(3)
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", images)
    bad = onnx.ModelProto()
    bad.CopyFrom(model)
    first = next(each for each in bad.graph.node if each.op_type == "BinaryConv")
    next(each for each in first.attribute if each.name == "channels").i = 77
    onnx.save(bad, tmp_path / "bad.onnx")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = ops_builds.run(interpreter(version), "-c", CHILD, tmp_path, ops_builds.operators(), version, env=environment)
    assert "W has 1 words; 77 channels in 1 groups have 3" in done.stdout
    outputs = np.load(tmp_path / "outputs.npz")
    for came, expected in zip(outputs.values(), packed_models.classify_images(model, images), strict=True):
        np.testing.assert_array_equal(came, expected, strict=True)
