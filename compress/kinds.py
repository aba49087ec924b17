"""How a recipe chooses among interchangeable kinds: `kind` or `kind: {options}`.

A kind is a frozen `Spec` (its options, typed) in a visible table. `OneOf` turns such a table into a field
type: the options of the chosen kind are checked at their own path in the recipe, so an error report can name
the line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    create_model,
)
from pydantic_core import PydanticCustomError, core_schema

# Names become folder and file names on every system, so they are plain.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


class Spec(BaseModel):
    """Options of one kind: closed, typed, immutable. `kind` is its name in the recipe.

    Types are strict (`"16"` is not a number); sequences are tuples, which is what the recipe loader makes of
    YAML lists. shorthand: the option that `kind:value` sets, where there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    kind: ClassVar[str] = ""
    shorthand: ClassVar[str] = ""

    @classmethod
    def written_short(cls, value: str) -> dict[str, Any] | None:
        """Return the options that `kind:value` sets; None where this kind has no such form."""
        return {cls.shorthand: value} if cls.shorthand else None

    def written(self) -> dict[str, Any]:
        """Return `{kind: {options}}` with every option written out."""
        return {self.kind: self.model_dump(mode="json")}


class NamedOptions(Spec):
    """Options of what the user gave a name, which stands in the kind's place: `pi4: {threads: 2}`."""

    def called(self, name: str) -> Spec:
        """Return them with the name."""
        raise NotImplementedError


class OneOf:
    """Field annotation for "one kind of `table`": `Annotated[ModelSpec, OneOf("model", MODELS)]`.

    `noun` is the word that error messages use for the kind ("model", "objective"). named: a word that is no kind is a
    name, and this is what it may have as options.
    """

    def __init__(self, noun: str, table: Mapping[str, type[Spec]], named: type[NamedOptions] | None = None) -> None:
        self.noun = noun
        self.table = table
        self.named = named
        by_name: Any = dict[Name, named] if named else None  # type: ignore[valid-type]
        self._by_name: TypeAdapter[dict[str, NamedOptions]] | None = TypeAdapter(by_name) if named else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        # One optional field a kind: pydantic then reports errors at (..., kind, option), which is the recipe's path.
        choice: Any = create_model(
            f"{self.noun}_choice",
            __config__=ConfigDict(frozen=True, extra="forbid", strict=True),
            **{kind: (spec | None, None) for kind, spec in self.table.items()},  # type: ignore[call-overload]
        )
        selected = core_schema.no_info_after_validator_function(_selected, handler.generate_schema(choice))
        return core_schema.no_info_wrap_validator_function(
            self._chosen,
            selected,
            serialization=core_schema.plain_serializer_function_ser_schema(as_recipe_value),
        )

    def _chosen(self, value: Any, by_kind: ValidatorFunctionWrapHandler) -> Spec:
        if isinstance(value, Spec) and value.kind not in self.table:
            return value  # named, and made before
        mapping = self._as_mapping(value)
        ((word, _),) = mapping.items()
        if self._by_name is None or word in self.table:
            spec: Spec = by_kind(mapping)
            return spec
        # pydantic keeps the name as a step of its errors' place, which then is the recipe's.
        return self._by_name.validate_python(mapping)[word].called(word)

    def _as_mapping(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Spec):
            return {value.kind: value}
        if isinstance(value, str):
            value = self._written_short(value)
        if not isinstance(value, dict) or len(value) != 1:
            came = f"{len(value)} keys ({', '.join(map(str, value))})" if isinstance(value, dict) else repr(value)
            raise PydanticCustomError(
                "one_kind",
                "expected one {noun}, written `kind` or `{form}`; came {came}",
                {"noun": self.noun, "form": "kind: {options}", "came": came},
            )
        ((kind, options),) = value.items()
        if kind not in self.table and self.named is None:
            raise PydanticCustomError(
                "unknown_kind",
                "unknown {noun} '{name}'",
                {"noun": self.noun, "name": str(kind), "known": sorted(self.table)},
            )
        return {kind: {} if options is None else options}

    def _written_short(self, value: str) -> dict[str, Any]:
        """Return `kind`, or `kind:value` of a kind with a shorthand, as `kind: {options}`."""
        kind, colon, option = value.partition(":")
        options = self.table[kind].written_short(option) if colon and kind in self.table else None
        return {value: None} if options is None else {kind: options}


def _selected(choice: BaseModel) -> Spec:
    return next(value for _, value in choice if value is not None)


def as_recipe_value(spec: Spec) -> dict[str, Any]:
    """Return `{kind: {options}}` with every option written out: the form that keys and results carry."""
    return spec.written()
