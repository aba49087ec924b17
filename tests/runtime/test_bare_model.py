"""ONNX classifiers without a bundle: run as they are, and one clear message for what cannot be."""

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import measure
from runtime.__main__ import main
from runtime.bare_model import open_model, shape_from_text
from runtime.bundle import open_bundle
from runtime.errors import BundleError, DataError, UsageError
from runtime.onnx_signature import signature_from_bytes
from runtime.runners import open_runner
from runtime.runners.choice import EngineChoice

FLOAT = TensorProto.FLOAT
WEIGHT = np.arange(24, dtype=np.float32).reshape(12, 2) / 10  # (3*2*2, C)


@pytest.fixture(autouse=True)
def _tiny_plans(monkeypatch):
    plan = measure.BenchPlan(quick=True, seconds=0.01, calls=20, warm_up_seconds=0.01, warm_up_most_seconds=0.05)
    monkeypatch.setattr(measure, "QUICK", plan)
    monkeypatch.setattr(measure, "FULL", measure.BenchPlan(**{**vars(plan), "quick": False}))


def flat_classifier(axes=("N", 3, 2, 2), classes=2, *, softmax=False, batch="N", opsets=(("", 17),)):
    """Images (N, 3, 2, 2) in float32 -> Flatten -> MatMul -> scores (N, 2), or their softmax."""
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["z"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["scores"]))
    else:
        nodes.append(helper.make_node("Identity", ["z"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("image", FLOAT, axes)],
        [helper.make_tensor_value_info("scores", FLOAT, None if classes is None else [batch, classes])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*each) for each in opsets], ir_version=8)


@pytest.fixture
def save(tmp_path):
    def write(model, name="mine.onnx"):
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


@pytest.fixture
def rows(tmp_path):
    """An .npz of 7 labelled rows, of which the model gets the first 5 right; its path and its inputs."""
    inputs = np.random.default_rng(0).normal(size=(7, 3, 2, 2)).astype(np.float32)
    labels = (inputs.reshape(7, 12) @ WEIGHT).argmax(axis=1)
    labels[5:] = 1 - labels[5:]
    path = tmp_path / "rows.npz"
    np.savez(path, inputs=inputs, labels=labels, row_ids=np.arange(7))
    return path, inputs


def test_what_the_graph_says_stands_in_for_a_manifest(save):
    path = save(flat_classifier())
    model = open_model(path)
    assert (model.name, model.classes, model.class_names) == ("mine.onnx", 2, ("0", "1"))
    assert (model.input.name, model.input.dtype, model.input.shape) == ("image", "float32", (3, 2, 2))
    assert (model.outputs[0].name, model.fixed_batch, model.gives) == ("scores", None, "logits")
    assert (model.formats["onnx"].precision, model.formats["onnx"].opset) == ("fp32", 17)
    samples = model.samples()
    assert samples.inputs.shape == (64, 3, 2, 2)
    assert 0.8 < samples.inputs.std() < 1.2
    np.testing.assert_array_equal(samples.inputs, open_model(path).samples().inputs)
    with open_runner(model) as runner:
        logits = runner.infer(samples.inputs)
    np.testing.assert_allclose(logits, samples.inputs.reshape(64, 12) @ WEIGHT, rtol=1e-5, atol=1e-5)


def test_softmax_is_told_from_logits(save):
    assert open_model(save(flat_classifier(softmax=True))).gives == "probabilities"


