"""Latency and accuracy of a bundle on a device of `targets.yaml`, and what its limits say of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from compress.remote import Content, Device, end_all_links
from compress.targets import Limits, Target, ThisMachine
from runtime.accuracy import agreement
from runtime.bundle import CHECKSUMS, Bundle
from runtime.errors import EdgefoldError, UsageError
from runtime.own_process import run_in_own_process

Notify = Callable[[str], None]
T = TypeVar("T")

_BUNDLE = "bundle"
_ROWS = "rows.npz"


def bench_on_target(
    name: str,
    target: Target,
    bundle: Bundle,
    *,
    formats: Sequence[str] = (),
    options: Sequence[object] = (),
    quick: bool = False,
    notify: Notify,
) -> dict[str, dict[str, Any]]:
    """Measure the latency of `formats` (else the target's, else all) on the device; return the results by format.

    options: more arguments of the device side, such as `--scenario=offline`.
    """
    chosen = formats_on(name, target, bundle, formats, notify)
    options = ["--threads", target.threads, *target.choice.arguments, *options, *(["--quick"] if quick else [])]
    options += ["--batch", target.batch] if "batch" in target.model_fields_set else []  # else the scenario's own
    options += [f"--power-mode={target.power_mode}"] if target.power_mode else []
    words = [word for each in chosen for word in ("--format", each)]
    with _device(name, target, bundle, chosen, {}, notify) as device:
        document = device.run("bench", _BUNDLE, *words, *options)
    results = [document] if len(chosen) == 1 else document["results"]
    return {each: _marked(name, device, bundle, result) for each, result in zip(chosen, results, strict=True)}


def accuracy_on_target(
    name: str,
    target: Target,
    bundle: Bundle,
    rows: Path | None,
    *,
    formats: Sequence[str] = (),
    limit: int | None = None,
    here: Mapping[str, Mapping[int, int]] | None = None,
    notify: Notify,
) -> dict[str, dict[str, Any]]:
    """Evaluate `rows` (an .npz; None: the samples) there, and compare each class with this machine's, by format.

    `host_agreement` of a result says on how many rows the two are equal, and which ones differ. here: this machine's
    classes by format and row id, where they are known; a format that is not among them is then not compared, nor is one
    that this machine does not run. This machine itself is compared with nothing.
    """
    here = {} if isinstance(target, ThisMachine) else here
    chosen = formats_on(name, target, bundle, formats, notify)
    options = ["--threads", target.threads, *target.choice.arguments, *(["--limit", limit] if limit else [])]
    results = {}
    others: dict[str, Content] = {_ROWS: rows} if rows else {}
    options += ["--data", _ROWS] if rows else []
    with _device(name, target, bundle, chosen, others, notify) as device:
        for each in chosen:
            result = device.run("accuracy", _BUNDLE, "--format", each, *options)
            _marked(name, device, bundle, result)
            own = _predictions_here(bundle, each, rows, limit, notify) if here is None else here.get(each)
            there = {int(row): predicted for row, predicted in result["predictions"].items()}
            if own is not None:
                result["host_agreement"] = agreement(there, own).to_json()
            results[each] = result
    return results


def doctor_on_target(name: str, target: Target, bundle: Bundle | None, *, notify: Notify) -> list[dict[str, Any]]:
    """Return the findings of `runtime.doctor` there; with a bundle, of the formats that the target names, too."""
    files: dict[str, Content] = {}
    options = [f"--{name}={value}" for name in ("engine", "provider") if (value := getattr(target, name))]
    if bundle is not None:
        files = {f"{_BUNDLE}/{file}": bundle.path / file for file in (*bundle.checksums, CHECKSUMS)}
        options += ["--bundle", _BUNDLE]
        options += [f"--format={each}" for each in formats_on(name, target, bundle, (), notify)]
    with Device(name, target, files, with_operators=True, needs_numpy=False, notify=notify) as device:
        findings: list[dict[str, Any]] = device.run("doctor", *options)["findings"]
    return findings


def on_all(targets: Mapping[str, Target], work: Callable[[str, Target], T]) -> dict[str, T | EdgefoldError]:
    """Do `work` on several devices at once; return what each gave, or its error: one that fails stops no other.

    Where this is interrupted all links are ended, and so is what runs on the devices.
    """

    def tried(name: str, target: Target) -> T | EdgefoldError:
        try:
            return work(name, target)
        except EdgefoldError as error:
            return error

    with ThreadPoolExecutor(max(len(targets), 1)) as pool:
        pending = {name: pool.submit(tried, name, target) for name, target in targets.items()}
        try:
            return {name: each.result() for name, each in pending.items()}
        except BaseException:
            end_all_links()
            raise


def formats_on(
    name: str, target: Target, bundle: Bundle, wanted: Sequence[str], notify: Notify = lambda line: None
) -> tuple[str, ...]:
    """Return the formats to measure; without wanted ones notify says which of them the target's engine does not run.

    Raises UsageError where the target names none of the bundle's, or runs none of them.
    """
    if wanted:
        for each in wanted:
            bundle.format(each)
        return tuple(wanted)
    taken = [each for each in bundle.formats if not target.formats or each in target.formats]
    if not taken:
        raise UsageError(
            f"target {name} takes {', '.join(target.formats)}, and {bundle.path} has {', '.join(bundle.formats)}",
            "Add one of these to the target's formats, or the format to the recipe.",
        )
    chosen = tuple(each for each in taken if target.runs(each))
    if not chosen:
        raise UsageError(
            f"target {name} runs {target.choice.label}, which runs none of {', '.join(taken)} of {bundle.path}",
            "Choose another engine for the target, or another format.",
        )
    if len(chosen) < len(taken):
        left_out = ", ".join(each for each in taken if each not in chosen)
        notify(f"{name}: left out, for {target.choice.label} does not run it: {left_out}")
    return chosen


def missed_limits(limits: Limits, bench: Mapping[str, Any], accuracy: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return in words which limits a form misses. A limit whose number was not measured is missed, and says so."""
    measured = {f"{each}_ms": _percentile(bench, each) for each in ("p50", "p90", "p99")}
    measured["size_kb"] = bench["size_bytes"] / 1e3
    measured["accuracy_drop_points"] = accuracy_drop_points(accuracy) if accuracy else None
    missed = []
    for limit, allowed in limits.model_dump(exclude_none=True).items():
        came = measured[limit]
        if came is None:
            missed.append(f"{limit} was not measured (allowed {allowed:g})")
        elif came > allowed:
            missed.append(f"{limit} is {came:.6g}, allowed {allowed:g}")
    return tuple(missed)


def accuracy_drop_points(accuracy: Mapping[str, Any]) -> float | None:
    """Return by how many points the device is below torch on the same rows, where that is known."""
    reference = accuracy.get("torch_correct")
    return None if reference is None else 100 * (reference - accuracy["correct"]) / accuracy["total"]


def _percentile(bench: Mapping[str, Any], name: str) -> float | None:
    found = bench["latency"]["percentiles"].get(name)
    return None if found is None else float(found["measured_ms"])


def _device(
    name: str,
    target: Target,
    bundle: Bundle,
    formats: Sequence[str],
    others: Mapping[str, Content],
    notify: Notify,
) -> Device:
    files: dict[str, Content] = {f"{_BUNDLE}/{file}": bundle.path / file for file in (*bundle.checksums, CHECKSUMS)}
    return Device(name, target, {**files, **others}, with_operators="packed" in formats, notify=notify)


def _marked(name: str, device: Device, bundle: Bundle, result: dict[str, Any]) -> dict[str, Any]:
    """Say in a result where it was made. Raises UsageError where it is another bundle's."""
    if result["bundle"]["checksum"] != bundle.checksum:
        raise UsageError(
            f"target {name}: the result is of bundle {result['bundle']['checksum'][:12]}, and {bundle.path} is "
            f"{bundle.checksum[:12]}: the bundle changed on the way",
            "Run the command again.",
        )
    about = {key: device.about[key] for key in ("host", "machine", "system", "python")}
    result["target"] = {"name": name, **about}
    return result


def _predictions_here(
    bundle: Bundle, format: str, rows: Path | None, limit: int | None, notify: Notify
) -> dict[int, int] | None:
    """Return the class of each row on this machine; None, after saying why, where it does not run the format."""
    options: list[object] = [*(["--data", rows] if rows else []), *(["--limit", limit] if limit else [])]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "accuracy.json"
        try:
            run_in_own_process("accuracy", bundle.path, "--format", format, *options, "--output", output)
        except EdgefoldError as error:
            notify(f"{format} is not compared with this machine: {error.message}")
            return None
        return {int(row): predicted for row, predicted in json.loads(output.read_text())["predictions"].items()}
