"""`edgefold verify --against`: files and formats beside each other, exit codes, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from compress.against import precision_of
from compress.cli import main as edgefold
from export.bundle import OnnxForm, write_bundle
from export.graph import InputSignature

SHAPE, CLASSES, ROWS = (4, 3, 1), 3, 300


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


def model(*, change: float = 0.0, dtype: int = TensorProto.UINT8, batch: str | int = "batch") -> bytes:
    """uint8 images → Cast → Flatten → Gemm `hidden` → Relu `active` → Gemm `logits`; `change` is put on one weight."""
    generator = np.random.default_rng(0)
    first = generator.normal(scale=0.01, size=(12, 5)).astype(np.float32)
    first[3, 2] += change
    second = generator.normal(size=(5, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "second"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", dtype, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The whole model, and one with a changed weight."""
    whole, broken = tmp_path / "whole.onnx", tmp_path / "broken.onnx"
    whole.write_bytes(model())
    broken.write_bytes(model(change=0.5))
    return whole, broken


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose fp16 is the whole model and whose int8 is the broken one."""
    rows = np.random.default_rng(1).integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)
    folder = tmp_path / "bundle"
    write_bundle(
        folder, name="small", stage="student", recipe_key="0" * 64, classes=CLASSES, subclasses=1,
        class_names=("a", "b", "c"), signature=InputSignature(SHAPE), onnx=model(),
        forms=[OnnxForm("fp16", model()), OnnxForm("int8", model(change=0.5))], inputs=rows,
        labels=np.zeros(ROWS, np.int64), row_ids=np.arange(ROWS), logits=np.zeros((ROWS, CLASSES), np.float32),
        metrics={}, batch_sizes=(1,),
    )  # fmt: skip
    return folder


def test_two_files_that_agree_end_with_0(files: tuple[Path, Path]) -> None:
    result = call("verify", files[0], "--against", files[0])
    assert result.exit_code == 0, result.output
    assert "on 256 rows (drawn at random): the output differs by up to 0.00e+00" in result.stdout
    assert result.stdout.endswith("passed\n")


def test_two_files_that_part_end_with_3_and_name_the_node(files: tuple[Path, Path]) -> None:
    whole, broken = files
    result = call("verify", broken, "--against", whole)
    assert result.exit_code == 3
    assert f"error: {broken} beside {whole} on 256 rows" in result.stderr
    assert "The first node that departs is Gemm 'hidden', 3 of 5: its output departs by" in result.stderr
    assert (
        "It differs: its constant 'first' (input 1) differs in 1 of 60 numbers, most at [3, 2]: 0.496837 here and"
        in result.stderr
    )
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        ["1", "Cast", "cast"], ["2", "Flatten", "flat"], ["3", "Gemm", "hidden"],
        ["4", "Relu", "active"], ["5", "Gemm", "logits"],
    ]  # fmt: skip
    assert [line[-1] for line in lines[3:]] == ["FIRST", "departs", "departs"]


def test_json_says_all_of_it(files: tuple[Path, Path]) -> None:
    whole, broken = files
    result = call("verify", broken, "--against", whole, "--json")
    document = json.loads(result.stdout)
    assert (document["passed"], document["precision"]) == (False, "fp32")
    assert document["bisection"]["first"]["value"] == "hidden"
    assert [each["value"] for each in document["bisection"]["values"]] == ["cast", "flat", "hidden", "active", "logits"]
    assert "The first node that departs" in document["message"]


def test_formats_of_a_bundle_are_judged_by_their_own_gates_on_its_samples(bundle: Path) -> None:
    good = call("verify", bundle, "--format", "fp16", "--against", "onnx", "--json")
    assert good.exit_code == 0, good.output
    document = json.loads(good.stdout)
    assert document["gate"]["max_error_over_std"] == 0.02
    assert (document["inputs"], document["comparison"]["rows"]) == ("samples of small", ROWS)
    bad = call("verify", bundle, "--format", "int8", "--against", "onnx")
    assert bad.exit_code == 3
    assert "error: int8 beside onnx on 300 rows (samples of small)" in bad.stderr
    assert "allowed 0.3" in bad.stderr
    file = call("verify", bundle / "model.int8.onnx", "--against", bundle / "model.onnx", "--json")
    assert json.loads(file.stdout)["precision"] == "int8"


def test_rows_and_bundle_may_be_named(files: tuple[Path, Path], bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.npz"
    generator = np.random.default_rng(2)
    inputs = generator.integers(0, 256, (7, *SHAPE), dtype=np.uint8)
    np.savez(rows, inputs=inputs, labels=np.zeros(7, np.int64), row_ids=np.arange(7))
    result = call("verify", files[0], "--against", files[0], "--data", rows)
    assert f"on 7 rows ({rows})" in result.stdout
    result = call("verify", files[0], "--against", "fp16", "--bundle", bundle)
    assert (result.exit_code, "samples of small" in result.stdout) == (0, True)


def test_a_tolerance_shows_where_small_departures_begin(bundle: Path) -> None:
    result = call("verify", bundle, "--format", "int8", "--against", "onnx", "--tolerance", "1000")
    assert result.exit_code == 3
    assert "No value on the way departs by more than 1000; a lower --tolerance shows where it begins." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{bundle}", "--against", "onnx"], "a bundle, so --format has to say what to compare"),
        (["{bundle}", "--format", "int4", "--against", "onnx"], "no format 'int4' in this bundle"),
        (["{bundle}", "--format", "int8", "--against", "int9"], "--against int9: no such file or format"),
        (["{whole}", "--against", "nothing.onnx"], "--against nothing.onnx: no such file"),
        (["{whole}", "--against", "{whole}", "--format", "onnx"], "is one file"),
        (["{whole}", "--tolerance", "1"], "go with --against"),
        (["{ids}", "--against", "{ids}"], "takes int32 [4, 3, 1]: no rows can be drawn for it"),
        (["{external}", "--against", "{whole}"], "wants its data from '../w.bin', outside the model's folder"),
        (["{short}", "--against", "{whole}"], "not a whole ONNX model"),
    ],
)
def test_wrong_input_is_refused_in_words(
    arguments: list[str], said: str, files: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "ids.onnx").write_bytes(model(dtype=TensorProto.INT32))
    (tmp_path / "short.onnx").write_bytes(model()[:-9])
    outside = onnx.load_model_from_string(model())
    outside.graph.initializer[0].external_data.add(key="location", value="../w.bin")
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    (tmp_path / "external.onnx").write_bytes(outside.SerializeToString())
    names = {name: str(tmp_path / f"{name}.onnx") for name in ("ids", "short", "external")}
    result = call("verify", *(each.format(bundle=bundle, whole=files[0], **names) for each in arguments))
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_precision_of_a_file_alone_is_what_it_holds() -> None:
    assert precision_of(model()) == "fp32"
    half = onnx.load_model_from_string(model())
    half.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float16), "half"))
    assert precision_of(half.SerializeToString()) == "fp16"
    half.graph.node.append(helper.make_node("QuantizeLinear", ["active", "s"], ["q"]))
    assert precision_of(half.SerializeToString()) == "int8"
    half.graph.node.append(helper.make_node("BinaryConv", ["active"], ["b"], domain="edgefold"))
    assert precision_of(half.SerializeToString()) == "packed"
