"""What a recipe's `benchmark:` says of a device of `targets.yaml`: its name, and what differs from its entry there."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compress.engine_options import NAMES, EngineOptions, in_place
from compress.kinds import Name, NamedOptions


class DeviceOptions(NamedOptions, EngineOptions):
    """A device of targets.yaml. What is absent is as it stands there; an engine takes the place of all that it says."""

    threads: int | None = Field(None, ge=1, le=1024)
    batch: int | None = Field(None, ge=1, le=65_536)
    quick: bool = False

    def called(self, name: str) -> DeviceSpec:
        return DeviceSpec(name=name, **self.model_dump())


class DeviceSpec(DeviceOptions):
    name: Name

    @property
    def changes(self) -> dict[str, Any]:
        """Return what takes the place of the entry's own."""
        return in_place({name: getattr(self, name) for name in ("threads", "batch", *NAMES)})

    @property
    def label(self) -> str:
        """Return what results are filed and shown under: `pi4`, `pi4-openvino-threads-2`."""
        changes = self.changes
        engine = [self.choice.label or "onnxruntime"] if "engine" in changes else []
        sizes = [f"{key}-{changes[key]}" for key in ("threads", "batch") if key in changes]
        return "-".join([self.name, *engine, *sizes])

    def written(self) -> dict[str, Any]:
        return {self.name: self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)}
