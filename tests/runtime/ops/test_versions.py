"""One library in old and new versions of onnxruntime, each in a virtual environment of its own.

    pytest -m versions tests/runtime/ops/test_versions.py

onnxruntime-node's own version is tried by test_examples.py, its ARM library by test_aarch64.py.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import ops_builds
import packed_models
import pytest
from engine_versions import interpreter

# The oldest that is supported, the last for Python 3.10, and the newest.
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