def test_bench_needs_nothing_but_the_file(save, capsys):
    path = save(flat_classifier())
    assert main(["bench", str(path), "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bundle"] is None
    assert document["model"] == {"file": "mine.onnx", "sha256": open_model(path).checksum, "gives": "logits"}
    assert any(note.startswith("inputs are made up: normal noise") for note in document["notes"])
    assert not any("verified" in note for note in document["notes"])


def test_bench_with_rows_of_ones_own(save, rows, capsys):
    path = save(flat_classifier())
    assert main(["bench", str(path), "--quick", "--json", "--data", str(rows[0])]) == 0
    assert not any("made up" in note for note in json.loads(capsys.readouterr().out)["notes"])
    other = save(flat_classifier(("N", 3, 1, 4)), "other.onnx")
    assert main(["bench", str(other), "--quick", "--data", str(rows[0])]) == 2
    assert "inputs has shape [7, 3, 2, 2], expected [N, 3, 1, 4]" in capsys.readouterr().err


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_accuracy_counts_each_row_once_whatever_the_batch(save, rows, capsys, batch):
    path = save(flat_classifier((batch, 3, 2, 2), batch=batch))
    assert main(["accuracy", str(path), "--data", str(rows[0]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["correct"], document["total"]) == (5, 7)
    assert document["batch"] == (256 if batch == "N" else batch)
    assert document["bundle"] is None
    assert main(["accuracy", str(path)]) == 2
    assert "has no labelled rows\nGive them: --data ROWS.npz" in capsys.readouterr().err


def test_a_batch_that_the_model_does_not_take(save, capsys):
    path = save(flat_classifier((4, 3, 2, 2), batch=4))
    assert open_model(path).fixed_batch == 4
    assert main(["bench", str(path), "--quick"]) == 2
    assert "1 rows at once, and the model takes exactly 4\nRun it with --batch 4" in capsys.readouterr().err
    assert main(["bench", str(path), "--quick", "--batch", "4"]) == 0
    with open_runner(open_model(path)) as runner, pytest.raises(DataError, match="takes exactly 4"):
        runner.infer(np.zeros((3, 3, 2, 2), np.float32))


def test_another_engine_runs_it_too(save):
    pytest.importorskip("openvino", reason="pip install 'edgefold[openvino]'")
    for axes, batch in ((("N", 3, 2, 2), "N"), ((2, 3, 2, 2), 2), (("N", 3, "H", "W"), "N")):
        shapes = {"image": (None, 3, 2, 2)}
        model = open_model(save(flat_classifier(axes, batch=batch)), shapes)
        inputs = model.samples().inputs[:2]
        with open_runner(model, choice=EngineChoice("openvino")) as runner:
            np.testing.assert_allclose(runner.infer(inputs), inputs.reshape(2, 12) @ WEIGHT, rtol=1e-4, atol=1e-5)


def test_sizes_that_the_file_leaves_open_are_given(save, capsys):
    path = save(flat_classifier(("N", 3, "height", None)))
    assert main(["bench", str(path)]) == 2
    error = capsys.readouterr().err
    assert "'image', float32 [N, 3, height, ?] leaves sizes open besides the batch" in error
    assert "--shape image=1x3x?x?, with numbers for each ?" in error
    assert main(["bench", str(path), "--quick", "--batch", "2", "--shape", "image=1x3x2x2"]) == 0
    assert open_model(path, {"image": (None, 3, 2, 2)}).fixed_batch is None
    unknown = save(flat_classifier(None), "unknown.onnx")
    with pytest.raises(UsageError, match="of unknown shape leaves sizes open") as caught:
        open_model(unknown)
    assert caught.value.remedy == "Give those that the model is for: --shape image=1x...."
    assert open_model(unknown, {"image": (1, 3, 2, 2)}).input.shape == (3, 2, 2)
    scores = save(flat_classifier(classes=None), "scores.onnx")
    with pytest.raises(UsageError, match="does not say of what shape its output 'scores' is") as caught:
        open_model(scores)
    assert "--shape scores=1x10" in caught.value.remedy
    assert open_model(scores, {"scores": (1, 2)}).classes == 2


def test_sizes_that_contradict_the_file(save, capsys):
    path = save(flat_classifier())
    cases = {
        "image=1x3x4x4": "--shape image=1x3x4x4, and the model has 'image', float32 [N, 3, 2, 2]",
        "image=3x2": "--shape image=3x2, and the model has",
        "picture=1x3x2x2": "--shape names 'picture'; the model has image, scores",
        "image=1x3xNx2": "expected NAME=SIZExSIZE..., as in input=1x3x224x224",
        "image": "expected NAME=SIZExSIZE",
        "image=0x3": "expected NAME=SIZExSIZE",
    }
    for shape, message in cases.items():
        assert main(["bench", str(path), "--shape", shape]) == 2
        assert message in capsys.readouterr().err
    assert shape_from_text("a=b=Nx3x2") == ("a=b", (None, 3, 2))


def test_shape_is_not_for_bundles(bundle_folder, capsys):
    assert main(["bench", str(bundle_folder), "--shape", "input=1x4x3x1"]) == 2
    assert "--shape is for an ONNX file" in capsys.readouterr().err


def test_a_file_of_a_bundle_gives_what_the_bundle_gives(bundle_folder, samples, capsys):
    model = open_model(bundle_folder / "model.onnx")
    with open_runner(model) as runner, open_runner(open_bundle(bundle_folder)) as other:
        np.testing.assert_array_equal(runner.infer(samples["inputs"]), other.infer(samples["inputs"]))
    made_up = model.samples().inputs
    assert (made_up.dtype, made_up.min(), made_up.max()) == (np.uint8, 0, 255)
    assert model.notes(made_up=True)[0].startswith("inputs are made up: whole numbers from 0 to 255")


# What is no classifier, or no ONNX


def graph_of(inputs, outputs, nodes=None):
    nodes = nodes or [helper.make_node("Identity", [inputs[0].name], [outputs[0].name])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


TENSOR = helper.make_tensor_value_info
SCORES = TENSOR("scores", FLOAT, ["N", 2])
PROBABILITIES = helper.make_value_info(
    "probabilities",
    helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    ),
)
IDS = TENSOR("ids", TensorProto.INT64, ["N", 8])


@pytest.mark.parametrize(
    ("model", "message", "remedy"),
    [
        (
            graph_of([TENSOR("text", TensorProto.STRING, ["N", 1])], [SCORES]),
            r"its input is 'text', string \[N, 1\]; expected a tensor of uint8, int8",
            "with ids as input",
        ),
        (graph_of([TENSOR("x", TensorProto.BOOL, ["N", 2])], [SCORES]), r"its input is 'x', bool \[N, 2\]", ""),
        (
            graph_of([IDS, TENSOR("mask", TensorProto.INT64, ["N", 8])], [SCORES]),
            r"2 inputs \('ids', int64 \[N, 8\]; 'mask', int64 \[N, 8\]\), expected one",
            "",
        ),
        (
            graph_of([TENSOR("x", FLOAT, ["N", 4])], [TENSOR("label", TensorProto.INT64, ["N"]), PROBABILITIES]),
            r"no output is class scores, float \[N, C\]; it has 'label', int64 \[N\]; 'probabilities', a sequence",
            "zipmap=False",
        ),
        (
            graph_of([TENSOR("x", FLOAT, ["N", 4])], [TENSOR("boxes", FLOAT, ["N", 100, 4])]),
            r"it has 'boxes', float32 \[N, 100, 4\]",
            "Only classifiers with one label a row",
        ),
        (graph_of([TENSOR("x", FLOAT, ["N", 4])], [TENSOR("scores", FLOAT, ["N", "C"])]), "leaves sizes open", "=1x?,"),
        (
            graph_of([PROBABILITIES], [SCORES]),
            "its input is 'probabilities', a sequence; expected a tensor",
            "",
        ),
    ],
)  # fmt: skip
def test_what_is_no_classifier_says_what_it_is(save, capsys, model, message, remedy):
    path = save(model)
    with pytest.raises(UsageError, match=message) as caught:
        open_model(path)
    assert remedy in caught.value.remedy
    assert main(["bench", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {path}: ")


def test_label_beside_the_scores_is_passed_over(save):
    path = save(graph_of([TENSOR("x", FLOAT, ["N", 2])], [TENSOR("label", TensorProto.INT64, ["N"]), SCORES]))
    assert open_model(path).outputs[0].name == "scores"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ONNX model but an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (b"PK\x03\x04" + bytes(40), "a zip archive: PyTorch weights"),
        (b"\x20\x00\x00\x00TFL3" + bytes(40), "a TensorFlow Lite model"),
        (b"<!DOCTYPE html>", "a page or an XML file"),
        (b"\x80\x04K\x01.", "a pickle"),
        (b"just some words", "not a whole ONNX model"),
    ],
)
def test_what_is_no_onnx_says_what_it_may_be(save, capsys, content, message):
    for verb in ("bench", "accuracy"):
        assert main([verb, str(save(content))]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""


def test_truncated_at_any_byte_is_one_message(save):
    data = flat_classifier().SerializeToString()
    for length in range(1, len(data)):
        with pytest.raises((BundleError, UsageError)):  # a cut between two fields may leave a whole message
            open_model(save(data[:length]))


def test_missing_file_and_size_limit(save, tmp_path, capsys):
    assert main(["bench", str(tmp_path / "absent.onnx")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
    path = save(flat_classifier())
    os.truncate(path, (1 << 20) + 1)  # sparse: nothing is written, and nothing read
    assert main(["bench", str(path), "--max-size", "1"]) == 2
    assert "1,048,577 bytes, allowed 1,048,576\nAllow more with --max-size." in capsys.readouterr().err
    os.truncate(path, (1 << 31) + 1)
    assert main(["bench", str(path)]) == 2
    assert "An ONNX file cannot hold more than 2 GiB" in capsys.readouterr().err


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "beside.bin"])
def test_external_data_never_reaches_the_engine(save, tmp_path, capsys, location):
    model = flat_classifier()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    (tmp_path / "beside.bin").write_bytes(bytes(96))
    assert main(["bench", str(save(model))]) == 2
    error = capsys.readouterr().err
    assert f"tensor 'weight' wants its data from {location!r}" in error
    assert "expected its weights inside the file\nSave the model again without external data" in error


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("ai.onnx.contrib", "onnxruntime-extensions"),
        ("qonnx.custom_op.general", "QONNX is for FPGA tools"),
        ("my.company", "no engine here has operators of that domain"),
    ],
)
def test_operators_of_others_are_named_with_their_owner(save, capsys, domain, message):
    model = flat_classifier(opsets=(("", 17), (domain, 1)))
    model.graph.node[2].domain, model.graph.node[2].op_type = domain, "Special"
    assert main(["bench", str(save(model))]) == 2
    error = capsys.readouterr().err
    assert f"it needs Special of domain {domain!r}: " in error
    assert message in error


def test_functions_of_the_file_are_no_strangers(save):
    model = flat_classifier(opsets=(("", 17), ("own", 1)))
    model.graph.node[2].domain, model.graph.node[2].op_type = "own", "Same"
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Same", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    opened = open_model(save(model))
    with open_runner(opened) as runner:
        assert runner.infer(opened.samples().inputs).shape == (64, 2)


def test_unsigned_quantisers_run_with_a_note(save, capsys):
    model = flat_classifier()
    quantised = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
    ]
    nodes = [*quantised, *model.graph.node]
    nodes[2].input[0] = "dq"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(128), "zero"))
    assert main(["bench", str(save(model)), "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["precision"] == "quantised"
    assert document["notes"][0] == "2 quantisers are uint8, which TensorRT would take for int8 and clip"


def test_weights_that_are_inputs_as_well_are_no_inputs(save):
    model = flat_classifier()
    model.ir_version = 3
    model.graph.input.append(TENSOR("weight", FLOAT, [12, 2]))
    assert open_model(save(model)).input.name == "image"
    signature = signature_from_bytes(model.SerializeToString(), "x")
    assert [each.name for each in signature.inputs] == ["image"]
    assert signature.weights == {"float32": 24}
    assert signature.outputs[0].axes == ("N", 2)


def test_file_that_changes_in_between_is_not_run(save):
    path = save(flat_classifier())
    model = open_model(path)
    path.write_bytes(flat_classifier(softmax=True).SerializeToString())
    with pytest.raises(BundleError, match="was changed while it was read"):
        open_runner(model)
