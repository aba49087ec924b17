"""The devices that a recipe's `benchmark:` names: found before training, measured after parity, their results kept."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.engine_options import NAMES
from compress.formats import TensorrtSpec
from compress.on_target import accuracy_on_target, bench_on_target, formats_on, on_all
from compress.recipe import Recipe
from compress.recipe_report import did_you_mean
from compress.targets import LOCAL, Target, read_targets
from runtime.errors import EdgefoldError, RecipeError, UsageError
from runtime.files import write_json

if TYPE_CHECKING:
    from compress.variant_run import VariantRun

# What changes a result. How long a run may take and what is asked of it do not.
_SETTINGS = {"host", "port", "serial", "user", "python", "threads", "batch", *NAMES}


@dataclass(frozen=True)
class Device:
    """A device as a recipe names it: its entry of targets.yaml with the recipe's own threads, batch and engine."""

    label: str
    target: Target
    quick: bool = False

    @property
    def address(self) -> tuple[str | int | None, ...]:
        """Return what is equal for two entries that are one machine."""
        return (self.target.host, self.target.port, self.target.serial)

    def settings(self, quick: bool) -> dict[str, Any]:
        return {**self.target.model_dump(include=_SETTINGS, exclude_none=True), "quick": quick or self.quick}


def devices_of(recipe: Recipe, file: Path) -> dict[str, Device]:
    """Return the devices of a recipe by their labels.

    Raises RecipeError where targets.yaml cannot be read or lacks one, UsageError where one takes none of the formats.
    """
    if not recipe.devices:
        return {}
    targets = read_targets(file)
    unknown = [each.name for each in recipe.devices if each.name not in targets]
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        raise RecipeError(
            f"{file} has no target {names}, which benchmark of {recipe.name} names",
            did_you_mean(unknown[0], [LOCAL, *targets]),
        )
    found = {
        each.label: Device(each.label, targets[each.name].model_copy(update=each.changes), each.quick)
        for each in recipe.devices
    }
    kinds = [spec.kind for spec in recipe.export.formats] if recipe.export else []
    if not any(isinstance(spec, TensorrtSpec) for spec in (recipe.export.formats if recipe.export else ())):
        for each in found.values():
            _require_formats(each, kinds, file)
    return found


def _require_formats(device: Device, kinds: Sequence[str], file: Path) -> None:
    target = device.target
    taken = [kind for kind in kinds if not target.formats or kind in target.formats]
    if not taken:
        raise UsageError(
            f"target {device.label} of {file} takes {', '.join(target.formats)}, and the recipe exports "
            f"{', '.join(kinds)}",
            "Add one of these to the target's formats, or the format to the recipe.",
        )
    if not any(target.runs(kind) for kind in taken):
        raise UsageError(
            f"target {device.label} of {file} runs {target.choice.label}, which runs none of {', '.join(taken)}",
            "Choose another engine for the target, or add a format to the recipe.",
        )


def require_devices(recipes: Iterable[Recipe], file: Path) -> None:
    """Raise what `devices_of` raises, before anything is trained."""
    for recipe in recipes:
        devices_of(recipe, file)


def serves(kept: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> bool:
    """Return whether a kept result is one of `settings`; a full measurement serves where a quick one is enough."""
    if kept is None:
        return False
    return kept["settings"] == settings or ("quick" in settings and kept["settings"] == {**settings, "quick": False})


def bench_file(form: str, device: Device) -> str:
    return f"bench.{form}.{device.label}.json"


def accuracy_file(form: str, device: Device) -> str:
    return f"accuracy.{form}.{device.label}.json"


def measure(run: VariantRun, devices: Mapping[str, Device]) -> dict[str, EdgefoldError]:
    """Measure what is missing on all devices at once; return why some could not be, by device.

    A result is written as soon as it is there, so that one device that fails costs no other's. Entries that are the
    same machine wait for each other.
    """
    machines: dict[tuple[str | int | None, ...], threading.Lock] = defaultdict(threading.Lock)
    locks = {label: machines[device.address] for label, device in devices.items()}
    missing = {label: work for label, device in devices.items() if (work := _Work(run, device)).missing}
    if not missing:
        return {}
    for work in missing.values():
        work.prepare()

    def one(label: str, _: Target) -> None:
        with locks[label]:
            missing[label].do()

    run.notify(f"measuring on {', '.join(missing)}")
    outcomes = on_all({label: devices[label].target for label in missing}, one)
    errors = {label: error for label, error in outcomes.items() if isinstance(error, EdgefoldError)}
    for error in errors.values():
        run.notify(f"warning: {error.message}")
    return errors


class _Work:
    """What is still to be measured of one run on one device."""

    def __init__(self, run: VariantRun, device: Device) -> None:
        self.run = run
        self.device = device
        self.bundle = run.export()
        self.settings = device.settings(run.settings.quick)
        self.of_rows = {key: value for key, value in self.settings.items() if key not in ("quick", "batch")}
        self.notes: list[str] = []  # on what the device cannot run
        formats = formats_on(device.label, device.target, self.bundle, (), self.notes.append)
        self.latencies = [each for each in formats if self._lacks(bench_file(each, device), self.settings)]
        self.accuracies = [each for each in formats if self._lacks(accuracy_file(each, device), self.of_rows)]

    @property
    def missing(self) -> bool:
        return bool(self.latencies or self.accuracies)

    def _lacks(self, file: str, settings: Mapping[str, Any]) -> bool:
        return not serves(self.run.result(file), settings)

    def prepare(self) -> None:
        """Make what needs torch: it is not for several threads."""
        if self.accuracies:
            self.rows = self.run.rows_file()
            self.torch = self.run.torch_classes()

    def do(self) -> None:
        label, target, notify = self.device.label, self.device.target, self.run.notify
        for note in self.notes:
            notify(note)
        if self.latencies:
            quick = self.settings["quick"]
            found = bench_on_target(label, target, self.bundle, formats=self.latencies, quick=quick, notify=notify)
            for form, result in found.items():
                self._write(bench_file(form, self.device), {**result, "settings": self.settings})
        if self.accuracies:
            found = accuracy_on_target(
                label, target, self.bundle, self.rows, formats=self.accuracies, here=self._here(), notify=notify
            )
            for form, result in found.items():
                beside = self.run.beside_torch(result["predictions"], self.torch)
                self._write(accuracy_file(form, self.device), {**result, **beside, "settings": self.of_rows})

    def _here(self) -> dict[str, dict[int, int]]:
        """Return what this machine predicts, of the formats that it runs."""
        results = {form: self.run.result(f"accuracy.{form}.json") for form in self.accuracies}
        return {form: {int(row): each for row, each in result["predictions"].items()}
                for form, result in results.items() if result}  # fmt: skip

    def _write(self, name: str, result: Mapping[str, Any]) -> None:
        write_json(self.run.folder / name, result)
