from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from compress.datasets import SOURCES, DataSpec, Declaration, declare
from compress.datasets.augment import Crop, Flip
from compress.datasets.spec import ChannelStatistics, SkipAtMost
from export.graph import InputSignature, Normalization


def test_a_source_is_enough() -> None:
    spec = DataSpec.model_validate({"source": "digits"})
    assert (spec.source.kind, spec.relabel, spec.validation) == ("digits", None, None)
    assert (spec.normalize, spec.augment, spec.bad_rows) == ("dataset", (), "refuse")
    assert spec.allowed_bad_rows == 0


def test_every_option_is_read() -> None:
    spec = DataSpec.model_validate(
        {
            "source": {"parquet": {"path": "x", "class_names": ("a", "b")}},
            "relabel": {"modulo": 2},
            "validation": 0.25,
            "train_rows": 10,
            "normalize": {"mean": (0.5,), "std": (0.25,)},
            "augment": ({"crop": {"padding": 4}}, "flip"),
            "bad_rows": {"skip_at_most": 3},
        }
    )
    assert spec.normalize == ChannelStatistics(mean=(0.5,), std=(0.25,))
    assert spec.augment == (Crop(padding=4), Flip())
    assert spec.bad_rows == SkipAtMost(skip_at_most=3)
    assert spec.allowed_bad_rows == 3


def as_loaded(value: Any) -> Any:
    """What the recipe loader makes of YAML lists."""
    if isinstance(value, dict):
        return {key: as_loaded(item) for key, item in value.items()}
    return tuple(as_loaded(item) for item in value) if isinstance(value, list) else value


@pytest.mark.parametrize("kind", SOURCES)
def test_a_written_out_spec_reads_back_the_same(kind: str) -> None:
    own = ("parquet", "folder", "idx", "text_parquet", "text_csv", "text_jsonl")
    needed = {
        **{key: {"path": "x"} for key in own},
        "celeba": {"attribute": "Male"},
        "hub": {"name": "a/b", "input": "text"},
    }
    source = {kind: needed[kind]} if kind in needed else kind
    declared = DataSpec.model_validate({"source": source}).source.declare().signature
    is_text = declared is not None and declared.ids is not None
    of_images = {} if is_text else {"augment": ({"translate": {"pixels": 1}},), "normalize": "unit"}
    spec = DataSpec.model_validate({"source": source, "relabel": {"modulo": 2}, **of_images})
    assert DataSpec.model_validate(as_loaded(spec.model_dump(mode="json"))) == spec


@pytest.mark.parametrize(
    ("options", "where", "says"),
    [
        ({"source": "mnits"}, ("source",), "unknown data set 'mnits'"),
        ({"source": {"folder": {}}}, ("source", "folder", "path"), "required"),
        ({"relabel": {"groups": ((0, 1), (2,))}}, ("relabel",), "classes 3, 4, 5, 6, 7, 8, 9 are in no group"),
        ({"relabel": {"modulo": 11}}, ("relabel",), "only 10 classes"),
        ({"relabel": {"groups": ((0, "1"), (2,))}}, ("relabel", "groups", 0, 1), "valid integer"),
        (
            {"source": {"parquet": {"path": "x", "class_names": ("a", "a")}}},
            ("source", "parquet", "class_names"),
            "once",
        ),
        ({"validation": 1.0}, ("validation",), "less than 1"),
        ({"validation": -0.1}, ("validation",), "greater than or equal to 0"),
        ({"train_rows": 0}, ("train_rows",), "greater than or equal to 1"),
        ({"train_rows": 1439}, ("train_rows",), "came 1439, but train has 1438 rows"),
        ({"normalize": "none"}, ("normalize", "word"), "'dataset' or 'unit'"),
        ({"normalize": {"mean": (0.5,), "std": (0.0,)}}, ("normalize", "mapping", "std", 0), "greater than 0"),
        ({"normalize": {"mean": (0.5,), "std": (1.0, 1.0)}}, ("normalize", "mapping"), "1 mean.* and 2 std"),
        ({"normalize": {"mean": (0.5, 0.5), "std": (1.0, 1.0)}}, ("normalize",), "2 channel.*the images have 1"),
        ({"augment": ("rotate",)}, ("augment", 0), "unknown augmentation 'rotate'"),
        ({"augment": ({"crop": {"padding": 8}},)}, ("augment",), "all of a 8x8 image"),
        ({"augment": ("crop",)}, ("augment", 0, "crop", "padding"), "required"),
        ({"bad_rows": {"skip_at_most": -1}}, ("bad_rows", "mapping", "skip_at_most"), "greater than or equal to 0"),
        ({"shuffle": True}, ("shuffle",), "not permitted"),
    ],
)
def test_a_mistake_is_reported_at_its_place(options: dict[str, Any], where: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        DataSpec.model_validate({"source": "digits", **options})
    assert [error["loc"] for error in caught.value.errors()] == [where]


@pytest.mark.parametrize(
    ("kind", "classes", "shape"),
    [
        ("digits", 10, (8, 8, 1)),
        ("mnist", 10, (28, 28, 1)),
        ("cifar10", 10, (32, 32, 3)),
        ("cifar100", 100, (32, 32, 3)),
    ],
)
def test_named_sets_declare_themselves_without_data(kind: str, classes: int, shape: tuple[int, ...]) -> None:
    declaration = declare(DataSpec.model_validate({"source": kind}))
    assert (declaration.classes, declaration.signature) == (classes, InputSignature(shape=shape))
    assert declaration.class_names is not None
    assert len(set(declaration.class_names)) == classes
    assert declaration.normalization is not None
    assert len(declaration.normalization.mean) == shape[2]


def test_a_declaration_is_that_of_the_view() -> None:
    spec = {"source": "mnist", "relabel": {"groups": ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))}, "normalize": "unit"}
    declaration = declare(DataSpec.model_validate({**spec, "train_rows": 1000, "validation": 0.25}))
    assert declaration.class_names == ("0/1/2/3/4", "5/6/7/8/9")
    assert declaration.normalization == Normalization(1 / 255, (0.0,), (1.0,))
    assert declaration.rows == {"train": 750, "validation": 250, "test": 10_000}


def test_what_only_the_files_know_is_left_open() -> None:
    declaration = declare(DataSpec.model_validate({"source": {"folder": {"path": "x"}}, "relabel": {"modulo": 2}}))
    assert declaration == Declaration(classes=2, streamed=None)
    sized = {"folder": {"path": "x", "size": (4, 6), "mode": "rgb"}}
    assert declare(DataSpec.model_validate({"source": sized})).signature == InputSignature(shape=(4, 6, 3))
