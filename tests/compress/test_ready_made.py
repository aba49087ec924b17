"""Teachers that were trained elsewhere: an ONNX file, and a finished stage of another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.analysis.record import analyse_run
from compress.onnx_teacher import OnnxTeacher, raw_inputs, read_onnx
from compress.pipeline import plans_of
from compress.rows import Rows
from compress.stages import Settings, Stages
from export.graph import InputSignature, Normalization, Preprocess
from runtime.errors import BundleError, RecipeError

PIXELS, WIDTH, CLASSES = 64, 12, 10
HEAD = "name: taught\ndata: {source: digits, validation: 0}\ntrain: {epochs: 1, batch_size: 2000}\nstages:\n"
STUDENT = "  student: {model: {mlp: {hidden: [8]}}, subclasses: %d, teacher: %s, objective: %s}\n"


def weights(seed: int = 0, outputs: int = CLASSES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A hidden layer (64, 12), a classifier (K, 12) and its bias (K,)."""
    random = np.random.default_rng(seed)
    shapes = ((PIXELS, WIDTH), (outputs, WIDTH), (outputs,))
    hidden, classifier, bias = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return hidden, classifier, bias


def by_hand(x: torch.Tensor, seed: int = 0, outputs: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, classifier, bias = map(torch.from_numpy, weights(seed, outputs))
    embedding = (x.flatten(1) @ hidden).relu()
    return embedding @ classifier.T + bias, embedding


def write_teacher(
    path: Path,
    *,
    seed: int = 0,
    outputs: int = CLASSES,
    input: tuple[int, Sequence[int | str]] = (TensorProto.FLOAT, ("N", 1, 8, 8)),
    transposed: bool = True,
    embedding_is_output: bool = True,
) -> Path:
    """Write flatten → `embedding` → Gemm → `logits`; a uint8 input is cast and divided by 16, as digits are."""
    hidden, classifier, bias = weights(seed, outputs)
    dtype, axes = input
    start = "input" if dtype == TensorProto.FLOAT else "scaled"
    nodes = [
        helper.make_node("Flatten", [start], ["flat"]),
        helper.make_node("MatMul", ["flat", "hidden"], ["before"]),
        helper.make_node("Relu", ["before"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=int(transposed)),
    ]
    if dtype != TensorProto.FLOAT:
        cast = helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT)
        nodes = [cast, helper.make_node("Div", ["floats", "sixteen"], ["scaled"]), *nodes]
    out = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", outputs))]
    if embedding_is_output:
        out.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("N", WIDTH)))
    arrays = {
        "hidden": hidden,
        "weight": classifier if transposed else classifier.T,
        "bias": bias,
        "sixteen": np.float32([16]),
    }
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("input", dtype, list(axes))],
        out,
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`teacher.onnx` in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_teacher(Path("teacher.onnx"))


def recipe(teacher: str, objective: str = "[{mse: {reduction: mean}}]", subclasses: int = 1, before: str = "") -> Path:
    path = Path("recipe.yaml")
    path.write_text(HEAD + before + STUDENT % (subclasses, teacher, objective))
    return path


def trained(path: Path) -> Stages:
    (plan,) = plans_of(path, None)
    made = Stages(plan, Settings(Path("runs"), device="cpu"), lambda event: None)
    made.train()
    return made


def first_loss(stages: Stages, term: str) -> float:
    """Return the loss of the only batch, of the untrained student."""
    (record,) = stages.artifacts["student"].log()
    loss: float = record["losses"][term]
    return loss


