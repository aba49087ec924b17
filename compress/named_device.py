"""What a recipe's `benchmark:` says of a device of `targets.yaml`: its name, and what differs from its entry there."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compress.kinds import Name, NamedOptions


class DeviceOptions(NamedOptions):
    """A device of targets.yaml. What is absent is as it stands there."""

    threads: int | None = Field(None, ge=1, le=1024)
    batch: int | None = Field(None, ge=1, le=65_536)
    quick: bool = False

    def called(self, name: str) -> DeviceSpec:
        return DeviceSpec(name=name, **self.model_dump())


class DeviceSpec(DeviceOptions):
    name: Name

    @property
    def changes(self) -> dict[str, int]:
        """Return what takes the place of the entry's own."""
        return {key: value for key in ("threads", "batch") if (value := getattr(self, key)) is not None}

    @property
    def label(self) -> str:
        """Return what results are filed and shown under: `pi4`, `pi4-threads-2`."""
        return "-".join([self.name, *(f"{key}-{value}" for key, value in self.changes.items())])

    def written(self) -> dict[str, Any]:
        return {self.name: self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)}
