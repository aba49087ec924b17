"""Published numbers that a run is compared with, as a recipe's `expect` holds them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from compress.kinds import Spec

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:±|\+-|\+/-)\s*(\d+(?:\.\d+)?)\s*\Z")

Percent = Annotated[float, Field(ge=0, le=100)]


class Cell(Spec):
    """One number of a published table, in percent, with the deviation that is printed beside it."""

    mean: Percent
    deviation: Percent | None = None

    def __str__(self) -> str:
        return f"{self.mean:g}" + ("" if self.deviation is None else f" ± {self.deviation:g}")


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        match = _WRITTEN.match(value)
        if match is None:
            raise PydanticCustomError(
                "cell", "came '{came}', expected a number or text such as '91.04 ± 0.11'", {"came": value}
            )
        return Cell(mean=float(match[1]), deviation=float(match[2]))
    return value if isinstance(value, Cell) else Cell(mean=value)


def _as_written(cell: Cell) -> float | str:
    return cell.mean if cell.deviation is None else str(cell)


# A number, or text such as "91.04 ± 0.11".
WrittenCell = Annotated[Cell, BeforeValidator(_cell), PlainSerializer(_as_written)]


class _Tolerance(Spec):
    """`within`: at most that far from it either way. `no_worse_by`: at most that much worse; better is fine."""

    within: float | None = Field(None, ge=0)
    no_worse_by: float | None = Field(None, ge=0)
    source: str

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for pair in (("test_error_percent", "test_accuracy_percent"), ("within", "no_worse_by")):
            if sum(getattr(self, name) is not None for name in pair) != 1:
                raise PydanticCustomError(
                    "one_of_each", "expected exactly one of {names}", {"names": " and ".join(pair)}
                )
        return self


class ExpectSpec(_Tolerance):
    """A published number that a stage is compared with, in percent, mean over the seeds."""

    test_error_percent: WrittenCell | None = None
    test_accuracy_percent: WrittenCell | None = None


def _number_or_table(value: Any) -> str:
    return "table" if isinstance(value, Mapping) else "number"


CellOrTable = Annotated[
    Annotated[WrittenCell, Tag("number")]
    | Annotated[Annotated[dict[str, WrittenCell], Field(min_length=1)], Tag("table")],
    Discriminator(_number_or_table),
]


class PublishedSpec(_Tolerance):
    """A recipe's published numbers: one for the deployed stage, or a row of a table, `{stage: number}`."""

    test_error_percent: CellOrTable | None = None
    test_accuracy_percent: CellOrTable | None = None

    def by_stage(self, deployed: str) -> dict[str, ExpectSpec]:
        """Return what each stage is compared with; a single number is the `deployed` stage's."""
        metric = "test_error_percent" if self.test_error_percent is not None else "test_accuracy_percent"
        written = getattr(self, metric)
        cells = written if isinstance(written, Mapping) else {deployed: written}
        rest = {"within": self.within, "no_worse_by": self.no_worse_by, "source": self.source}
        return {name: ExpectSpec.model_validate({metric: cell, **rest}) for name, cell in cells.items()}
