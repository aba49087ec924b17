"""Bad input: one clear message, exit code 2, no traceback, and the earlier results as they were."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result

from runtime.bundle import write_checksums

BUNDLE_VERBS = ("bench", "accuracy", "verify")


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def assert_refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert not result.exception or isinstance(result.exception, SystemExit)
    assert result.stderr.count("error:") == 1, result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr, result.stderr


# Recipes

RECIPES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "unknown key": (
        "batch_size: 64", "bach_size: 64",
        ("line 4", "train.bach_size: unknown key", "Did you mean 'batch_size'?"),
    ),
    "unknown objective": (
        "[ce, subclass_auxiliary]", "[ce, mutual_information]",
        ("line 9", "stages.teacher.objective[1]", "unknown objective 'mutual_information'", "Known:"),
    ),
    "misspelled model": (
        "{mlp: {hidden: [8]}}", "{mpl: {hidden: [8]}}",
        ("line 11", "stages.student.model", "unknown model 'mpl'", "Did you mean 'mlp'?"),
    ),
    "repeated key": (
        "    teacher: teacher\n", "    teacher: teacher\n    teacher: teacher\n",
        ("line 14", "key 'teacher' stands twice, first on line 13", "Keep one of the two."),
    ),
    "lr: abc": (
        "lr: 5e-3", "lr: abc", ("line 4", "train.optimizer.adam.lr", "came 'abc', expected a number"),
    ),
    "heads that do not match": (
        "    subclasses: 2\n    teacher", "    subclasses: 3\n    teacher",
        ("line 14", "stages.student.objective[0]", "3 subclasses per class and the teacher 2"),
    ),
    "a view that does not fit the data": (
        "modulo: 2", "modulo: 11", ("line 3", "data.relabel",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize("fault", RECIPES)
def test_a_faulty_recipe(project: Any, fault: str, verb: str) -> None:
    before = snapshot(project.runs)
    old, new, parts = RECIPES[fault]
    project.edit(old, new)
    assert_refused(project.invoke(verb, project.recipe), f"{project.recipe}: 1 problem", *parts)
    assert snapshot(project.runs) == before


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_later_stage_as_teacher(project: Any, verb: str) -> None:
    before = snapshot(project.runs)
    head, rest = project.text.split("  teacher:\n", 1)
    teacher, rest = rest.split("  student:\n", 1)
    student, tail = rest.split("export:", 1)
    project.write(f"{head}  student:\n{student}  teacher:\n{teacher}export:{tail}")
    assert_refused(
        project.invoke(verb, project.recipe),
        "1 problem", "line 9", "'teacher' is a later stage", "move 'teacher' above 'student'",
    )  # fmt: skip
    assert snapshot(project.runs) == before


def test_a_recipe_that_is_no_text(project: Any) -> None:
    before = snapshot(project.runs)
    project.recipe.write_bytes(b"name: \xff\xfe\n")
    assert_refused(project.invoke("run", project.recipe), "not UTF-8 text (byte 6)")
    assert snapshot(project.runs) == before


# Data


@pytest.fixture
def with_data(project: Any) -> Callable[[str], Result]:
    """Return `run(source)`: run the finished recipe with another source, below `data/`."""

    def run(source: str) -> Result:
        text = project.text.replace("{source: digits, relabel: {modulo: 2}}", f"{{source: {source}}}")
        assert text != project.text
        project.write(text)
        before = snapshot(project.runs)
        result = project.invoke("run", project.recipe, "--data-root", project.folder / "data")
        after = snapshot(project.runs)
        assert {path: after.get(path) for path in before} == before
        # Nothing was trained on it either.
        assert not [path for path in set(after) - set(before) if path.name in ("stage.json", "weights.safetensors")]
        return result

    return run


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("mnist", ("mnist/train-00000-of-00001.parquet", "mnist/test-00000-of-00001.parquet", "60,000 rows")),
        ("{parquet: {path: pets}}", ("pets/train-",)),
        ("{folder: {path: pets}}", ("pets",)),
    ],
)
def test_a_missing_data_folder_says_what_to_put_where(
    with_data: Callable[[str], Result], project: Any, source: str, files: tuple[str, ...]
) -> None:
    result = with_data(source)
    assert_refused(result, "does not exist", *files)
    assert str(project.folder / "data") in result.stderr
    assert "--data-root" in result.stderr


def test_no_data_root_at_all(project: Any) -> None:
    before = snapshot(project.runs)
    project.edit("source: digits", "source: mnist")
    result = project.invoke("run", project.recipe)
    assert_refused(result, "mnist: no data root is named", "EDGEFOLD_DATA", "--data-root DIR")
    assert snapshot(project.runs) == before


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_parquet_file(
    with_data: Callable[[str], Result], project: Any, image_parquet: Callable[..., Path], keep: float
) -> None:
    path = image_parquet(project.folder / "data" / "pets")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    assert_refused(with_data("{parquet: {path: pets}}"), str(path))


@pytest.mark.parametrize("row", [0, 17, 39])
@pytest.mark.parametrize("cut", [0, 4, 60])
def test_a_corrupt_image_in_a_parquet_file(
    with_data: Callable[[str], Result],
    project: Any,
    image_parquet: Callable[..., Path],
    png: Callable[[int], bytes],
    row: int,
    cut: int,
) -> None:
    image_parquet(project.folder / "data" / "pets", replace={row: png(row)[:cut]})
    assert_refused(
        with_data("{parquet: {path: pets, size: [8, 8]}}"),
        "1 unusable row(s)", f"train row {row} (", "skip_at_most: 1",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["00.png", "13.png"])
def test_a_corrupt_image_in_a_folder(
    with_data: Callable[[str], Result], project: Any, image_folder: Callable[..., Path], name: str
) -> None:
    folder = image_folder(project.folder / "data" / "pets")
    (folder / "cat" / name).write_bytes(b"\x89PNG\r\n\x1a\nnothing that follows is an image")
    assert_refused(with_data("{folder: {path: pets}}"), f"train row {int(name[:2])} (", "skip_at_most: 1")


def test_the_bad_row_is_dropped_where_the_recipe_allows_it(project: Any, image_folder: Callable[..., Path]) -> None:
    folder = image_folder(project.folder / "data" / "pets")
    (folder / "dog" / "07.png").write_bytes(b"no image")
    project.edit(
        "{source: digits, relabel: {modulo: 2}}",
        "{source: {folder: {path: pets}}, bad_rows: {skip_at_most: 1}}",
    )
    result = project.invoke("train", project.recipe, "--data-root", project.folder / "data")
    assert result.exit_code == 0, result.output


# Bundles


@pytest.mark.parametrize("verb", BUNDLE_VERBS)
@pytest.mark.parametrize("file", ["model.onnx", "samples.npz", "manifest.json", "labels.txt", "checksums.sha256"])
def test_a_bundle_with_one_byte_flipped(project: Any, verb: str, file: str) -> None:
    path = project.bundle / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = snapshot(project.runs)
    assert_refused(project.invoke(verb, project.bundle), str(project.bundle))
    assert snapshot(project.runs) == before


def with_external_data(bundle: Path, location: str) -> None:
    """Let a weight of the bundle's model lie in another file, and make the checksums anew."""
    model = onnx.load(bundle / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    content = tensor.raw_data
    assert content
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        tensor.external_data.add(key=key, value=value)
    (bundle.parent / "outside.bin").write_bytes(content)
    data = model.SerializeToString()
    (bundle / "model.onnx").write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["formats"]["onnx"]["size_bytes"] = len(data)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_checksums(bundle)


@pytest.mark.parametrize("verb", BUNDLE_VERBS)
@pytest.mark.parametrize("where", ["../outside.bin", "absolute"])
def test_a_model_that_wants_data_outside_its_folder(project: Any, verb: str, where: str) -> None:
    location = str(project.results / "outside.bin") if where == "absolute" else where
    with_external_data(project.bundle, location)
    before = snapshot(project.runs)
    assert_refused(project.invoke(verb, project.bundle), "external data", location, "outside")
    assert snapshot(project.runs) == before


@pytest.mark.parametrize("verb", BUNDLE_VERBS)
def test_a_folder_that_is_no_bundle(project: Any, tmp_path: Path, verb: str) -> None:
    before = snapshot(project.runs)
    folder = tmp_path / "nothing here"
    folder.mkdir()
    assert_refused(project.invoke(verb, folder), "manifest.json", str(folder))
    assert snapshot(project.runs) == before


def test_the_command_itself_ends_with_2_and_one_message(project: Any) -> None:
    """Once through the real process: what the shell sees."""
    shutil.copy(project.bundle / "labels.txt", project.bundle / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "compress", "bench", str(project.bundle)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr
