"""The ONNX file: what is in it, what is not, and that nothing but the model decides its bytes."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import export.to_onnx
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.to_onnx import onnx_from_graph, write_onnx
from runtime.errors import ExportError
from runtime.onnx_file import onnx_header_from_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model(exported: Any) -> onnx.ModelProto:
    return onnx.load_model_from_string(exported.model)


@pytest.fixture(scope="session")
def session(exported: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.model, providers=["CPUExecutionProvider"])


def graph_of(student: nn.Module, outputs: int = 4) -> tuple[DeployableGraph, InputSignature]:
    signature = InputSignature((2, 2, 1))
    return DeployableGraph(Preprocess(signature, Normalization(1.0, (0.0,), (1.0,))), student, outputs), signature


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_any_batch_gives_what_torch_gives(exported: Any, session: Any, batch: int) -> None:
    inputs = exported.images(batch, seed=batch)
    logits, probabilities = session.run(["logits", "subclass_probabilities"], {"input": inputs})
    expected_logits, expected_probabilities = exported.torch_outputs(inputs)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-6)


def test_fold_survives_logits_of_200(exported: Any) -> None:
    graph, signature = copy.deepcopy(exported.graph), exported.signature
    with torch.no_grad():
        graph.student.classifier.weight.zero_()
        graph.student.classifier.bias.copy_(torch.tensor([200.0, -200.0, 199.0, 0.0] * 3))
    session = onnxruntime.InferenceSession(
        onnx_from_graph(graph, signature, metadata={}), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"input": exported.images(1)})
    np.testing.assert_allclose(logits, 200 + np.log1p(np.exp(-1)), atol=2e-5)


def test_inputs_outputs_and_versions(model: onnx.ModelProto, exported: Any) -> None:
    described = {
        value.name: (value.type.tensor_type.elem_type, export.to_onnx.axes_of(value))
        for value in (*model.graph.input, *model.graph.output)
    }
    assert described == {
        "input": (onnx.TensorProto.UINT8, ("batch", 6, 5, 2)),
        "logits": (onnx.TensorProto.FLOAT, ("batch", 3)),
        "subclass_probabilities": (onnx.TensorProto.FLOAT, ("batch", 12)),
    }
    header = onnx_header_from_bytes(exported.model, "model")
    assert (header.opset, header.ir_version) == (20, 10)
    assert not header.external_tensors
    onnx.checker.check_model(model, full_check=True)


def test_fold_is_and_preprocessing_are_written_out(model: onnx.ModelProto) -> None:
    operators = [node.op_type for node in model.graph.node]
    assert "ReduceLogSumExp" not in operators
    assert operators.index("Cast") < operators.index("Transpose")  # TensorRT does not transpose uint8
    fold = operators[operators.index("ReduceMax") :]
    assert [op for op in fold if op not in ("Squeeze", "Softmax")] == [
        "ReduceMax",
        "Sub",
        "Exp",
        "ReduceSum",
        "Log",
        "Add",
    ]
    # One multiply and one add is all that the preprocessing costs.
    assert operators[: operators.index("Conv")] == ["Cast", "Transpose", "Mul", "Add"]


def test_only_our_metadata_is_in_the_file(model: onnx.ModelProto) -> None:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == {"edgefold.recipe_key": "0" * 64, "edgefold.class_names": '["ant", "bee", "cät"]'}
    assert [entry.key for entry in model.metadata_props] == sorted(metadata)
    assert model.producer_name == "edgefold"
    parts = [*model.graph.node, *model.graph.initializer, *model.graph.value_info, *model.graph.input]
    assert not any(part.metadata_props or part.doc_string for part in (*parts, *model.graph.output, model.graph))


def test_no_path_of_this_machine_is_in_the_bytes(exported: Any) -> None:
    for path in (ROOT, Path(torch.__file__).parent, Path(sys.prefix), Path.home(), Path.cwd()):
        assert str(path).encode() not in exported.model
    assert b".py" not in exported.model
    assert b"stack_trace" not in exported.model


def test_exporting_again_gives_the_same_bytes(exported: Any) -> None:
    reordered = dict(reversed([("edgefold.class_names", '["ant", "bee", "cät"]'), ("edgefold.recipe_key", "0" * 64)]))
    assert onnx_from_graph(exported.graph, exported.signature, metadata=reordered) == exported.model


def test_another_process_in_another_folder_gives_the_same_bytes(exported: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for package in ("export", "runtime"):
        shutil.copytree(ROOT / package, elsewhere / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("conftest.py"), elsewhere / "model_here.py")
    code = (
        "import sys, pathlib, export, model_here\n"
        "assert pathlib.Path(export.__file__).is_relative_to(sys.argv[1]), export.__file__\n"
        "pathlib.Path(sys.argv[1], 'model.onnx').write_bytes(model_here.export_small())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(elsewhere), "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(elsewhere)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "model.onnx").read_bytes() == exported.model
    # The first export of a process is the one that the exporter has most to say about.
    assert (done.stdout, done.stderr) == ("", "")


def test_export_is_in_evaluation_mode_and_restores_each_submodule(exported: Any) -> None:
    graph = copy.deepcopy(exported.graph).train()
    graph.student.body[1].eval()  # a batch norm that somebody froze
    statistics = graph.student.body[1].running_mean.clone()
    modes = [module.training for module in graph.modules()]
    metadata = {"edgefold.recipe_key": "0" * 64, "edgefold.class_names": '["ant", "bee", "cät"]'}
    assert onnx_from_graph(graph, exported.signature, metadata=metadata) == exported.model
    assert [module.training for module in graph.modules()] == modes
    assert torch.equal(graph.student.body[1].running_mean, statistics)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in graph.parameters())


def test_logging_and_warnings_are_as_before(exported: Any, capfd: pytest.CaptureFixture[str]) -> None:
    logging.disable(logging.DEBUG)
    try:
        onnx_from_graph(exported.graph, exported.signature, metadata={})
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert capfd.readouterr() == ("", "")


def test_write_onnx_puts_the_model_at_the_path(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(export.to_onnx, "onnx_from_graph", lambda graph, signature, metadata: exported.model)
    write_onnx(tmp_path / "new" / "model.onnx", exported.graph, exported.signature, metadata={})
    assert (tmp_path / "new" / "model.onnx").read_bytes() == exported.model
    assert os.listdir(tmp_path / "new") == ["model.onnx"]


def test_head_that_does_not_match_should_fail_before_tracing(exported: Any) -> None:
    graph, signature = graph_of(nn.Flatten(), outputs=5)
    with pytest.raises(ExportError, match=r"\(N, 4\); expected \(N, 5\)"):
        onnx_from_graph(graph, signature, metadata={})


def test_student_for_other_images_should_fail_in_one_line() -> None:
    graph, signature = graph_of(nn.Conv2d(3, 4, 2))
    with pytest.raises(ExportError, match="does not run on an input of shape") as caught:
        onnx_from_graph(graph.train(), signature, metadata={})
    assert "\n" not in caught.value.message
    assert graph.training


class BranchesOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class FixesTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), 4) + torch.zeros(2, 4)


def test_student_that_cannot_be_traced_should_fail_in_one_line() -> None:
    graph, signature = graph_of(BranchesOnValues())
    with pytest.raises(ExportError, match="cannot be written as ONNX: ") as caught:
        onnx_from_graph(graph, signature, metadata={})
    assert "\n" not in caught.value.message
    assert caught.value.remedy
    assert caught.value.__cause__ is not None


def test_student_that_fixes_the_batch_should_fail() -> None:
    # The exporter itself falls back to a static shape without a word that reaches its caller.
    graph, signature = graph_of(FixesTheBatch())
    with pytest.raises(ExportError, match=r"'input': \(2, 2, 2, 1\).*expected .*'input': \('batch', 2, 2, 1\)"):
        onnx_from_graph(graph, signature, metadata={})


def test_student_with_the_library_logsumexp_should_fail() -> None:
    class LibraryFold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 2, 2).logsumexp(2)

    graph, signature = graph_of(LibraryFold(), outputs=2)
    with pytest.raises(ExportError, match="ReduceLogSumExp"):
        onnx_from_graph(graph, signature, metadata={})


def test_metadata_that_is_not_text_should_fail(exported: Any) -> None:
    with pytest.raises(ExportError, match="'epochs' is 12; expected text"):
        onnx_from_graph(exported.graph, exported.signature, metadata={"epochs": 12})  # type: ignore[dict-item]
