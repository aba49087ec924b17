"""A small trained-looking classifier and its export, made once: each export costs seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.bundle import write_bundle
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.to_onnx import onnx_from_graph

CLASSES, SUBCLASSES = 3, 4
METADATA = {"edgefold.recipe_key": "0" * 64, "edgefold.class_names": '["ant", "bee", "cät"]'}


class Output(NamedTuple):
    logits: Tensor
    embedding: Tensor


class SmallStudent(nn.Module):
    """Convolution, batch norm, dropout and a C*S head; returns an object with `.logits`."""

    def __init__(self, outputs: int = CLASSES * SUBCLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)
        )
        self.classifier = nn.Linear(4 * 6 * 5, outputs)

    def forward(self, x: Tensor) -> Output:
        embedding = self.body(x)
        return Output(self.classifier(embedding), embedding)


class Exported(NamedTuple):
    graph: DeployableGraph
    signature: InputSignature
    model: bytes

    def images(self, rows: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (rows, *self.signature.shape), dtype=np.uint8)

    def torch_outputs(self, inputs: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = self.graph(torch.from_numpy(inputs))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]


def small_graph(subclass_probabilities: bool = True) -> tuple[DeployableGraph, InputSignature]:
    """The same weights on every call, in every process; images are 6×5 with two channels."""
    signature = InputSignature((6, 5, 2))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        student = SmallStudent()
        nn.init.uniform_(student.body[1].running_mean, -0.5, 0.5)
        nn.init.uniform_(student.body[1].running_var, 0.5, 2.0)
    preprocess = Preprocess(signature, Normalization(1 / 255, (0.4, 0.6), (0.2, 0.3)))
    graph = DeployableGraph(preprocess, student, CLASSES, SUBCLASSES, subclass_probabilities)
    return graph.eval(), signature


def export_small() -> bytes:
    graph, signature = small_graph()
    return onnx_from_graph(graph, signature, metadata=METADATA)


@pytest.fixture(scope="session")
def exported() -> Exported:
    return Exported(*small_graph(), export_small())


@pytest.fixture(scope="session")
def parts(exported: Exported) -> dict[str, Any]:
    """Everything that write_bundle takes, with 300 rows."""
    inputs = exported.images(300)
    logits = exported.torch_outputs(inputs)[0]
    labels = logits.argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % CLASSES  # 90 % accuracy, so that it can move both ways
    return {
        "name": "small",
        "stage": "student",
        "recipe_key": "0" * 64,
        "classes": CLASSES,
        "subclasses": SUBCLASSES,
        "class_names": ("ant", "bee", "cät"),
        "signature": exported.signature,
        "onnx": exported.model,
        "inputs": inputs,
        "labels": labels,
        "row_ids": np.arange(1000, 1300),
        "logits": logits,
        "metrics": {"test_accuracy": 0.9, "test_rows": 300},
        "batch_sizes": (1, 8, 64),
    }


@pytest.fixture
def bundle_folder(tmp_path: Path, parts: dict[str, Any]) -> Path:
    folder = tmp_path / "bundle"
    write_bundle(folder, **parts)
    return folder
