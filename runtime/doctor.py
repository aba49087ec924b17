"""What this device can run, what is missing with the command that installs it, and which formats it cannot read.

Needs the standard library alone: a device without numpy is told how to get it.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime import custom_ops
from runtime.cuda import cuda_devices, driver_version
from runtime.errors import EdgefoldError, EngineError, MissingExtraError
from runtime.onnx_file import read_onnx_header
from runtime.onnx_support import refusal

_LEAST_PYTHON = (3, 10)
# Engine -> what to hand pip.
_ENGINES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
}
_OF_A_GPU = ("tensorrt", "tensorrt_rtx")
# Formats that other engines than ONNX Runtime run: `runtime.runners.RUNNERS`, which needs numpy.
_NOT_ONNX = "tensorrt"
_RAPL = "/sys/class/powercap"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for. needed: whether nothing can be measured without it."""

    what: str
    usable: bool
    found: str
    remedy: str = ""
    needed: bool = False


def examine(
    bundle: Path | None = None,
    formats: Sequence[str] = (),
    engine: str | None = None,
    provider: str | None = None,
) -> list[Finding]:
    """Return what is found here; with a bundle, whether the engine reads each of its formats (else `formats`).

    engine, provider: what is to be used, without which nothing can be measured. Raises UsageError for an unknown one.
    """
    engine = engine or ("onnxruntime" if provider else None)
    has_gpu = bool(cuda_devices())
    # Without a GPU of NVIDIA's, TensorRT is nothing that is missing, unless it was asked for.
    names = [name for name in _ENGINES if name not in _OF_A_GPU or has_gpu or importlib.util.find_spec(name)]
    names += [engine] if engine in _ENGINES and engine not in names else []
    engines = {name: _package(name, _ENGINES[name], needed=name == engine) for name in names}
    if engine == "tensorrt" and "tensorrt_rtx" in engines and engines["tensorrt_rtx"].usable:
        engines[engine] = replace(engines[engine], needed=False)  # the other builds engines as well
    findings = [_python(), _package("numpy", "numpy", needed=True), *engines.values()]
    if engine in _OF_A_GPU:
        findings.append(_gpu())
    if not any(each.usable and (has_gpu or name not in _OF_A_GPU) for name, each in engines.items()):
        findings.append(Finding("an engine", False, "none of these", _pip("onnxruntime"), needed=True))
    findings += _providers(engines["onnxruntime"])
    if provider is not None and findings[1].usable:  # numpy, without which there is no looking at it
        findings.append(_provider(provider, engines["onnxruntime"]))
    findings += [_custom_ops(), *power_findings()]
    if bundle is not None and engine in (None, "onnxruntime"):
        findings += _formats(bundle, formats, engines["onnxruntime"])
    return findings


def document_of(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"kind": "doctor", "findings": [asdict(each) for each in findings]}


def findings_text(findings: Sequence[Finding]) -> str:
    width = max(len(each.what) for each in findings)
    lines = []
    for each in findings:
        lines.append(f"{'yes' if each.usable else 'NO' if each.needed else 'no':3}  {each.what:<{width}}  {each.found}")
        if not each.usable and each.remedy:
            lines.append(f"{'':{width + 7}}{each.remedy}")
    return "\n".join(lines)


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    return Finding("python", sys.version_info >= _LEAST_PYTHON, found, "Install Python 3.10 or newer.", needed=True)


def _package(module: str, install: str, *, needed: bool) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, False, "not installed", _pip(install), needed)
    try:
        version = str(getattr(importlib.import_module(module), "__version__", "version not said"))
    except Exception as error:  # a broken native library can raise anything, and the rest must still be reported
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Finding(module, False, f"cannot be loaded: {reason[-1]}", _pip(f"--force-reinstall {install}"), needed)
    return Finding(module, True, version, "", needed)


def _gpu() -> Finding:
    device = next(iter(cuda_devices()), None)
    found = f"{device.name} ({device.capability}), driver {driver_version()}" if device else "no CUDA device"
    remedy = "TensorRT runs on NVIDIA's GPUs: install the driver of one, or choose another engine."
    return Finding("a GPU of NVIDIA's", device is not None, found, remedy, needed=True)


def _pip(install: str) -> str:
    return f"{sys.executable} -m pip install {install}"


def _providers(engine: Finding) -> Iterator[Finding]:
    if engine.usable:
        names = importlib.import_module("onnxruntime").get_available_providers()
        yield Finding("providers of onnxruntime", True, ", ".join(names))


def _provider(name: str, engine: Finding) -> Finding:
    from runtime.runners.providers import require_here

    what = f"provider {name}"
    if not engine.usable:
        return Finding(what, False, "is one of onnxruntime, which cannot be used", engine.remedy, needed=True)
    try:
        return Finding(what, True, require_here(importlib.import_module("onnxruntime"), name))
    except (MissingExtraError, EngineError) as error:  # no device for it is an EngineError too
        return Finding(what, False, error.message, error.remedy, needed=True)


def _custom_ops() -> Finding:
    what = "custom operators (packed)"
    try:
        return Finding(what, True, f"{custom_ops.instruction_set()}, {custom_ops.library_path()}")
    except EdgefoldError as error:
        return Finding(what, False, error.message, "Build them for this device: runtime/ops/README.md.")


def power_findings() -> list[Finding]:
    """Return what the device says of power: its mode, its GPUs, its counters of energy, its rails."""
    from runtime.board import power_mode, read_rails
    from runtime.energy import read_counters
    from runtime.nvml import read_gpus
    from runtime.tegrastats import read_tegrastats

    findings = []
    if (mode := power_mode()) is not None:
        findings.append(Finding("power mode", True, mode))
    for gpu in read_gpus() or ():
        findings.append(Finding("gpu", True, f"{gpu.get('name', 'unnamed')}, driver {gpu.get('driver', 'unknown')}"))
    counters = read_counters()
    unreadable = any(Path(_RAPL).glob("intel-rapl:*")) and not any(name.startswith("RAPL") for name in counters)
    remedy = f"Linux lets only root read RAPL: sudo chmod a+r {_RAPL}/intel-rapl:*/energy_uj"
    findings.append(Finding("counters of energy", bool(counters), ", ".join(counters) or "none"))
    if unreadable:
        findings.append(Finding("counters of RAPL", False, "not readable", remedy))
    if rails := read_rails() or (read_tegrastats() or {}).get("rails_mw"):
        findings.append(Finding("power of rails", True, f"{', '.join(rails)} (power, which is no energy)"))
    return findings


def _formats(bundle: Path, formats: Sequence[str], engine: Finding) -> Iterator[Finding]:
    from runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    names = [name for name in formats or opened.formats if not name.startswith(_NOT_ONNX)]
    if not engine.usable:
        return
    refused = {name: refusal(read_onnx_header(opened.file_of(name)), engine.found, name) for name in names}
    readable = [name for name, why in refused.items() if why is None]
    for name, why in refused.items():
        if why is None:
            yield Finding(f"format {name}", True, f"onnxruntime {engine.found} reads it")
            continue
        instead = f", or measure {' or '.join(readable)}" if readable else ""
        yield Finding(f"format {name}", False, why.why, f"{why.remedy(sys.executable)}{instead}")