def untrained_logits(stages: Stages) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the untrained student's logits of all training rows, and these rows preprocessed."""
    x = stages.preprocess(Rows(stages.dataset.train, torch.device("cpu")).inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        return stages.plan.stage("student").build_model()(x).logits, x


# An ONNX file


@pytest.mark.parametrize("embedding", ["", ", embedding: embedding"])
def test_a_student_learns_the_files_logits(teacher: Path, embedding: str) -> None:
    stages = trained(recipe(f"{{onnx: teacher.onnx{embedding}}}"))
    logits, x = untrained_logits(stages)
    expected = (logits - by_hand(x)[0]).square().mean()
    assert first_loss(stages, "mse") == pytest.approx(float(expected), rel=1e-4)
    assert stages.artifacts["student"].metrics["agreement_with_teacher"] is not None


def test_raw_input_is_the_images_as_they_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_teacher(Path("raw.onnx"), input=(TensorProto.UINT8, ("N", 8, 8, 1)))
    stages = trained(recipe("{onnx: raw.onnx, input: raw}"))
    logits, x = untrained_logits(stages)
    expected = (logits - by_hand(x)[0]).square().mean()
    assert first_loss(stages, "mse") == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_preprocessing_is_undone_exactly(layout: str) -> None:
    shape = (4, 16, 3) if layout == "NHWC" else (3, 4, 16)
    signature = InputSignature(shape, layout=layout)
    preprocess = Preprocess(signature, Normalization(1 / 255, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
    images = torch.randint(0, 256, (40, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images.flatten()[:256] = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(raw_inputs(preprocess(images), preprocess), images)


def test_an_embedding_on_the_way_to_the_output_is_found(tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "inner.onnx", embedding_is_output=False)
    file = read_onnx(path, logits="logits", embedding="embedding")
    preprocess = Preprocess(InputSignature((8, 8, 1)), Normalization(1 / 16, (0.0,), (1.0,)))
    x = torch.rand(5, 1, 8, 8)
    output = OnnxTeacher(file, preprocess, raw=False)(x.contiguous(memory_format=torch.channels_last))
    logits, embedding = by_hand(x)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.embedding, embedding)
    assert output.features == ()


@pytest.mark.parametrize("transposed", [True, False])
def test_its_last_layer_is_the_gemm_of_its_embedding(tmp_path: Path, transposed: bool) -> None:
    path = write_teacher(tmp_path / "teacher.onnx", transposed=transposed)
    file = read_onnx(path, logits="logits", embedding="embedding")
    assert file.classifier is not None
    _, classifier, bias = weights()
    np.testing.assert_array_equal(file.classifier[0].numpy(), classifier)
    np.testing.assert_array_equal(file.classifier[1].numpy(), bias)
    # Of what is not that node's input it is no classifier.
    assert read_onnx(path, logits="logits", embedding="before").classifier is None
    assert read_onnx(path, logits="logits", embedding=None).classifier is None


@pytest.mark.usefixtures("teacher")
def test_terms_read_its_embedding_and_its_last_layer() -> None:
    path = recipe("{onnx: teacher.onnx, embedding: embedding}", "[srrl, lelp, embedding]", subclasses=2)
    assert all(np.isfinite(first_loss(trained(path), term)) for term in ("srrl", "lelp", "embedding"))


def test_a_file_with_subclasses_teaches_them(teacher: Path) -> None:
    write_teacher(teacher, outputs=2 * CLASSES)
    stages = trained(recipe("{onnx: teacher.onnx, subclasses: 2}", subclasses=2))
    assert stages.plan.stage("student").heads.teacher_subclasses == 2
    logits, x = untrained_logits(stages)
    expected = (logits - by_hand(x, outputs=2 * CLASSES)[0]).square().mean()
    assert first_loss(stages, "mse") == pytest.approx(float(expected), rel=1e-4)


def test_a_stage_and_a_file_teach_together_and_the_analysis_compares_with_both(teacher: Path) -> None:
    before = "  a: {model: {mlp: {hidden: [8]}}, objective: ce}\n"
    stages = trained(recipe("[a, {onnx: teacher.onnx}]", before=before))
    logits, x = untrained_logits(stages)
    with torch.no_grad():
        taught = (stages.model("a")(x).logits + by_hand(x)[0]) / 2
    assert first_loss(stages, "mse") == pytest.approx(float((logits - taught).square().mean()), rel=1e-4)
    (record,) = analyse_run(stages, ["student"])["stages"].values()
    assert record["teacher"] == "a + teacher.onnx"


def test_the_analysis_knows_a_file_without_an_embedding(teacher: Path) -> None:
    (record,) = analyse_run(trained(recipe("{onnx: teacher.onnx}")), ["student"])["stages"].values()
    assert record["teacher"] == "teacher.onnx"
    assert record["test"]["values"]["teacher_kl"] > 0
    assert record["test"]["missing"]["embedding_distance"].startswith("the teacher gives no embedding")


def key_of(path: Path) -> str:
    return plans_of(path, None)[0].stage("student").key


def test_content_and_options_are_in_the_key_and_the_path_is_not(teacher: Path) -> None:
    key = key_of(recipe("{onnx: teacher.onnx}"))
    Path("elsewhere").mkdir()
    shutil.copy(teacher, "elsewhere/another.onnx")
    assert key_of(recipe("{onnx: elsewhere/another.onnx, logits: logits, input: preprocessed}")) == key
    others = {key_of(recipe("{onnx: teacher.onnx, embedding: embedding}"))}
    write_teacher(teacher, seed=1)
    others.add(key_of(recipe("{onnx: teacher.onnx}")))
    assert len({key, *others}) == 3


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{onnx: none.onnx}", "line 5: stages.student.teacher: none.onnx: cannot be read: No such file"),
        ("{onnx: teacher.onnx, logits: logit}", r"has no tensor 'logit'\n +Did you mean 'logits'\?"),
        ("{onnx: teacher.onnx, embedding: flta}", "has no tensor 'flta'"),
        ("{onnx: teacher.onnx, embedding: input}", "has no tensor 'input'"),
        (
            "{onnx: teacher.onnx, subclasses: 2}",
            "'logits' of teacher.onnx is 10 wide, and 10 classes × 2 sub.* need 20",
        ),
        ("{onnx: teacher.onnx, input: raw}", r"takes tensor\(float\) \[N, 1, 8, 8\], and the data is tensor\(uint8\)"),
        ("{onnx: teacher.onnx, logit: x}", r"teacher.onnx.logit: unknown key|teacher.logit: unknown key"),
        ("{onyx: teacher.onnx}", r"expected an earlier stage, \{artifact: path\} or \{onnx: path, logits: name\}"),
        ("5", r"expected an earlier stage, \{artifact: path\}"),
        ("[{onnx: teacher.onnx}, {onnx: teacher.onnx}]", "a teacher stands twice"),
    ],
)
@pytest.mark.usefixtures("teacher")
def test_what_is_wrong_with_a_file_stands_at_its_line(written: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        plans_of(recipe(written), None)
    assert "line 5" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "objective", "message"),
    [
        ("", "embedding", "embedding reads the teacher's embedding, and teacher.onnx gives logits\n +Name the tensor"),
        ("", "lelp", "lelp reads the teacher's classifier and embedding, and teacher.onnx gives logits"),
        ("", "[kl, at]", r"objective\[1\]: at reads the teacher's features, and teacher.onnx gives logits\n +Feature"),
        (
            ", embedding: before",
            "srrl",
            "srrl reads the teacher's classifier, and .*\n +It is there where the logits are",
        ),
        (", embedding: embedding", "{srrl: {position: stage1}}", "srrl reads the teacher's features, and"),
    ],
)
@pytest.mark.usefixtures("teacher")
def test_what_a_file_does_not_give_is_said_before_training(options: str, objective: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plans_of(recipe(f"{{onnx: teacher.onnx{options}}}", objective, subclasses=2), None)


def test_files_that_no_batch_can_be_given_to_are_refused(tmp_path: Path) -> None:
    fixed = write_teacher(tmp_path / "fixed.onnx", input=(TensorProto.FLOAT, (1, 1, 8, 8)))
    with pytest.raises(RecipeError, match="takes batches of 1 alone"):
        read_onnx(fixed, logits="logits", embedding=None)
    (tmp_path / "broken.onnx").write_bytes(fixed.read_bytes()[:-9])
    with pytest.raises(BundleError, match="not a whole ONNX model"):
        read_onnx(tmp_path / "broken.onnx", logits="logits", embedding=None)
    with pytest.raises(RecipeError, match=r"'flat' is tensor\(float\)|'bias' is|has no tensor"):
        read_onnx(fixed, logits="bias", embedding=None)
    outside = onnx.load(fixed)
    outside.graph.initializer[0].ClearField("raw_data")
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    outside.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    (tmp_path / "outside.onnx").write_bytes(outside.SerializeToString())
    with pytest.raises(BundleError, match=r"wants its data from 'weights\.bin'"):
        read_onnx(tmp_path / "outside.onnx", logits="logits", embedding=None)


# A finished stage


@pytest.fixture
def finished_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stage of an earlier run, in the working folder."""
    monkeypatch.chdir(tmp_path)
    before = "  teacher: {model: {small_cnn: {widths: [4, 6]}}, subclasses: 2, objective: ce}\n"
    path = Path("recipe.yaml")
    path.write_text(HEAD + before)
    (plan,) = plans_of(path, None)
    stages = Stages(plan, Settings(Path("earlier"), device="cpu"), lambda event: None)
    stages.train()
    shutil.copytree(stages.artifacts["teacher"].folder, "given")
    return Path("given")


@pytest.mark.parametrize("path", ["given", "given/weights.safetensors", "given/other.safetensors"])
def test_a_stage_of_another_run_teaches_as_a_stage_of_this_one_does(finished_teacher: Path, path: str) -> None:
    (finished_teacher / "log.jsonl").unlink()
    shutil.copy(finished_teacher / "weights.safetensors", finished_teacher / "other.safetensors")
    objective = "[kl, {at: {weight: 0.1}}, srrl]"
    model = "  student: {model: {small_cnn: {widths: [3, 5]}}, teacher: %s, objective: %s}\n"
    before = "  teacher: {model: {small_cnn: {widths: [4, 6]}}, subclasses: 2, objective: ce}\n"
    Path("recipe.yaml").write_text(HEAD + before + model % ("teacher", objective))
    within = trained(Path("recipe.yaml"))
    Path("recipe.yaml").write_text(HEAD + model % (f"{{artifact: {path}}}", objective))
    alone = trained(Path("recipe.yaml"))
    assert alone.artifacts["student"].metrics == within.artifacts["student"].metrics
    mine, theirs = alone.artifacts["student"].weights(), within.artifacts["student"].weights()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert alone.plan.stage("student").heads == within.plan.stage("student").heads


def test_the_weights_of_a_stage_are_in_the_key_and_its_path_is_not(finished_teacher: Path) -> None:
    key = key_of(recipe("{artifact: given}", "kl"))
    shutil.move(finished_teacher, "moved")
    assert key_of(recipe("{artifact: moved/weights.safetensors}", "kl")) == key
    (plan,) = plans_of(Path("recipe.yaml"), None)
    (identity,) = plan.stage("student").resolved["parents"]["teachers"]
    assert identity["artifact"] == json.loads(Path("moved/stage.json").read_text())["sha256"]["weights.safetensors"]
    assert "moved" not in json.dumps(identity)


def changed_record(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from compress.artifact import _record_hash

    record = json.loads((folder / "stage.json").read_text())
    change(record)
    record["record_sha256"] = _record_hash(record)
    (folder / "stage.json").write_text(json.dumps(record))


def test_a_stage_that_does_not_fit_is_refused_with_the_reason(finished_teacher: Path) -> None:
    def refused(message: str, teacher: str = "{artifact: given}", data: str = "source: digits") -> None:
        path = recipe(teacher, "kl")
        path.write_text(path.read_text().replace("source: digits", data))
        with pytest.raises(RecipeError, match=message):
            plans_of(path, None)

    refused("none: stage.json cannot be read: No such file", "{artifact: none}")
    refused("has 10 classes, and the data 2", data="source: digits, relabel: {modulo: 2}")
    refused("was trained with normalize: dataset, and this is unit", data="source: digits, normalize: unit")
    changed_record(finished_teacher, lambda record: record["resolved"].update(subclasses=3))
    refused(r"is for other inputs: classifier.weight is \(20, 6\), and images of 8×8×1 need \(30, 6\)")
    changed_record(finished_teacher, lambda record: record["resolved"].update(model={"cnn_of_tomorrow": {}}))
    refused("its stage.json is of another version")
    with (finished_teacher / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    refused("weights.safetensors is not what stage.json says")
    (finished_teacher / "stage.json").write_text("{}")
    refused("stage.json cannot be read")
