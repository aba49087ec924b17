"""A recipe on a table from end to end, through the commands that a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from true_formats.criteo import lines, write

import runtime
from compress.cli import main as edgefold
from compress.datasets import DataSpec, load
from compress.pipeline import plans_of
from runtime.bundle import open_bundle
from runtime.errors import DataError
from runtime.rows import Rows, check_rows
from runtime.table import LARGEST_NUMBER, MISSING, HashedColumns

RECIPE = """\
name: tiny
data:
  source: {criteo: {buckets: 500, held_out: 0.2}}
train: {epochs: 4, batch_size: 32, optimizer: {adam: {lr: 1e-2}}}
stages:
  teacher:
    model: {table_mlp: {width: 4, hidden: [16, 8]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  student:
    model: {table_mlp: {width: 4, hidden: [8]}}
    subclasses: 2
    teacher: teacher
    objective: [kl, ce]
export: {stage: student, batch_sizes: [1, 8]}
"""
COLUMNS = HashedColumns(buckets=500)
BUNDLE = Path("runs/tiny/bundle")
ROWS = 2000


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, the click log and the finished run."""
    folder = tmp_path_factory.mktemp("tables")
    write(folder / "data", rows=ROWS)
    (folder / "tiny.yaml").write_text(RECIPE)
    result = call("run", folder / "tiny.yaml", "--data-root", folder / "data", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return folder


def test_the_student_learned_and_the_device_agrees_row_by_row(folder: Path) -> None:
    parity = json.loads((folder / "runs/tiny/parity.json").read_text())
    assert parity["passed"]
    extremes = {"0": True, str(MISSING): True, str(LARGEST_NUMBER): True}
    assert parity["formats"]["onnx"]["extremes_finite"] == extremes
    accuracy = json.loads((folder / "runs/tiny/accuracy.onnx.json").read_text())
    assert accuracy["rows_unlike_torch"] == []
    assert accuracy["accuracy"] > 0.75  # of two classes of about one size


def test_the_bundle_carries_the_featuriser(folder: Path) -> None:
    bundle = open_bundle(folder / BUNDLE)
    assert (bundle.table, bundle.text) == (COLUMNS, None)
    assert (bundle.input.dtype, bundle.input.shape, bundle.input.layout) == ("int32", (39,), "NL")
    assert json.loads((folder / BUNDLE / "manifest.json").read_text())["table"] == COLUMNS.to_json()


def test_the_device_refuses_ids_that_the_table_does_not_have(folder: Path) -> None:
    inputs = COLUMNS.encode(lines(3))
    inputs[1, 20] = 500
    rows = Rows(inputs, np.zeros(3, np.int64), np.array([7, 8, 9]))
    with pytest.raises(DataError, match="ids outside 0 to 499 at row ids 8"):
        check_rows(rows, open_bundle(folder / BUNDLE), "rows")


def device(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run the device's own command, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        cwd=Path(runtime.__file__).parent.parent,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_device_classifies_lines_as_the_host_did(folder: Path) -> None:
    spec = DataSpec.model_validate({"source": {"criteo": {"buckets": 500, "held_out": 0.2}}})
    test = load(spec, seed=0, data_root=folder / "data").test
    position = {tuple(row): i for i, row in enumerate(test.inputs.tolist())}
    predictions = json.loads((folder / "runs/tiny/accuracy.onnx.json").read_text())["predictions"]
    # The rows of the log that are test, found again by what the device makes of their lines.
    wanted = [(line, position[key]) for line in lines(ROWS) if (key := tuple(COLUMNS.encode([line])[0])) in position]
    assert len(wanted) == len(test)
    done = device("classify", str(folder / BUNDLE), "--json", "-", given="".join(f"{line}\n" for line, _ in wanted))
    found = json.loads(done.stdout)["texts"]
    assert [("no click", "click").index(each["class"]) for each in found] == [
        predictions[str(test.row_ids[row])] for _, row in wanted
    ]


def test_the_device_shows_the_featuriser_and_names_a_bad_line(folder: Path) -> None:
    assert "13 numbers and 26 categories a row, hashed to 500 buckets" in device("inspect", str(folder / BUNDLE)).stdout
    done = device("classify", str(folder / BUNDLE), "-", given=f"{lines(1)[0]}\n1\t2\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: line 2: 2 fields, expected 13 numbers and 26 categories, with a tab between each two" in done.stderr


@pytest.mark.parametrize("verb", ["verify", "accuracy"])
def test_the_host_commands_take_a_bundle_of_a_table(folder: Path, verb: str) -> None:
    result = call(verb, folder / BUNDLE)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("change", ["buckets: 501", "held_out: 0.3", "seed: 1", "balance: false", "first_rows: 1500"])
def test_another_way_to_read_the_log_is_another_stage(folder: Path, change: str) -> None:
    name = change.split(":")[0]
    options = {"buckets": "buckets: 500", "held_out": "held_out: 0.2"} | {name: change}
    changed = folder / "changed.yaml"
    changed.write_text(RECIPE.replace("{buckets: 500, held_out: 0.2}", "{" + ", ".join(options.values()) + "}"))
    (before,), (after,) = (plans_of(path, folder / "data") for path in (folder / "tiny.yaml", changed))
    assert {stage.key for stage in before.stages}.isdisjoint(stage.key for stage in after.stages)
    assert (before.fingerprint == after.fingerprint) == (name != "first_rows")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{table_mlp: {width: 4, hidden: [8]}}",
            "{bag_mlp: {width: 4}}",
            "line 11: stages.student.model: the model takes text, and the data is tables, 13 numbers and 26 ids a row",
        ),
        ("{table_mlp: {width: 4, hidden: [8]}}", "mlp", "the model takes images, and the data is tables"),
        ("batch_size: 32,", "batch_size: 32, channels_last: true,", "channels_last is for images, and the data is tab"),
        ("train: {", "  augment: [flip]\ntrain: {", "data.augment: changes images, and the data is tables"),
        ("held_out: 0.2", "held_out: 0.5", "data.source.criteo.held_out: came 0.5"),
    ],
)
def test_check_names_the_line_without_any_data(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert RECIPE.count(old) == 1
    path = tmp_path / "changed.yaml"
    path.write_text(RECIPE.replace(old, new))
    result = call("check", path)
    assert result.exit_code == 2
    assert said in result.output
