"""A recipe on texts from end to end, through the commands that a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import runtime
from compress.cli import main as edgefold
from compress.pipeline import plans_of
from runtime import measure
from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.text import HashedNgrams

RECIPE = """\
name: tiny
data:
  source: {text_parquet: {path: reviews, features: {buckets: 256, length: 12}}}
train: {epochs: 12, batch_size: 16, optimizer: {adam: {lr: 2e-2}}}
stages:
  teacher:
    model: {bag_mlp: {width: 16, hidden: [12]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  student:
    model: {bag_mlp: {width: 4, hidden: [6], bag: sum}}
    subclasses: 2
    teacher: teacher
    objective: [kl, ce]
export: {stage: student, batch_sizes: [1, 8]}
"""
FEATURISER = HashedNgrams(buckets=256, length=12)
WORDS = {"bad": ("dull", "awful", "boring"), "good": ("fine", "great", "moving")}
BUNDLE = Path("runs/tiny/bundle")


def reviews(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of five to eight words and some markup; one of the words gives the class away."""
    draw = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(count):
        labels.append(("bad", "good")[row % 2])
        words = [f"w{draw.integers(30)}" for _ in range(draw.integers(4, 8))]
        words.insert(int(draw.integers(len(words))), str(draw.choice(WORDS[labels[-1]])))
        texts.append(" ".join(words) + " <b>&")
    return texts, labels


def write_reviews(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": 200, "validation": 40, "test": 60}.items()):
        texts, labels = reviews(count, seed)
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{split}-00000-of-00001.parquet")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, the reviews and the finished run."""
    folder = tmp_path_factory.mktemp("texts")
    write_reviews(folder / "data" / "reviews")
    (folder / "tiny.yaml").write_text(RECIPE)
    result = call("run", folder / "tiny.yaml", "--data-root", folder / "data", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return folder


def with_line(folder: Path, old: str, new: str) -> Path:
    assert RECIPE.count(old) == 1
    path = folder / "changed.yaml"
    path.write_text(RECIPE.replace(old, new))
    return path


# The finished run


def test_the_student_learned_and_the_device_agrees_row_by_row(folder: Path) -> None:
    parity = json.loads((folder / "runs/tiny/parity.json").read_text())
    assert parity["passed"]
    assert parity["formats"]["onnx"]["extremes_finite"] == {"0": True, "255": True}  # padding, and the last bucket
    accuracy = json.loads((folder / "runs/tiny/accuracy.onnx.json").read_text())
    assert (accuracy["total"], accuracy["rows_unlike_torch"]) == (60, [])
    assert accuracy["accuracy"] > 0.9


def test_the_bundle_carries_the_featuriser(folder: Path) -> None:
    bundle = open_bundle(folder / BUNDLE)
    assert bundle.text == FEATURISER
    assert (bundle.input.dtype, bundle.input.shape, bundle.input.layout) == ("int32", (12,), "NL")
    np.testing.assert_array_equal(bundle.samples().inputs, FEATURISER.encode(reviews(60, 2)[0]))
    manifest = json.loads((folder / BUNDLE / "manifest.json").read_text())
    assert manifest["text"] == FEATURISER.to_json()


def test_the_report_shows_the_texts_of_each_subclass(folder: Path) -> None:
    html = (folder / "runs/tiny/report.html").read_text(encoding="utf-8")
    assert "What the subclasses of student found" in html
    assert "and the texts that activate it most" in html
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html
    assert "images that activate" not in html


@pytest.mark.parametrize("verb", ["verify", "accuracy"])
def test_the_host_commands_take_a_text_bundle(folder: Path, verb: str) -> None:
    result = call(verb, folder / BUNDLE)
    assert result.exit_code == 0, result.output


def test_bench_turns_through_real_rows(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = measure.BenchPlan(quick=True, seconds=0.01, warm_up_seconds=0.01, warm_up_most_seconds=0.05)
    monkeypatch.setattr(measure, "QUICK", plan)
    assert main(["bench", str(folder / BUNDLE), "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["latency"]["calls"] >= 662


def classify(folder: Path, texts: Sequence[str], given: str = "") -> list[dict[str, object]]:
    """Run the device's own command, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "classify", str(folder / BUNDLE), "--json", *texts],
        cwd=Path(runtime.__file__).parent.parent,
        input=given,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["texts"]


def test_the_device_classifies_words_as_the_host_did(folder: Path) -> None:
    texts, _ = reviews(60, 2)
    predictions = json.loads((folder / "runs/tiny/accuracy.onnx.json").read_text())["predictions"]
    found = classify(folder, ["-"], "\n".join(texts))
    assert [each["text"] for each in found] == texts
    assert [("bad", "good").index(str(each["class"])) for each in found] == [predictions[str(row)] for row in range(60)]
    (good, bad) = classify(folder, ["w1 MOVING w2", "w1 w3 awful"])
    assert (good["class"], bad["class"]) == ("good", "bad")


# Keys and checks


@pytest.mark.parametrize("change", ["buckets: 255", "length: 13", "ngrams: 1", "lowercase: false"])
def test_another_way_to_make_ids_is_another_stage(folder: Path, change: str) -> None:
    name = change.split(":")[0]
    features = {"buckets": "buckets: 256", "length": "length: 12"} | {name: change}
    changed = with_line(folder, "{buckets: 256, length: 12}", "{" + ", ".join(features.values()) + "}")
    (before,), (after,) = (plans_of(path, folder / "data") for path in (folder / "tiny.yaml", changed))
    assert {stage.key for stage in before.stages}.isdisjoint(stage.key for stage in after.stages)
    assert before.fingerprint == after.fingerprint


def test_options_written_out_are_the_same_stage(folder: Path) -> None:
    written = "{lowercase: true, ngrams: 2, buckets: 256, length: 12}"
    changed = with_line(folder, "{buckets: 256, length: 12}", written)
    assert [plan.key for plan in plans_of(changed, folder / "data")] == [
        plan.key for plan in plans_of(folder / "tiny.yaml", folder / "data")
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{bag_mlp: {width: 4, hidden: [6], bag: sum}}",
            "{mlp: {hidden: [6]}}",
            "line 11: stages.student.model: the model takes images, and the data is text, 12 ids a row; bag_mlp takes",
        ),
        (
            "{text_parquet: {path: reviews, features: {buckets: 256, length: 12}}}",
            "digits",
            "line 7: stages.teacher.model: the model takes text, and the data is images of 8×8×1",
        ),
        ("batch_size: 16,", "batch_size: 16, channels_last: true,", "channels_last is for images, and the data is"),
        ("train: {", "  augment: [flip]\ntrain: {", "line 4: data.augment: changes images, and the data is text"),
        ("train: {", "  normalize: {mean: [0.5], std: [0.5]}\ntrain: {", "line 4: data.normalize: scales images"),
        ("bag: sum", "bag: max", "stages.student.model.bag_mlp.bag: came 'max', expected 'mean' or 'sum'"),
    ],
)
def test_check_names_the_line_without_any_data(tmp_path: Path, old: str, new: str, said: str) -> None:
    result = call("check", with_line(tmp_path, old, new))
    assert result.exit_code == 2
    assert said in result.output
