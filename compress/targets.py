"""The devices to measure on: `targets.yaml`, one entry a device.

pi4:
  host: pi4.local                  # or an alias of ~/.ssh/config
  user: pi
  python: /home/pi/venv/bin/python
  threads: 4
  limits: {p90_ms: 5, size_kb: 300, accuracy_drop_points: 0.5}
orin: {host: orin, engine: tensorrt}
phone: {serial: emulator-5554}     # over Android's debug bridge
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, RootModel, ValidationError, model_validator

from compress.engine_options import EngineOptions
from compress.kinds import Name, Spec
from compress.recipe_report import did_you_mean, problems_of, recipe_error
from compress.yaml_document import Document, Problem, read_document
from runtime.errors import RecipeError, UsageError
from runtime.runners import runs_on
from runtime.runners.choice import DEFAULT

DEFAULT_FILE = Path("targets.yaml")
LOCAL = "local"

# Handed to ssh as arguments of their own; a leading dash would be an option.
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@%\[\]][A-Za-z0-9_.:@%\[\]-]{0,252}$")]


class Limits(Spec):
    """What a student may cost on a device. accuracy_drop_points: against the student in torch, on the same rows."""

    p50_ms: float | None = Field(None, gt=0)
    p90_ms: float | None = Field(None, gt=0)
    p99_ms: float | None = Field(None, gt=0)
    size_kb: float | None = Field(None, gt=0)
    accuracy_drop_points: float | None = Field(None, ge=0, le=100)

    def without(self, name: str) -> Limits:
        return self.model_copy(update={name: None})


class Target(EngineOptions):
    """A device, how it is reached, and how it runs a model.

    host: for ssh, with user and port where the user's own configuration does not say them; ssh_config: a file that
    takes its place. serial: for adb in the place of host. python: of 3.10 or newer, with numpy and an engine. formats:
    those of a bundle that are measured; empty for all. ops_library: the custom operators built for the device, where
    they are not those of this machine (runtime/ops/README.md). power_mode: of a Jetson, as `nvpmodel -q` names it; in
    another one nothing is measured. time_limit_s: of one measurement, which then is stopped.
    """

    host: _Word | None = None
    user: _Word | None = None
    port: int | None = Field(None, ge=1, le=65_535)
    ssh_config: str | None = None
    serial: _Word | None = None
    python: Annotated[str, Field(min_length=1)] = "python3"
    threads: int = Field(1, ge=1, le=1024)
    batch: int = Field(1, ge=1, le=65_536)
    formats: tuple[str, ...] = ()
    ops_library: str | None = None
    power_mode: Annotated[str, Field(min_length=1)] | None = None
    time_limit_s: float = Field(900.0, gt=0, le=86_400)
    limits: Limits = Limits()

    def runs(self, format: str) -> bool:
        """Return whether the engine that is named runs a format; without one each runs on its own."""
        return self.choice == DEFAULT or runs_on(format, self.choice)

    @model_validator(mode="after")
    def _reached_one_way(self) -> Target:
        if (self.host is None) == (self.serial is None):
            raise ValueError("expected either host (ssh) or serial (adb)")
        if self.serial is not None and (self.user or self.port or self.ssh_config):
            raise ValueError("user, port and ssh_config are of ssh, and serial is of adb")
        return self


class ThisMachine(Target):
    """The target `local`: measured as any other is, by a process of the Python that runs edgefold."""

    python: str = sys.executable

    @model_validator(mode="after")
    def _reached_one_way(self) -> ThisMachine:
        return self  # there is no way to go


class _Targets(RootModel[dict[Name, Target]]):
    pass


def read_targets(path: Path) -> dict[str, Target]:
    """Return the devices of a file, by name. Raises RecipeError naming every problem of it at once."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read: {error.strerror}",
            "Write one, such as `pi4: {host: pi4.local, user: pi}`, or name it with --targets.",
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})") from None
    document = read_document(text)
    if document.problems:
        raise recipe_error(path, document.problems)
    targets, problems = _validated(document.value, document)
    if problems:
        raise recipe_error(path, problems)
    return targets


def find_target(name: str, path: Path = DEFAULT_FILE) -> Target:
    """Return the device `name` of the file `path`; for `local` no file is needed."""
    if name == LOCAL:
        return ThisMachine()
    targets = read_targets(path)
    if name not in targets:
        raise UsageError(f"{path} has no target '{name}'", did_you_mean(name, [LOCAL, *targets]))
    return targets[name]


def _validated(value: Any, document: Document) -> tuple[dict[str, Target], tuple[Problem, ...]]:
    if not isinstance(value, dict):
        return {}, (Problem((), 1, "expected a mapping of names to devices", "pi4: {host: pi4.local}"),)
    if LOCAL in value:
        line = document.line_of((LOCAL,))
        return {}, (Problem((LOCAL,), line, "is this machine, and always there", "Give the target another name."),)
    try:
        return _Targets.model_validate(value).root, ()
    except ValidationError as error:
        return {}, problems_of(error, _Targets, document)
