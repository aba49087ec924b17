"""A small, valid bundle: uint8 NHWC images -> Cast -> Flatten -> Gemm -> logits, with known weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import nvml
from runtime.bundle import open_bundle, write_checksums

SHAPE, CLASSES, ROWS = (4, 3, 1), 3, 24


@pytest.fixture(scope="session")
def weights():
    """Weights (12, C) and bias (C,), float32."""
    generator = np.random.default_rng(0)
    weight = generator.normal(scale=0.1, size=(12, CLASSES)).astype(np.float32)
    return weight, generator.normal(size=CLASSES).astype(np.float32)


@pytest.fixture(scope="session")
def build_model(weights):
    """Return a function that makes the ONNX model; its keywords bend it."""

    def build(*, opset=20, ir_version=10, batch: Any = "N", outputs=("logits",)) -> onnx.ModelProto:
        weight, bias = weights
        nodes = [
            helper.make_node("Cast", ["input"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["cast"], ["flat"], axis=1),
            *(helper.make_node("Gemm", ["flat", "weight", "bias"], [name]) for name in outputs),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input", TensorProto.UINT8, [batch, *SHAPE])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, CLASSES]) for name in outputs],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, producer_name="test"
        )
        helper.set_model_props(model, {"name": "tiny", "classes": "ant,bee,cat"})
        return model

    return build


@pytest.fixture(scope="session")
def samples(weights):
    """The arrays of samples.npz: labels are the model's own predictions but for the last two rows."""
    weight, bias = weights
    inputs = np.random.default_rng(1).integers(0, 256, size=(ROWS, *SHAPE), dtype=np.uint8)
    logits = inputs.reshape(ROWS, -1).astype(np.float32) @ weight + bias
    labels = logits.argmax(axis=1).astype(np.int64)
    labels[-2:] = (labels[-2:] + 1) % CLASSES
    row_ids = np.arange(100, 100 + ROWS, dtype=np.int64)
    return {"inputs": inputs, "labels": labels, "row_ids": row_ids, "logits": logits}


@pytest.fixture(scope="session")
def write_bundle(build_model, samples):
    """Return `write(folder, model=, arrays=, **manifest keys)`, which writes a bundle with its checksums."""

    def write(
        folder: Path,
        *,
        model: bytes | None = None,
        arrays: dict[str, np.ndarray] | None = None,
        **changes: Any,
    ) -> Path:
        model = build_model().SerializeToString() if model is None else model
        packed = io.BytesIO()
        np.savez(packed, **(samples if arrays is None else arrays))
        manifest = {
            "format_version": 1,
            "name": "tiny",
            "stage": "student",
            "recipe_key": "ab" * 32,
            "classes": CLASSES,
            "subclasses": 1,
            "class_names": ["ant", "bee", "cat"],
            "input": {"name": "input", "dtype": "uint8", "shape": list(SHAPE), "layout": "NHWC"},
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [CLASSES]}],
            "batch_sizes": [1, 8],
            "formats": {
                "onnx": {
                    "file": "model.onnx",
                    "size_bytes": len(model),
                    "precision": "fp32",
                    "opset": 20,
                    "ir_version": 10,
                }
            },
            "samples": "samples.npz",
            "labels": "labels.txt",
            "metrics": {"test_accuracy": 0.9, "test_rows": ROWS},
            **changes,
        }
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        (folder / "samples.npz").write_bytes(packed.getvalue())
        (folder / "labels.txt").write_text("ant\nbee\ncat\n")
        (folder / "manifest.json").write_text(
            json.dumps({key: value for key, value in manifest.items() if value is not None})
        )
        write_checksums(folder)
        return folder

    return write


@pytest.fixture
def bundle_folder(write_bundle, tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def bundle(bundle_folder):
    return open_bundle(bundle_folder)


@pytest.fixture
def no_nvml(monkeypatch):
    """Take away the library of NVIDIA's driver, where this machine has it."""

    def forget():
        nvml._library.cache_clear()
        nvml._gpus.cache_clear()

    monkeypatch.setattr(nvml, "_LIBRARIES", ("libthereisnone.so.1",))
    forget()
    yield
    forget()


@pytest.fixture
def command(tmp_path, monkeypatch, no_nvml):
    """Return a function that puts a stand-in on PATH, which holds nothing else; there is no NVML either."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, says, status=0):
        path = folder / name
        path.write_text(
            f"#!/bin/sh\necho \"$*\" >> {folder}/{name}.asked\ncase x in x) echo '{says}';; esac\nexit {status}\n"
        )
        path.chmod(0o755)
        return folder / f"{name}.asked"

    return put
