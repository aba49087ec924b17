"""Texts through a bundle: a model whose logits are sums of a small table's rows, so that each answer is known."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.classify import classify
from runtime.errors import BundleError, DataError, UsageError
from runtime.rows import Rows, check_rows
from runtime.runners import open_runner
from runtime.text import HashedNgrams

FEATURISER = HashedNgrams(buckets=50, ngrams=2, length=6)
TEXTS = ["a good film", "a bad film", "", "x " * 40]


def table() -> np.ndarray:
    """(ids, classes) with a zero row for padding."""
    values = np.random.default_rng(0).normal(size=(FEATURISER.buckets, 3)).astype(np.float32)
    values[0] = 0
    return values


def model() -> bytes:
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.INT32, ["N", FEATURISER.length])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(table(), "table"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return made.SerializeToString()


def expected(texts: list[str]) -> np.ndarray:
    """Probabilities (N, C), in float64."""
    logits = np.array([table()[FEATURISER.ids(text)].astype(np.float64).sum(0) for text in texts])
    shares = np.exp(logits)
    return shares / shares.sum(1, keepdims=True)


@pytest.fixture
def write_text_bundle(write_bundle: Any, tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        inputs = FEATURISER.encode([f"text number {i}" for i in range(24)])
        logits = table()[inputs].sum(1)
        arrays = {
            "inputs": inputs, "labels": logits.argmax(1), "row_ids": np.arange(24), "logits": logits
        }  # fmt: skip
        options = {
            "input": {"name": "input", "dtype": "int32", "shape": [FEATURISER.length], "layout": "NL"},
            "text": FEATURISER.to_json(),
            **changes,
        }
        return write_bundle(tmp_path / "text-bundle", model=model(), arrays=arrays, **options)

    return write


@pytest.fixture
def text_bundle(write_text_bundle: Any) -> Path:
    return write_text_bundle()


def test_each_text_gets_its_class_and_probabilities(text_bundle: Path) -> None:
    with open_runner(open_bundle(text_bundle)) as runner:
        found = classify(runner, TEXTS)
        assert classify(runner, []) == []
    probabilities = expected(TEXTS)
    np.testing.assert_allclose([each.probabilities for each in found], probabilities, rtol=1e-5)
    names = ("ant", "bee", "cat")
    assert [each.class_name for each in found] == [names[c] for c in probabilities.argmax(1)]
    assert [each.probability for each in found] == pytest.approx(probabilities.max(1), rel=1e-5)
    assert found[2].probabilities == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_more_texts_than_a_batch_keep_their_order(text_bundle: Path) -> None:
    texts = [f"text {i} of many" for i in range(700)]
    with open_runner(open_bundle(text_bundle)) as runner:
        found = classify(runner, texts)
    assert [each.text for each in found] == texts
    np.testing.assert_allclose([each.probabilities for each in found], expected(texts), rtol=1e-4)


def test_classify_prints_a_line_a_text(text_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(text_bundle), *TEXTS[:2]]) == 0
    probabilities = expected(TEXTS[:2])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        [("ant", "bee", "cat")[row.argmax()], f"{100 * row.max():.2f}", "%", *text.split()]
        for row, text in zip(probabilities, TEXTS, strict=False)
    ]


def test_lines_of_stdin_and_json(
    text_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a good film\n\nein schöner Film\r\nno newline at the end"))
    assert main(["classify", str(text_bundle), "first", "-", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "classify"
    assert document["class_names"] == ["ant", "bee", "cat"]
    texts = [each["text"] for each in document["texts"]]
    assert texts == ["first", "a good film", "", "ein schöner Film", "no newline at the end"]
    found = np.array([each["probabilities"] for each in document["texts"]])
    np.testing.assert_allclose(found, expected(texts), rtol=1e-5)
    assert [each["probability"] for each in document["texts"]] == found.max(1).tolist()


def test_nothing_on_stdin_is_no_text(
    text_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["classify", str(text_bundle), "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == []


def test_a_bundle_of_images_is_refused(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # refused before any text is waited for
    assert main(["classify", str(bundle_folder), "-"]) == 2
    said = capsys.readouterr().err
    assert "takes images (uint8 [N, 4, 3, 1]), and `classify` is for text" in said


def test_inspect_shows_the_featuriser(text_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_bundle(text_bundle).text == FEATURISER
    assert main(["inspect", str(text_bundle)]) == 0
    out = capsys.readouterr().out
    assert "input int32 [N, 6] NL" in out
    assert "word n-grams up to 2, lower-cased, 50 buckets, 6 ids a text" in out


def test_accuracy_takes_a_text_bundle(text_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", str(text_bundle), "--batch", "5"]) == 0
    assert "24 of 24 rows" in capsys.readouterr().out


def test_a_bundle_of_images_has_no_featuriser(bundle_folder: Path) -> None:
    assert open_bundle(bundle_folder).text is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": {**FEATURISER.to_json(), "version": 9}}, r"manifest.json: text: kind is 'hashed_ngrams', version 9"),
        ({"text": {**FEATURISER.to_json(), "length": 7}}, r"expected int32 of shape \[7\]"),
        ({"text": []}, "text: came .*, expected an object"),
    ],
)
def test_a_featuriser_that_does_not_fit_is_refused(write_text_bundle: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        open_bundle(write_text_bundle(**changes))


@pytest.mark.parametrize("wrong", [-1, FEATURISER.buckets])
def test_ids_that_the_table_does_not_have_are_refused(text_bundle: Path, wrong: int) -> None:
    inputs = FEATURISER.encode(["one", "two"])
    inputs[1, 3] = wrong
    with pytest.raises(DataError, match="ids outside 0 to 49 at row ids 11"):
        check_rows(Rows(inputs, np.array([0, 1]), np.array([10, 11])), open_bundle(text_bundle), "rows")


def test_bad_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="buckets is 0"):
        HashedNgrams(buckets=0)
