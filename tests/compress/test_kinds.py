from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.kinds import OneOf, Spec, as_recipe_value
from compress.models import MODELS, ModelSpec
from compress.objectives import OBJECTIVES, TermSpec
from compress.optimization import OPTIMIZERS, SCHEDULES, OptimizerSpec, ScheduleSpec
from compress.yaml_document import read_document


class Shape(Spec):
    sides: int = 0


class Circle(Shape):
    kind = "circle"

    radius: float = Field(1.0, gt=0)


class Polygon(Shape):
    kind = "polygon"

    corners: tuple[tuple[float, float], ...] = ()
    closed: bool = True


class Needy(Shape):
    kind = "needy"

    name: str


SHAPES: dict[str, type[Shape]] = {"circle": Circle, "polygon": Polygon, "needy": Needy}
AnyShape = Annotated[Shape, OneOf("shape", SHAPES)]


class Drawing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    shape: AnyShape
    others: tuple[AnyShape, ...] = ()
    maybe: AnyShape | None = None


def error_of(**fields: Any) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate({"shape": "circle", **fields})
    (error,) = caught.value.errors(include_url=False)
    return dict(error)


@pytest.mark.parametrize("written", ["circle", {"circle": None}, {"circle": {}}, {"circle": {"radius": 1.0}}, Circle()])
def test_a_kind_alone_has_its_defaults(written: Any) -> None:
    shape = Drawing(shape=written).shape
    assert type(shape) is Circle
    assert shape == Circle(radius=1.0)


def test_options_reach_the_chosen_kind() -> None:
    drawing = Drawing(
        shape={"circle": {"radius": 2, "sides": 3}},
        others=("polygon", {"polygon": {"corners": ((0, 1.5),)}}, {"needy": {"name": "x"}}),
    )
    assert drawing.shape == Circle(radius=2.0, sides=3)
    assert drawing.others == (Polygon(), Polygon(corners=((0.0, 1.5),)), Needy(name="x"))


@pytest.mark.parametrize(("written", "expected"), [(None, None), ("polygon", Polygon())])
def test_an_optional_field_may_be_none(written: Any, expected: Any) -> None:
    assert Drawing(shape="circle", maybe=written).maybe == expected


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Circle().radius = 3.0  # type: ignore[misc]


def test_specs_with_equal_options_are_equal_and_others_are_not() -> None:
    assert Circle(radius=2.0) == Circle(radius=2.0)
    assert Circle(radius=2.0) != Circle()
    assert Circle() != Shape()


# Errors


@pytest.mark.parametrize(
    ("written", "name"), [("cirle", "cirle"), ({"cirle": {"radius": 1.0}}, "cirle"), ({3: None}, "3")]
)
def test_an_unknown_kind_comes_with_the_known_names(written: Any, name: str) -> None:
    error = error_of(shape=written)
    assert error["type"] == "unknown_kind"
    assert error["loc"] == ("shape",)
    assert error["msg"] == f"unknown shape '{name}'"
    assert error["ctx"] == {"noun": "shape", "name": name, "known": ["circle", "needy", "polygon"]}


@pytest.mark.parametrize(
    ("written", "came"),
    [
        ({"circle": {}, "polygon": {}}, "2 keys (circle, polygon)"),
        ({}, "0 keys"),
        (("circle",), "('circle',)"),
        (3, "3"),
    ],
)
def test_anything_but_one_kind_is_refused(written: Any, came: str) -> None:
    error = error_of(shape=written)
    assert error["type"] == "one_kind"
    assert error["loc"] == ("shape",)
    assert error["msg"].startswith("expected one shape, written `kind` or `kind: {options}`; came " + came)


