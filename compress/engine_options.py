"""On what a target runs a model: options that this machine, a device of targets.yaml and a recipe's device share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from compress.kinds import Spec
from runtime.errors import UsageError
from runtime.runners.choice import EngineChoice, EngineName, Precision, ProviderName

NAMES = ("engine", "provider", "precision")


class EngineOptions(Spec):
    """engine: in the place of the format's own; formats that it does not run are left out. provider: what ONNX Runtime
    runs on. precision: what OpenVINO computes in.
    """

    engine: EngineName | None = None
    provider: ProviderName | None = None
    precision: Precision | None = None

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        try:
            EngineChoice(self.engine, self.provider, self.precision)
        except UsageError as error:
            raise PydanticCustomError("engine", "{problem}", {"problem": error.message}) from None
        return self

    @property
    def choice(self) -> EngineChoice:
        """Return them as the device side takes them. Raises UsageError where they do not go together."""
        return EngineChoice(self.engine, self.provider, self.precision)


def in_place(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what takes the place of a target's own options: of those that say the engine all, where one is given."""
    changes = {name: value for name, value in given.items() if value is not None}
    return {**dict.fromkeys(NAMES), **changes} if changes.keys() & set(NAMES) else changes
