"""A published text encoder from its folder to the device: tokenizer, ONNX of any batch and length, accuracy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_encoders
from click.testing import CliRunner, Result

import runtime
from compress.cli import main as edgefold
from compress.pipeline import plans_of
from compress.stages import Settings, Stages
from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.errors import BundleError, DataError

DATA = os.environ.get("EDGEFOLD_DATA")
LENGTH = 64
RECIPE = """\
name: tiny
data:
  source: {sst2: {features: {tokenizer: {name: tiny-albert, length: 64}}}}
  validation: 0.1
train: {epochs: 12, batch_size: 16, optimizer: {adam: {lr: 1e-2}}}
stages:
  teacher:
    model: {encoder: {name: tiny-albert, pooling: mean, dropout: 0}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  student:
    model: {embedding_mlp: {encoder: tiny-albert, hidden: [12, 12]}}
    subclasses: 2
    teacher: teacher
    objective: [kl, ce]
    train: {epochs: 2}
export: {stage: teacher, batch_sizes: [1, 8]}
"""
WORDS = {0: ("dull", "awful", "boring", "mess"), 1: ("moving", "charm", "wit", "great")}
NEUTRAL = ("a", "film", "of", "story", "the", "and", "it", "every", "movie", "Unheard", "!")


def sentences(rows: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of one to thirty words, of which one or two give the class away."""
    draw = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(rows):
        label = row % 2
        words = [str(draw.choice(NEUTRAL)) for _ in range(int(draw.integers(0, 29)))]
        for _ in range(1 + len(words) // 4):
            words.insert(int(draw.integers(len(words) + 1)), str(draw.choice(WORDS[label])))
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def write_sst2(root: Path) -> None:
    """Write a small set in the layout of the published one."""
    (root / "sst2").mkdir(parents=True)
    for seed, (split, rows) in enumerate({"train": 240, "test": 70}.items()):
        texts, labels = sentences(rows, seed)
        table = pa.table({"idx": list(range(rows)), "sentence": texts, "label": labels})
        pq.write_table(table, root / "sst2" / f"{split}-00000-of-00001.parquet")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


def device(*arguments: object, given: str = "") -> Any:
    """Run the device's own command, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments), "--json"],
        cwd=Path(runtime.__file__).parent.parent,
        input=given,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, the data, the encoder and the finished run."""
    folder = tmp_path_factory.mktemp("encoders")
    tiny_encoders.write(folder / "models" / "tiny-albert", kind="albert")
    write_sst2(folder / "data")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFOLD_MODELS", str(folder / "models"))
        result = call("run", folder / "tiny.yaml", "--data-root", folder / "data", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def _models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_MODELS", str(folder / "models"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder without its run, to be changed."""
    for name in ("models", "data"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy(folder / "tiny.yaml", tmp_path)
    monkeypatch.setenv("EDGEFOLD_MODELS", str(tmp_path / "models"))
    return tmp_path


def bundle_of(folder: Path) -> Path:
    return folder / "runs/tiny/bundle"


def keys(folder: Path) -> list[str]:
    (plan,) = plans_of(folder / "tiny.yaml", folder / "data")
    return [stage.key for stage in plan.stages]


def reference(folder: Path, stage: str) -> np.ndarray:
    """Torch's folded logits (N, C) of a finished stage on the test rows."""
    from compress.evaluate import predict
    from export.fold import fold_logits

    (plan,) = plans_of(folder / "tiny.yaml", folder / "data")
    stages = Stages(plan, Settings(folder / "runs", folder / "data", "cpu"), lambda event: None)
    stages.train()
    return fold_logits(predict(stages.model(stage), stages.preprocess, stages.test_rows), 2).numpy()


# The finished run


def test_parity_holds_and_the_encoder_learned(folder: Path) -> None:
    parity = json.loads((folder / "runs/tiny/parity.json").read_text())
    assert parity["passed"]
    assert parity["formats"]["onnx"]["batch_sizes"] == [1, 8]
    accuracy = json.loads((folder / "runs/tiny/accuracy.onnx.json").read_text())
    assert (accuracy["total"], accuracy["rows_unlike_torch"]) == (70, [])
    assert accuracy["accuracy"] > 0.9


def test_the_device_predicts_what_torch_does_on_every_row(folder: Path) -> None:
    document = device("accuracy", bundle_of(folder), "--data", folder / "runs/tiny/test_rows.npz")
    assert document["total"] == 70
    predicted = [document["predictions"][str(row)] for row in range(70)]
    assert predicted == reference(folder, "teacher").argmax(1).tolist()


def test_the_device_classifies_words_as_the_host_did(folder: Path) -> None:
    texts, _ = sentences(70, seed=1)
    found = device("classify", bundle_of(folder), "-", given="\n".join(texts))["texts"]
    assert [each["text"] for each in found] == texts
    logits = reference(folder, "teacher").astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose([each["probabilities"] for each in found], shares, atol=1e-5)


def test_logits_are_the_same_at_any_length(folder: Path) -> None:
    """Short texts, filled up to 16 and to 64 ids, and one by one without any padding."""
    bundle = open_bundle(bundle_of(folder))
    assert bundle.text is not None
    rows = bundle.text.encode(["a moving film", "dull", "", "great wit !"])
    session = onnxruntime.InferenceSession(str(bundle_of(folder) / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", "length"]

    def logits(ids: np.ndarray) -> np.ndarray:
        (found,) = session.run(["logits"], {"input": ids})
        return found

    short, long = logits(rows[:, :16]), logits(rows)
    np.testing.assert_allclose(short, long, atol=1e-5)
    alone = [logits(row[row != bundle.text.padding][None]) for row in rows]
    np.testing.assert_allclose(np.concatenate(alone), long, atol=1e-5)


def test_the_bundle_carries_the_tokenizer_and_says_that_its_length_is_free(folder: Path) -> None:
    bundle = bundle_of(folder)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["input"] == {
        "name": "input", "dtype": "int32", "shape": [LENGTH], "layout": "NL", "dynamic": "L"
    }  # fmt: skip
    assert manifest["text"]["kind"] == "tokenizer"
    assert "tokenizer.json" in (bundle / "checksums.sha256").read_text()
    source = folder / "models/tiny-albert/tokenizer.json"
    assert (bundle / "tokenizer.json").read_bytes() == source.read_bytes()
    model = onnx.load(str(bundle / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert str(folder) not in str(model)
    assert "site-packages" not in str(model)


def test_inspect_shows_tokenizer_and_length(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle_of(folder))]) == 0
    out = capsys.readouterr().out
    assert "input int32 [N, <=64] NL" in out
    assert "ids, padded with 0, at most 64 a text" in out


def test_a_bundle_with_another_tokenizer_does_not_open(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_of(folder), copy)
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(BundleError, match=r"tokenizer.json is altered or damaged"):
        open_bundle(copy)


def test_bench_runs_real_lengths_without_the_tokenizers_library(folder: Path) -> None:
    code = (
        "import sys\nsys.modules['tokenizers'] = None\n"
        "from runtime import measure\nfrom runtime.__main__ import main\n"
        "measure.QUICK = measure.BenchPlan(quick=True, seconds=.01, warm_up_seconds=.01, warm_up_most_seconds=.05)\n"
        f"bundle = {str(bundle_of(folder))!r}\n"
        "assert main(['accuracy', bundle]) == 0\nassert main(['bench', bundle, '--quick']) == 0\n"
        "sys.exit(main(['classify', bundle, 'a moving film']))\n"
    )
    root = Path(runtime.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "70 of 70 rows" in done.stdout  # torch's predictions, which travel with the samples
    assert "each call is as long as its longest text, at most 64 ids" in done.stdout
    assert "tokenizers is not installed; texts need it" in done.stderr
    assert "pip install tokenizers" in done.stderr


# What is part of a stage, and what is not


def test_a_finished_stage_needs_the_config_and_a_recorded_hash_alone(folder: Path, tmp_path: Path) -> None:
    before = reference(folder, "student")
    weights = folder / "models/tiny-albert/model.safetensors"
    digest = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout
    weights.rename(tmp_path / "away")
    recorded = weights.with_name("model.safetensors.sha256")
    recorded.write_text(digest)
    try:
        np.testing.assert_array_equal(reference(folder, "student"), before)
    finally:
        (tmp_path / "away").rename(weights)
        recorded.unlink()


def made_keys(folder: Path) -> list[str]:
    """The keys of the finished stages, as the run wrote them down."""
    return list(json.loads((folder / "runs/tiny/run.json").read_text())["stages"].values())


def test_the_folder_may_move(folder: Path, copied: Path) -> None:
    assert keys(copied) == made_keys(folder)
    (copied / "tiny.yaml").write_text(RECIPE.replace("tiny-albert", str(copied / "models/tiny-albert")))
    assert keys(copied) == made_keys(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors", "config.json"])
def test_other_content_under_the_same_name_is_another_stage(folder: Path, copied: Path, file: str) -> None:
    path = copied / "models/tiny-albert" / file
    if file == "model.safetensors":
        tiny_encoders.write(path.parent, seed=1)
    else:
        path.write_text(path.read_text() + "\n")
    assert set(keys(copied)).isdisjoint(made_keys(folder))


def test_random_weights_do_not_hang_on_the_published_ones(copied: Path) -> None:
    (copied / "tiny.yaml").write_text(RECIPE.replace("tiny-albert, pooling", "tiny-albert, pretrained: false, pooling"))
    before = keys(copied)
    tiny_encoders.write(copied / "models/tiny-albert", seed=1)
    after = keys(copied)
    assert before[0] == after[0]  # the teacher
    assert before[1] != after[1]  # the student keeps the encoder that it was given


def test_the_frozen_encoder_is_the_published_one_in_the_end(folder: Path) -> None:
    from safetensors.numpy import load_file

    (plan,) = plans_of(folder / "tiny.yaml", folder / "data")
    published = load_file(folder / "models/tiny-albert/model.safetensors")
    for stage, kept in (("student", True), ("teacher", False)):
        trained = load_file(folder / "runs/stages" / plan.stage(stage).key / "weights.safetensors")
        prefix = "encoder.transformer."
        names = [name for name in trained if name.startswith(prefix)]
        assert len(names) > 20
        same = [np.array_equal(trained[name], published[name.removeprefix(prefix)]) for name in names]
        assert all(same) is kept


# What is missing


def test_a_check_needs_no_encoder_and_a_run_says_what_is_missing(copied: Path) -> None:
    shutil.rmtree(copied / "models/tiny-albert")
    assert call("check", copied / "tiny.yaml").exit_code == 0
    with pytest.raises(
        DataError, match="encoder 'tiny-albert': no folder of that name, and not from the hub"
    ) as caught:
        keys(copied)
    assert str(copied / "models/tiny-albert") in caught.value.remedy
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{tokenizer: {name: tiny-albert, length: 64}}", "{buckets: 256}", "an encoder takes the ids of its tokenizer"),
        ("length: 64", "length: 500", "gives up to 500 ids, and the encoder 'tiny-albert' takes 160"),
        ("validation: 0.1", "augment: [flip]", "changes images, and the data is text"),
        ("length: 64}", "length: 64}, buckets: 9", "buckets stand beside tokenizer, which takes their place"),
        ("length: 64", "length: 1", "line 3: data.source.sst2.features.tokenizer.length"),
        ("pooling: mean", "pooling: max", "came 'max', expected 'cls', 'mean' or 'pooler'"),
    ],
)
def test_check_names_what_does_not_fit(copied: Path, old: str, new: str, said: str) -> None:
    assert RECIPE.count(old) == 1
    (copied / "tiny.yaml").write_text(RECIPE.replace(old, new))
    result = call("check", copied / "tiny.yaml")
    assert result.exit_code == 2
    assert said in result.output


# The published set


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs EDGEFOLD_DATA to name a folder with sst2/")
def test_sst2_itself_goes_the_whole_way(folder: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("validation: 0.1", "train_rows: 400").replace("epochs: 12", "epochs: 1")
    (tmp_path / "tiny.yaml").write_text(text)
    result = call("run", tmp_path / "tiny.yaml", "--data-root", str(DATA), "--runs", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    accuracy = json.loads((tmp_path / "runs/tiny/accuracy.onnx.json").read_text())
    assert (accuracy["total"], accuracy["rows_unlike_torch"]) == (872, [])
