"""`edgefold export --weights`: a student from elsewhere as a bundle, and what is said of weights that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.cli import main as edgefold
from compress.models import MODELS
from compress.models.base import Classifier
from compress.ready_arguments import kind_from
from compress.ready_student import _MODEL
from compress.ready_weights import load_into, read_weights
from export.fold import fold_logits
from export.graph import InputSignature
from runtime.bundle import open_bundle
from runtime.errors import DataError
from runtime.files import sha256_of_file
from runtime.runners import open_runner

MODEL = "small_cnn: {widths: [4, 8]}"
CLASSES, SUBCLASSES, ROWS = 3, 2, 320
FORMATS = "onnx, {int8: {rows: 64, method: minmax, gate: {metric_drop_points: 10, top1_agreement: 0.9}}}"
MEAN, STD = (0.25, 0.5), (0.5, 0.75)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


def trained() -> Classifier:
    """A model with running statistics of its own, for raw images of 8×8 with two channels, channels first."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        signature = InputSignature((2, 8, 8), layout="NCHW")
        model = MODELS["small_cnn"](widths=(4, 8)).build(signature=signature, outputs=CLASSES * SUBCLASSES)
        model.train()
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(64, 2, 8, 8))
    return model.eval()


def expected_logits(model: Classifier, images: np.ndarray) -> np.ndarray:
    """Logits by the definition: pixels to 0 – 1, minus mean, over deviation, model, fold."""
    mean, std = (torch.tensor(each).reshape(1, 2, 1, 1) for each in (MEAN, STD))
    with torch.no_grad():
        return fold_logits(model((torch.from_numpy(images) / 255 - mean) / std).logits, SUBCLASSES).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, labels and rows, of which nine in ten are labelled as the model says."""
    folder = tmp_path_factory.mktemp("ready")
    model = trained()
    save_file(model.state_dict(), folder / "student.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 2, 8, 8), dtype=np.uint8)
    labels = expected_logits(model, images).argmax(1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    np.savez(folder / "rows.npz", inputs=images, labels=labels.astype(np.uint8))
    (folder / "labels.txt").write_text("ant\nbee\ncat\n")
    return folder


def arguments(folder: Path, **changes: object) -> list[object]:
    options = {
        "weights": folder / "student.safetensors", "model": MODEL, "input": "2x8x8", "layout": "NCHW",
        "mean": "0.25,0.5", "std": "0.5,0.75", "labels": folder / "labels.txt", "subclasses": SUBCLASSES,
        "data": folder / "rows.npz", "batch-sizes": "1,8", "output": folder / "bundle", **changes,
    }  # fmt: skip
    given = [(f"--{name}", value) for name, value in options.items() if value is not None]
    return ["export", *(each for pair in given for each in pair)]


@pytest.fixture(scope="module")
def exported(folder: Path) -> Result:
    return call(*arguments(folder, formats=FORMATS), "--json")


def test_every_form_is_proven(folder: Path, exported: Result) -> None:
    assert exported.exit_code == 0, exported.output
    document = json.loads(exported.stdout)
    assert [(form["format"], form["rows"], form["passed"]) for form in document["formats"]] == [
        ("onnx", ROWS // 2, True), ("int8", ROWS // 2, True),
    ]  # fmt: skip
    # What calibrates is not what verifies.
    assert "int8: 160 rows of --data calibrate, the other 160 verify" in exported.stderr
    assert all(form["comparison"]["reference_accuracy"] == pytest.approx(0.9, abs=0.05) for form in document["formats"])
    assert call("verify", folder / "bundle").exit_code == 0


def test_the_bundle_is_the_model_with_its_own_scaling(folder: Path, exported: Result) -> None:
    bundle = open_bundle(folder / "bundle")
    assert (bundle.name, bundle.class_names, bundle.subclasses) == ("student", ("ant", "bee", "cat"), SUBCLASSES)
    assert (bundle.input.shape, bundle.input.layout, bundle.batch_sizes) == ((2, 8, 8), "NCHW", (1, 8))
    samples = bundle.samples()
    np.testing.assert_allclose(samples.logits, expected_logits(trained(), samples.inputs), atol=1e-5)
    with open_runner(bundle) as runner:
        np.testing.assert_allclose(runner.infer(samples.inputs), samples.logits, atol=1e-5)
    # Rows without ids are known by their position, which halving does not change.
    images = np.load(folder / "rows.npz")["inputs"]
    np.testing.assert_array_equal(images[samples.row_ids], samples.inputs)


def test_it_is_exported_for_an_older_engine_too(folder: Path, exported: Result, tmp_path: Path) -> None:
    result = call(*arguments(folder, formats="onnx, fp16", opset=15, output=tmp_path / "older"), "--json")
    assert result.exit_code == 0, result.output
    assert all(form["passed"] for form in json.loads(result.stdout)["formats"])
    older, newer = open_bundle(tmp_path / "older"), open_bundle(folder / "bundle")
    assert {(form.opset, form.ir_version) for form in older.formats.values()} == {(15, 8)}
    assert {(form.opset, form.ir_version) for form in newer.formats.values()} == {(20, 10)}
    assert older.recipe_key != newer.recipe_key
    result = call(*arguments(folder, formats="onnx, bf16", opset=17, output=tmp_path / "none"))
    assert (result.exit_code, (tmp_path / "none").exists()) == (2, False)
    assert "--opset: came 17, but bf16 needs 22 at least" in result.stderr


def test_the_card_says_what_came_and_how_good_it_is(folder: Path, exported: Result) -> None:
    card = (folder / "bundle" / "MODEL_CARD.md").read_text()
    samples = open_bundle(folder / "bundle").samples()
    correct = int((expected_logits(trained(), samples.inputs).argmax(1) == samples.labels).sum())
    assert card.startswith("# student\n\nTrained elsewhere")
    assert "| task | 3 classes: ant, bee, cat |" in card
    assert f"| accuracy, 95 % interval | {100 * correct / (ROWS // 2):.2f} % (" in card
    assert re.search(r"\| subclasses \| 2 for each class", card)
    assert f"| size | {sum(each.numel() for each in trained().parameters()):,} parameters, " in card
    assert [line.split(" | ")[0] for line in card.split("## Files")[1].split("##")[0].strip().splitlines()[2:4]] == [
        "| onnx",
        "| int8",
    ]
    assert f"sha256: {sha256_of_file(folder / 'student.safetensors')}" in card


def test_a_torch_state_dict_gives_the_same(folder: Path, tmp_path: Path) -> None:
    state = trained().state_dict()
    for name, value in (
        ("plain", state),
        ("nested", {"epoch": 3, "state_dict": state}),
        ("parallel", {f"module.{key}": value for key, value in state.items()}),
    ):
        torch.save(value, tmp_path / f"{name}.pt")
        read = read_weights(tmp_path / f"{name}.pt")
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def test_what_is_no_weights_is_refused_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Harmful()}, tmp_path / "code.pt")
    with pytest.raises(DataError, match=r"code\.pt: torch does not read it as weights alone"):
        read_weights(tmp_path / "code.pt")
    assert "unpickled" not in capsys.readouterr().out
    (tmp_path / "short.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(DataError, match=r"short\.safetensors: not a whole safetensors file"):
        read_weights(tmp_path / "short.safetensors")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "no.pt")
    with pytest.raises(DataError, match=r"no\.pt: holds a mapping with epoch, loss; expected tensors by name"):
        read_weights(tmp_path / "no.pt")
    with pytest.raises(DataError, match=r"absent\.pt cannot be read: No such file"):
        read_weights(tmp_path / "absent.pt")


def refused(changes: dict[str, Tensor | None]) -> str:
    """Load a Linear and a BatchNorm from their own weights with `changes`, and return what is said."""
    model = nn.ModuleDict({"first": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2)})
    weights = {**model.state_dict(), **changes}
    with pytest.raises(DataError) as caught:
        load_into(model, {k: v for k, v in weights.items() if v is not None}, Path("w.pt"), "toy")
    return caught.value.message


def test_all_that_does_not_fit_comes_at_once_with_the_nearest_name() -> None:
    said = refused({"first.weight": None, "frst.weight": torch.zeros(2, 3), "norm.bias": torch.zeros(5)})
    assert said.splitlines() == [
        "w.pt: not the weights of toy: 1 missing, 1 unexpected, 1 of another shape",
        "  missing first.weight [2, 3] (there is frst.weight)",
        "  unexpected frst.weight [2, 3]",
        "  norm.bias is [5], expected [2]",
    ]
    many = refused({f"extra{i}": torch.zeros(1) for i in range(11)})
    assert "  unexpected extra7 [1]\n  and 3 more unexpected" in many
    assert "first.bias has numbers that are not finite" in refused({"first.bias": torch.tensor([1.0, torch.nan])})


def test_a_counter_of_training_may_be_absent() -> None:
    model = nn.BatchNorm1d(2)
    weights = {key: value + 1 for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_into(model, weights, Path("w.pt"), "toy")
    assert model.weight.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "small_cn"}, "--model small_cn: unknown model 'small_cn'\nDid you mean 'small_cnn'?"),
        ({"model": "small_cnn: {widths: []}"}, "--model small_cnn: {widths: []}: small_cnn.widths: Tuple should have"),
        ({"formats": "int8"}, "--formats is int8; a bundle always has onnx"),
        ({"formats": "onnx,packed"}, "--formats has packed, and small_cnn has no binary layers"),
        ({"input": "8x8"}, "input shape is (8, 8); expected three positive sizes"),
        ({"input": "2x8xa"}, "--input is '2x8xa'; expected positive sizes, such as 32x32x3"),
        ({"mean": "0.5"}, "--mean has 1 numbers, and images of 8×8×2 2 channels"),
        ({"std": "a,b"}, "--std is 'a,b'; expected numbers"),
        ({"labels": None}, "neither --classes nor --labels is given"),
        ({"classes": 4}, "labels.txt has 3 lines, and --classes is 4"),
        ({"subclasses": 4}, "classifier.weight is [6, 8], expected [12, 8]"),
        ({"layout": "NHWC", "input": "8x8x2"}, "inputs are uint8 [320, 2, 8, 8], expected uint8 [N, 8, 8, 2], N >= 1"),
        ({"labels": None, "classes": 2, "subclasses": 3}, "labels go from 0 to 2, expected 0 to 1"),
        ({"model": None, "data": None}, "--weights needs --model, --data too"),
        ({"weights": None}, "--model goes with --weights"),
    ],
)
def test_wrong_arguments_are_refused_in_words(folder: Path, changes: dict[str, object], said: str) -> None:
    result = call(*arguments(folder, **changes, **({} if "output" in changes else {"output": folder / "none"})))
    assert result.exit_code in (1, 2), result.output
    assert said in result.stderr
    assert not (folder / "none").exists()


def test_a_recipe_and_weights_do_not_go_together(folder: Path) -> None:
    result = call(*arguments(folder), "quickstart")
    assert (result.exit_code, "'quickstart' was named too" in result.stderr) == (2, True)
    assert call("export").exit_code == 2


def test_a_wide_residual_network_has_a_short_name() -> None:
    model = kind_from(_MODEL, "wrn:16-2", "--model")
    assert (model.kind, model.depth, model.widen) == ("wrn", 16, 2)
