"""`inspect` of files of every kind: what is shown, what is compared, and what is refused."""

from __future__ import annotations

import hashlib
import json

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.__main__ import main
from runtime.errors import BundleError
from runtime.onnx_signature import Value
from runtime.onnx_summary import summary_from_bytes

RECIPE = "name: tiny\nstages: {student: {model: mlp}}\n"


@pytest.fixture
def described(build_model):
    """The bytes of the tiny model, which carry a recipe."""
    model = build_model()
    model.metadata_props.add(key="edgefold.recipe", value=RECIPE)
    return model.SerializeToString()


def test_the_summary_is_what_onnx_says(build_model, weights):
    model = build_model(outputs=("logits", "again"))
    model.graph.node.append(helper.make_node("BinaryConv", ["cast"], ["b"], domain="edgefold"))
    model.graph.initializer.append(numpy_helper.from_array(weights[0].astype("float16"), "half"))
    packed = onnx.TensorProto(name="scalar", data_type=TensorProto.INT64, int64_data=[3])
    model.graph.initializer.append(packed)
    summary = summary_from_bytes(model.SerializeToString(), "m.onnx")
    assert summary.inputs == (Value("input", "tensor", "uint8", ("N", 4, 3, 1)),)
    assert summary.outputs == tuple(Value(name, "tensor", "float32", ("N", 3)) for name in ("logits", "again"))
    assert summary.operators == {"Gemm": 2, "Cast": 1, "Flatten": 1, "edgefold.BinaryConv": 1}
    assert summary.weights == {"float32": 12 * 3 + 3, "float16": 12 * 3, "int64": 1}
    model.graph.input.add(name="weight")  # as up to IR 3, where weights are inputs too
    assert summary_from_bytes(model.SerializeToString(), "m.onnx").inputs == summary.inputs


def test_sizes_are_read_packed_and_one_by_one():
    """protobuf allows both for dims; proto2, as ONNX is, writes one by one."""
    name = b"\x42\x01w"
    for dims in (b"\x08\x80\x02\x08\x03", b"\x0a\x03\x80\x02\x03"):  # 256, 3
        tensor = dims + b"\x10\x01" + name
        graph = b"\x2a" + bytes([len(tensor)]) + tensor
        data = b"\x08\x0a" + b"\x3a" + bytes([len(graph)]) + graph
        assert summary_from_bytes(data, "m.onnx").weights == {"float32": 768}


def test_a_cut_model_is_refused(build_model):
    with pytest.raises(BundleError, match=r"m\.onnx: not a whole ONNX model"):
        summary_from_bytes(build_model().SerializeToString()[:-7], "m.onnx")


