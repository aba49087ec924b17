"""The bag of n-grams, against sums by hand; that padding stays nothing; that it exports as what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.models import MODELS, parameter_count, shapes_of
from compress.models.bag_mlp import BagMLP, BagMLPSpec
from compress.optimization import OPTIMIZERS
from export.graph import DeployableGraph, InputSignature, Preprocess
from export.to_onnx import onnx_from_graph

IDS, LENGTH = 30, 9
TEXT = InputSignature.of_ids(LENGTH, IDS)
IMAGES = InputSignature((28, 28, 3))
# Of the student, then of the fold: every engine has these.
ALLOWED = {"Gather", "ReduceSum", "Cast", "Equal", "Not", "Max", "Clip", "Div", "Gemm", "MatMul", "Add", "Relu"}
ALLOWED |= {"Flatten", "Reshape", "ReduceMax", "Sub", "Exp", "Log", "Squeeze"}


def built(outputs: int = 4, seed: int = 0, **options: Any) -> BagMLP:
    torch.manual_seed(seed)
    return BagMLPSpec(**{"width": 6, "hidden": (5,), **options}).build(signature=TEXT, outputs=outputs)


def some_ids(rows: int = 7) -> Tensor:
    """Rows with 0, 1, ... ids, the rest padding; int32 as the data gives them."""
    ids = torch.randint(1, IDS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[torch.arange(LENGTH) >= torch.arange(rows)[:, None]] = 0
    return ids.int()


def by_hand(model: BagMLP, ids: Tensor, bag: str) -> np.ndarray:
    """Logits in float64, text by text."""
    table, outputs = model.table.weight.detach().double().numpy(), []
    for row in ids.numpy():
        words = table[row[row != 0]]
        x = words.sum(0) / (max(len(words), 1) if bag == "mean" else 1)
        for layer in model.hidden:
            x = np.maximum(layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy(), 0)
        classifier = model.classifier
        outputs.append(classifier.weight.detach().double().numpy() @ x + classifier.bias.detach().double().numpy())
    return np.array(outputs)


@pytest.mark.parametrize("bag", ["mean", "sum"])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_logits_by_hand(bag: str, hidden: tuple[int, ...], training: bool) -> None:
    model, ids = built(bag=bag, hidden=hidden).train(training), some_ids()
    np.testing.assert_allclose(model(ids).logits.detach().numpy(), by_hand(model, ids, bag), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_an_empty_text_is_the_zero_vector(rows: int) -> None:
    model = built(hidden=())
    for training in (True, False):
        output = model.train(training)(torch.zeros(rows, LENGTH, dtype=torch.int32))
        assert not output.embedding.any()
        assert torch.equal(output.logits, model.classifier.bias.expand(rows, -1))


def test_ids_between_padding_count_too() -> None:
    model = built().train()
    ids = torch.tensor([[0, 3, 0, 0, 7, 0, 0, 0, 0]], dtype=torch.int32)
    packed = torch.tensor([[3, 7, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    torch.testing.assert_close(model(ids).logits, model(packed).logits)


def test_output_has_the_promised_shapes() -> None:
    model = built(hidden=(5, 3)).eval()
    output = model(some_ids())
    assert output.embedding.shape == (7, 3)
    assert [tuple(each.shape) for each in output.features] == [(7, 5), (7, 3)]
    assert output.embedding is output.features[-1]
    shapes = shapes_of(BagMLPSpec(width=6, hidden=(5, 3)), signature=TEXT, outputs=4)
    assert (shapes.embedding, shapes.features, shapes.feature_names) == (3, ((5,), (3,)), ("hidden1", "hidden2"))


def test_parameter_count_by_hand() -> None:
    spec = BagMLPSpec(width=6, hidden=(5,))
    assert parameter_count(spec, signature=TEXT, outputs=4) == IDS * 6 + (6 * 5 + 5) + (5 * 4 + 4)


@pytest.mark.parametrize("init", ["torch", "glorot", "he"])
def test_vectors_start_small_and_padding_at_zero(init: str) -> None:
    table = built(init=init).table.weight
    assert not table[0].any()
    assert 0.9 / 6 < table.abs().max() <= 1 / 6
    assert torch.equal(table, built(init=init).table.weight)
    assert not torch.equal(table, built(init=init, seed=1).table.weight)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_padding_stays_zero_under_every_optimizer(kind: str) -> None:
    model, ids = built().train(), some_ids()
    before = model.table.weight.detach().clone()
    optimizer = OPTIMIZERS[kind](weight_decay=0.01).build(model.parameters())
    for _ in range(5):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(ids).logits, torch.tensor([0, 1, 2, 3, 0, 1, 2])).backward()
        optimizer.step()
    assert not model.table.weight[0].any()
    used = sorted(set(ids[ids != 0].tolist()))
    assert (model.table.weight[used] != before[used]).any(1).all()


def test_dropout_works_in_training_only() -> None:
    model, ids = built(width=64, dropout=0.5).train(), some_ids()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("bag", ["mean", "sum"])
def test_the_exported_file_is_the_model_at_any_batch_size(bag: str) -> None:
    model = built(outputs=6, bag=bag, hidden=(5, 3)).eval()
    graph = DeployableGraph(Preprocess(TEXT, None), model, classes=3, subclasses=2)
    data = onnx_from_graph(graph, TEXT, metadata={})
    assert data == onnx_from_graph(graph, TEXT, metadata={})
    assert {node.op_type for node in onnx.load_from_string(data).graph.node} <= ALLOWED
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    assert (argument.type, argument.shape) == ("tensor(int32)", ["batch", LENGTH])
    for rows in (1, 2, 9):
        ids = some_ids(rows)
        (logits,) = session.run(["logits"], {"input": ids.numpy()})
        np.testing.assert_allclose(logits, graph(ids).detach().numpy(), atol=1e-6)


# Those of others' models: test_encoder.py and test_timm.py say the same of them.
@pytest.mark.parametrize("kind", sorted(set(MODELS) - {"encoder", "embedding_mlp", "timm"}))
def test_a_model_refuses_the_other_kind_of_input(kind: str) -> None:
    takes = {"bag_mlp": "text", "table_mlp": "tables"}.get(kind, "images")
    other, came = (IMAGES, "images of 28×28×3") if takes == "text" else (TEXT, "text, 9 ids")
    with pytest.raises(ValueError, match=f"takes {takes}, and the data is {came}"):
        MODELS[kind]().build(signature=other, outputs=2)
