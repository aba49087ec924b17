"""Numbers and category vectors side by side, against the same by hand; that it exports as what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from compress.models import parameter_count, profile_of, shapes_of
from compress.models.table_mlp import TableMLP, TableMLPSpec
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.table import numbers_and_ids
from export.to_onnx import onnx_from_graph
from runtime.errors import ExportError
from runtime.table import LARGEST_NUMBER, MISSING

NUMBERS, CATEGORIES, IDS = 3, 4, 30
TABLE = InputSignature.of_table(NUMBERS, CATEGORIES, IDS)
CRITEO = InputSignature.of_table(13, 26, 1_000_000)
# Every engine has these; the last line is the fold's.
ALLOWED = {"Slice", "Cast", "Relu", "Add", "Log", "Gather", "Concat", "Reshape", "Flatten", "Gemm", "MatMul"}
ALLOWED |= {"ReduceMax", "Sub", "Exp", "ReduceSum", "Squeeze"}


def built(outputs: int = 4, seed: int = 0, **options: Any) -> TableMLP:
    torch.manual_seed(seed)
    return TableMLPSpec(**{"width": 6, "hidden": (5,), **options}).build(signature=TABLE, outputs=outputs)


def some_rows(count: int = 9) -> Tensor:
    draw = np.random.default_rng(1)
    rows = draw.integers(0, IDS, (count, NUMBERS + CATEGORIES))
    rows[:, :NUMBERS] = draw.choice([MISSING, -3, 0, 1, 7, 1000, LARGEST_NUMBER], (count, NUMBERS))
    return torch.from_numpy(rows.astype(np.int32))


def by_hand(model: TableMLP, rows: Tensor) -> np.ndarray:
    """Logits in float64, row by row."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    outputs = []
    for row in rows.tolist():
        x = [np.log(1 + number) if number > 0 else 0.0 for number in row[:NUMBERS]]
        x = np.concatenate([x, *(state["table.weight"][id_] for id_ in row[NUMBERS:])])
        for i in range(len(model.hidden)):
            x = np.maximum(state[f"hidden.{i}.weight"] @ x + state[f"hidden.{i}.bias"], 0)
        outputs.append(state["classifier.weight"] @ x + state["classifier.bias"])
    return np.array(outputs)


def test_numbers_are_logarithms_and_missing_or_negative_ones_zero() -> None:
    rows = torch.tensor([[MISSING, -2, 0, 1], [1, 2, LARGEST_NUMBER, 9]], dtype=torch.int32)
    numbers, ids = numbers_and_ids(rows, 3)
    expected = [[0, 0, 0], [np.log(2), np.log(3), 31 * np.log(2)]]
    np.testing.assert_allclose(numbers.numpy(), expected, rtol=1e-6)
    assert numbers.dtype == torch.float32
    assert (ids.tolist(), ids.dtype) == ([[1], [9]], torch.int32)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
def test_logits_by_hand(hidden: tuple[int, ...]) -> None:
    model, rows = built(hidden=hidden).eval(), some_rows()
    np.testing.assert_allclose(model(rows).logits.detach().numpy(), by_hand(model, rows), atol=1e-5)


def test_output_has_the_promised_shapes() -> None:
    output = built(hidden=(5, 3)).eval()(some_rows())
    assert output.embedding.shape == (9, 3)
    assert [tuple(each.shape) for each in output.features] == [(9, 5), (9, 3)]
    shapes = shapes_of(TableMLPSpec(width=6, hidden=(5, 3)), signature=TABLE, outputs=4)
    assert (shapes.embedding, shapes.features, shapes.feature_names) == (3, ((5,), (3,)), ("hidden1", "hidden2"))


def test_the_papers_networks_have_their_size() -> None:
    # 13 + 26 × 32 = 845 inputs, a million vectors of 32.
    table, teacher, student = 32_000_000, TableMLPSpec(hidden=(2048, 1024, 512, 256)), TableMLPSpec(hidden=(256,))
    layers = 846 * 2048 + 2049 * 1024 + 1025 * 512 + 513 * 256
    assert parameter_count(teacher, signature=CRITEO, outputs=2) == table + layers + 257 * 2
    assert parameter_count(student, signature=CRITEO, outputs=2) == table + 846 * 256 + 257 * 2
    profile = profile_of(student, signature=CRITEO, outputs=2)
    assert profile.total_macs == 845 * 256 + 256 * 2  # gathers multiply nothing
    assert profile.parameters == table + 846 * 256 + 257 * 2


@pytest.mark.parametrize("init", ["torch", "glorot", "he"])
def test_vectors_start_small(init: str) -> None:
    table = built(init=init).table.weight
    assert 0.9 / 6 < table.abs().max() <= 1 / 6
    assert torch.equal(table, built(init=init).table.weight)
    assert not torch.equal(table, built(init=init, seed=1).table.weight)


def test_the_exported_file_is_the_model_at_any_batch_size() -> None:
    model = built(outputs=6, hidden=(5, 3)).eval()
    graph = DeployableGraph(Preprocess(TABLE, None), model, classes=3, subclasses=2)
    data = onnx_from_graph(graph, TABLE, metadata={})
    assert data == onnx_from_graph(graph, TABLE, metadata={})
    nodes = onnx.load_from_string(data).graph.node
    assert {node.op_type for node in nodes} <= ALLOWED
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    assert (argument.type, argument.shape) == ("tensor(int32)", ["batch", NUMBERS + CATEGORIES])
    for count in (1, 2, 9):
        rows = some_rows(count)
        (logits,) = session.run(["logits"], {"input": rows.numpy()})
        np.testing.assert_allclose(logits, graph(rows).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("other", "came"),
    [(InputSignature((8, 8, 1)), "images of 8×8×1"), (InputSignature.of_ids(9, 30), "text, 9 ids a row")],
)
def test_images_and_text_are_refused(other: InputSignature, came: str) -> None:
    with pytest.raises(ValueError, match=f"takes tables, and the data is {came}; mlp takes images, bag_mlp text"):
        TableMLPSpec().build(signature=other, outputs=2)


def test_a_signature_needs_ids_behind_its_numbers() -> None:
    assert str(TABLE) == "tables, 3 numbers and 4 ids a row"
    for options in ({"shape": (3,), "dtype": "int32", "layout": "NL", "ids": 9}, {"shape": (8, 8, 1)}):
        with pytest.raises(ExportError, match=r"numbers is 3 for shape .*; expected ids behind the numbers"):
            InputSignature(**options, numbers=3)
    with pytest.raises(ExportError, match="ids have no normalization"):
        Preprocess(TABLE, Normalization(1.0, (0.0,), (1.0,)))
