"""CelebA: one attribute as the label, others as hidden classes within it, the centred square of each image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from true_formats.celeba import NAMES, values_of, write

from compress.data_check import check_data
from compress.datasets import DataSpec, describe, fingerprint, load
from compress.datasets.celeba import ATTRIBUTES, Celeba, hidden_names
from compress.datasets.stream import ImageStream
from compress.recipe import load_recipe
from export.graph import InputSignature
from runtime.errors import DataError, RecipeError


def spec(**options: Any) -> DataSpec:
    return DataSpec.model_validate({"source": {"celeba": {"attribute": "Male", "size": 16, **options}}})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """16 train, 8 validation and 8 test rows."""
    write(tmp_path, rows=16)
    return tmp_path


def column(name: str, rows: slice) -> np.ndarray:
    return values_of(32, 0)[rows, NAMES.split().index(name)]


def test_the_partition_and_the_attribute_make_splits_and_labels(root: Path) -> None:
    dataset = load(spec(), seed=0, data_root=root)
    assert dataset.class_names == ("not Male", "Male")
    for split, rows in ((dataset.train, slice(16)), (dataset.validation, slice(16, 24)), (dataset.test, slice(24, 32))):
        np.testing.assert_array_equal(split.labels, (column("Male", rows) + 1) // 2)
    assert dataset.train.labels.tolist()[:9] == [1, 1, 1, 1, 0, 0, 0, 0, 1]
    assert (dataset.train.hidden, dataset.hidden_names, dataset.hidden_members) == (None, None, None)
    assert describe(spec(), root).rows == {"train": 16, "validation": 8, "test": 8}
    blurry = load(spec(attribute="Blurry"), seed=0, data_root=root)
    np.testing.assert_array_equal(blurry.test.labels, (column("Blurry", slice(24, 32)) + 1) // 2)
    assert fingerprint(spec(attribute="Blurry"), root) == fingerprint(spec(), root)


def test_known_before_files_are_opened() -> None:
    declared = spec().source.declare()
    assert declared.signature == InputSignature((16, 16, 3))
    assert declared.rows == {"train": 162_770, "validation": 19_867, "test": 19_962}
    assert sum(declared.rows.values()) == 202_599
    assert tuple(NAMES.split()) == ATTRIBUTES
    assert len(ATTRIBUTES) == 40


@pytest.mark.parametrize("stream", ["no", "yes"])
def test_the_centred_square_is_shown(root: Path, stream: str) -> None:
    train = load(spec(stream=stream), seed=0, data_root=root).train
    assert isinstance(train.inputs, ImageStream) == (stream == "yes")
    with Image.open(root / "celeba" / "img_align_celeba" / "000003.jpg") as image:
        square = image.resize((16, 16), Image.Resampling.BILINEAR, box=(0, 20, 178, 198))
    np.testing.assert_array_equal(train.inputs[2:3][0], np.asarray(square))


def test_other_attributes_are_hidden_classes_within_each_class(root: Path) -> None:
    dataset = load(spec(hidden=("Smiling",)), seed=0, data_root=root)
    assert dataset.hidden_names == ("not Male, not Smiling", "not Male, Smiling", "Male, not Smiling", "Male, Smiling")
    assert dataset.hidden_members == ((0, 1), (2, 3))
    assert dataset.train.hidden is not None
    assert dataset.train.hidden.tolist() == [3, 2, 3, 2, 1, 0, 1, 0] * 2
    two = load(spec(hidden=("Young", "Blurry")), seed=0, data_root=root).test
    rows = slice(24, 32)
    expected = 4 * (column("Male", rows) > 0) + 2 * (column("Young", rows) > 0) + (column("Blurry", rows) > 0)
    assert two.hidden is not None
    assert two.hidden.tolist() == expected.tolist()
    assert hidden_names(("A", "B", "C"))[6] == "A, B, not C"


def test_hidden_classes_serve_the_oracle_and_the_analysis(root: Path, tmp_path: Path) -> None:
    from compress.analysis.measures import subclass_measures
    from compress.analysis.outputs import StageOutputs

    dataset = load(spec(hidden=("Smiling",)), seed=0, data_root=root)
    assert dataset.test.hidden is not None
    # A model that tells hidden classes apart, with the subclasses of each class in the other order.
    logits = np.eye(4)[np.array([1, 0, 3, 2])[dataset.test.hidden]]
    found = subclass_measures(StageOutputs("s", logits, logits, 2), dataset.test.hidden, dataset.hidden_members)
    assert found.values["permutation_accuracy_within_class"] == 1.0
    assert found.values["effective_label_bits"] == pytest.approx(1.0)


def test_a_regrouped_label_hides_the_attribute_as_of_any_source(root: Path) -> None:
    swapped = DataSpec.model_validate({**spec().model_dump(), "source": {"celeba": {"attribute": "Male", "size": 16}},
                                       "relabel": {"groups": ((1,), (0,))}})  # fmt: skip
    dataset = load(swapped, seed=0, data_root=root)
    assert dataset.hidden_names == ("not Male", "Male")
    assert dataset.hidden_members == ((1,), (0,))


@pytest.mark.parametrize(
    ("options", "problem", "remedy"),
    [
        ("attribute: Smilling", "unknown attribute 'Smilling'", "Did you mean 'Smiling'?"),
        ("attribute: Male, hidden: [Yong]", "unknown attribute 'Yong'", "Did you mean 'Young'?"),
        ("attribute: Male, hidden: [Male]", "Male more than once, or the label itself", ""),
        ("attribute: Male, hidden: [Young, Young]", "Young more than once", ""),
        ("size: 64", "attribute is missing", "Add it."),
    ],
)
def test_the_recipe_is_told_before_data_is_opened(tmp_path: Path, options: str, problem: str, remedy: str) -> None:
    recipe = tmp_path / "faces.yaml"
    recipe.write_text(
        f"name: faces\ndata: {{source: {{celeba: {{{options}}}}}}}\ntrain: {{epochs: 1}}\n"
        "stages:\n  plain: {model: {mlp: {hidden: [8]}}, objective: ce}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    text = f"{caught.value.message}\n{caught.value.remedy}"
    assert all(part in text for part in (*problem.split(" is missing"), remedy))


def edited(name: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert edit(text) != text
        (folder / name).write_text(edit(text))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (edited("list_attr_celeba.txt", lambda t: t[:-600]), "says 32 images, but 28 lines follow"),
        (edited("list_attr_celeba.txt", lambda t: t[:-3] + "\n"), r"line 34: 40 fields, expected a name and 40 values"),
        (edited("list_attr_celeba.txt", lambda t: ""), "does not begin with a number of images"),
        (edited("list_attr_celeba.txt", lambda t: t.partition("\n")[2]), "does not begin with a number of images"),
        (edited("list_attr_celeba.txt", lambda t: t.replace("Male", "Mala")), "has no attribute 'Male'"),
        (edited("list_eval_partition.txt", lambda t: t[:-13]), "line 31: came .*|has no line for 1 image"),
        (
            edited("list_eval_partition.txt", lambda t: t.replace("3.jpg 0", "3.jpg 3", 1)),
            "line 3: came '000003.jpg 3'",
        ),
        (edited("list_eval_partition.txt", lambda t: t.replace(" 1\n", " 0\n")), r"no image of split validation \(1\)"),
        (
            lambda f: (f / "img_align_celeba" / "000002.jpg").unlink(),
            r"train row 1 \(.*000002.jpg: the file is missing",
        ),
        (
            lambda f: (f / "img_align_celeba" / "000018.jpg").write_bytes(b"\xff\xd8"),
            r"validation row 1 \(.*000018.jpg",
        ),
        (lambda f: (f / "list_eval_partition.txt").unlink(), "needs list_eval_partition.txt, which is not there"),
        (lambda f: shutil.rmtree(f / "img_align_celeba"), "needs img_align_celeba/000001.jpg or"),
    ],
)
def test_what_is_wrong_is_named(root: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(root / "celeba")
    with pytest.raises(DataError, match=says):
        load(spec(), seed=0, data_root=root)


def test_a_value_that_is_none_is_a_bad_row(root: Path) -> None:
    path = root / "celeba" / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    fields = lines[5].split()
    fields[1 + NAMES.split().index("Young")] = "0"
    path.write_text("\n".join([*lines[:5], " ".join(fields), *lines[6:]]) + "\n")
    with pytest.raises(DataError, match=r"train row 3 \(000004.jpg: Young is neither 1 nor -1"):
        load(spec(hidden=("Young",)), seed=0, data_root=root)
    assert len(load(spec(), seed=0, data_root=root).train) == 16  # nothing reads it


def test_data_check_counts_the_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_data("celeba", root)["formats"][0]["problems"][0] == "train has 16 rows, the published set 162,770"
    monkeypatch.setattr(Celeba, "rows", {"train": 16, "validation": 8, "test": 8})
    assert check_data("celeba", root)["complete"]
    (root / "celeba" / "img_align_celeba" / "000030.jpg").unlink()
    (form,) = check_data("celeba", root)["formats"]
    assert form["problems"] == ["test has 1 unusable row(s)"]


def test_a_missing_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder does not exist") as caught:
        fingerprint(spec(), tmp_path)
    for part in ("celeba/list_attr_celeba.txt", "img_align_celeba/000001.jpg to 202599.jpg", "mmlab.ie.cuhk.edu.hk"):
        assert part in caught.value.remedy