def test_a_bundle_shows_its_models_and_recipe_once(write_bundle, tmp_path, described, capsys):
    folder = write_bundle(tmp_path / "b", model=described)
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    for text in (
        "bundle tiny (stage student)",
        "onnx: model.onnx, fp32,",
        "operators 3: 1 Cast, 1 Flatten, 1 Gemm",
    ):
        assert text in " ".join(out.split())
    assert out.endswith("recipe:\n  name: tiny\n  stages: {student: {model: mlp}}\n")
    assert "edgefold.recipe" not in out
    assert main(["inspect", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"] == RECIPE
    assert document["onnx"]["onnx"]["sha256"] == hashlib.sha256(described).hexdigest()


def test_a_file_of_a_bundle_is_known_by_its_format(write_bundle, tmp_path, described, capsys):
    folder = write_bundle(tmp_path / "b", model=described)
    assert main(["inspect", str(folder / "model.onnx")]) == 0
    out = capsys.readouterr().out
    for text in (
        "tiny (stage student)",
        "format onnx",
        "test accuracy 0.9",
        "input input uint8 [N, 4, 3, 1]",
    ):
        assert text in " ".join(out.split())
    (folder / "model.onnx").write_bytes(
        described + b"\x72\x00"
    )  # another metadata entry: whole, but not what was exported
    assert main(["inspect", str(folder / "model.onnx")]) == 2
    assert "model.onnx is altered or damaged" in capsys.readouterr().err


def test_a_file_alone_is_shown_too(tmp_path, described, capsys):
    (tmp_path / "mine.onnx").write_bytes(described)
    assert main(["inspect", str(tmp_path / "mine.onnx"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "bundle" not in document
    assert document["onnx"]["mine.onnx"]["operators"] == {"Cast": 1, "Flatten": 1, "Gemm": 1}


@pytest.fixture
def engine(write_bundle, tmp_path, described):
    """A bundle with an engine beside its model that was built of it."""
    folder = write_bundle(tmp_path / "b", model=described)
    plan = folder.parent / "model.sm86.engine"
    plan.write_bytes(b"plan")
    (folder.parent / "model.onnx").write_bytes(described)
    description = {
        "kind": "tensorrt engine", "format_version": 1, "plan_sha256": hashlib.sha256(b"plan").hexdigest(),
        "onnx_sha256": hashlib.sha256(described).hexdigest(), "onnx_file": "model.onnx", "module": "tensorrt_rtx",
        "version": "1.7", "compute_capability": "sm86", "device": None,
        "inputs": [{"name": "input", "dtype": "uint8", "shape": [-1, 4, 3, 1]}], "outputs": [],
        "profiles": [{end: {"input": [8, 4, 3, 1]} for end in ("least", "best", "most")}],
        "layers": [
            {"name": "a", "kind": "correlation", "inputs": ["Int8", "Int8"], "outputs": ["Float"]},
            {"name": "b", "kind": "gemm", "inputs": ["Float"], "outputs": ["Float"]},
        ],
    }  # fmt: skip
    plan.with_name("model.sm86.engine.json").write_text(json.dumps(description))
    return plan


def test_an_engine_is_told_by_its_description(engine, capsys):
    for name in (engine, engine.with_name("model.sm86.engine.json")):
        assert main(["inspect", str(name)]) == 0
        out = capsys.readouterr().out
        for text in ("tensorrt_rtx 1.7", "sm86", "2: 1 correlation, 1 gemm", "Int8 in 1, Float in 1", "name: tiny"):
            assert text in out


def test_an_engine_that_is_another_one_is_refused(engine, capsys):
    engine.write_bytes(b"other")
    assert main(["inspect", str(engine)]) == 2
    assert "its sha256 is not the one in model.sm86.engine.json" in capsys.readouterr().err
    engine.unlink()
    assert main(["inspect", str(engine.with_name("model.sm86.engine.json"))]) == 2
    assert "is missing, and model.sm86.engine.json describes it" in capsys.readouterr().err


def test_a_stage_is_told_by_its_record(tmp_path, capsys):
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    record = {
        "key": "ab" * 32,
        "resolved": {"model": {"mlp": {"hidden": [8]}}, "classes": 3, "subclasses": 2, "seed": 4, "parents": {}},
        "metrics": {"test": {"accuracy": 0.75, "total": 1000}},
        "versions": {"torch": "2.13"},
        "sha256": {"weights.safetensors": hashlib.sha256(b"weights").hexdigest()},
    }
    (tmp_path / "stage.json").write_text(json.dumps(record))
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for text in (
        "ab" * 32,
        '{"mlp": {"hidden": [8]}}',
        "3 classes, 2 subclasses each",
        "75.00 % of 1,000 rows",
        "torch 2.13",
    ):
        assert text in out
    (tmp_path / "weights.safetensors").write_bytes(b"other")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "weights.safetensors is altered or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.onnx", None, "does not exist"),
        ("text.onnx", b"hello", "not a whole ONNX model"),
        ("note.json", b"{}", "no description of an engine"),
        ("note.json", b"[]", "expected an object"),
        ("note.json", b"{", "not JSON"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, capsys, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