@pytest.mark.parametrize(
    ("written", "loc", "kind"),
    [
        ({"circle": {"radius": -1.0}}, ("shape", "circle", "radius"), "greater_than"),
        ({"circle": {"radius": "2"}}, ("shape", "circle", "radius"), "float_type"),
        ({"circle": {"radius": True}}, ("shape", "circle", "radius"), "float_type"),
        ({"circle": {"radius": float("inf")}}, ("shape", "circle", "radius"), "finite_number"),
        ({"circle": {"raduis": 1.0}}, ("shape", "circle", "raduis"), "extra_forbidden"),
        ({"circle": {"sides": 1.5}}, ("shape", "circle", "sides"), "int_type"),
        ({"circle": 5}, ("shape", "circle"), "model_type"),
        ({"circle": False}, ("shape", "circle"), "model_type"),
        ({"circle": ()}, ("shape", "circle"), "model_type"),
        (
            {"polygon": {"corners": ((0.0, 1.0), (0.0, "1"))}},
            ("shape", "polygon", "corners", 1, 1),
            "float_type",
        ),
        ({"polygon": {"closed": 1}}, ("shape", "polygon", "closed"), "bool_type"),
        ("needy", ("shape", "needy", "name"), "missing"),
    ],
)
def test_an_options_error_stands_at_its_path_in_the_recipe(written: Any, loc: tuple[Any, ...], kind: str) -> None:
    error = error_of(shape=written)
    assert error["loc"] == loc
    assert error["type"] == kind


def test_errors_of_list_entries_carry_their_index() -> None:
    assert error_of(others=("circle", {"circle": {"radius": 0.0}}))["loc"] == (
        "others",
        1,
        "circle",
        "radius",
    )
    assert error_of(others=("circle", "square"))["loc"] == ("others", 1)


def test_all_errors_come_at_once() -> None:
    written = {"shape": {"circle": {"radius": "x", "size": 1}}, "others": ("square", "needy")}
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(written)
    assert {error["loc"] for error in caught.value.errors()} == {
        ("shape", "circle", "radius"),
        ("shape", "circle", "size"),
        ("others", 0),
        ("others", 1, "needy", "name"),
    }


# Serialisation


def test_a_spec_is_written_with_every_option() -> None:
    assert as_recipe_value(Circle()) == {"circle": {"sides": 0, "radius": 1.0}}
    drawing = Drawing(shape=Polygon(corners=((1.0, 2.0),)), maybe="circle")
    assert drawing.model_dump(mode="json") == {
        "shape": {"polygon": {"sides": 0, "corners": [[1.0, 2.0]], "closed": True}},
        "others": [],
        "maybe": {"circle": {"sides": 0, "radius": 1.0}},
    }


def test_a_dumped_document_reads_back_equal() -> None:
    drawing = Drawing(
        shape={"polygon": {"corners": ((1.0, 2.0), (3.5, 1e-9))}},
        others=({"needy": {"name": "no"}}, "circle"),
    )
    assert Drawing.model_validate(read_document(json.dumps(drawing.model_dump(mode="json"))).value) == drawing


class Choices(BaseModel):
    """The tables that recipes choose from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: Annotated[ModelSpec, OneOf("model", MODELS)]
    optimizer: Annotated[OptimizerSpec, OneOf("optimizer", OPTIMIZERS)] = OPTIMIZERS["sgd"]()
    schedule: Annotated[ScheduleSpec, OneOf("schedule", SCHEDULES)] = SCHEDULES["constant"]()
    objective: tuple[Annotated[TermSpec, OneOf("term", OBJECTIVES)], ...] = ()


@pytest.mark.parametrize(
    "written",
    [
        *({"model": name} for name in MODELS if name not in ("encoder", "embedding_mlp", "timm")),
        {"model": {"encoder": {"name": "albert-base-v2"}}},
        {"model": {"embedding_mlp": {"encoder": "albert-base-v2"}}},
        {"model": "timm:resnet18"},
        {
            "model": {"mlp": {"hidden": (784, 784), "dropout": 0.5}},
            "optimizer": {"adam": {"betas": (0.5, 0.9)}},
        },
        {"model": "mlp", "optimizer": "adamw", "schedule": {"step": {"at": (3, 5), "gamma": 0.1}}},
        {"model": "mlp", "objective": tuple(OBJECTIVES)},
        {
            "model": "mlp",
            "objective": ({"kl": {"tau": float("inf")}}, {"kl": {"tau": "inf"}}, {"kl": {"tau": 1e-3}}),
        },
    ],
)
def test_every_kind_reads_back_equal(written: dict[str, Any]) -> None:
    choices = Choices.model_validate(written)
    dumped = json.dumps(choices.model_dump(mode="json"), allow_nan=False)
    assert Choices.model_validate(read_document(dumped).value) == choices
