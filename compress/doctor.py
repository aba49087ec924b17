"""What is installed, which engines and devices are usable here, and what to install for the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

from runtime import custom_ops
from runtime.doctor import power_findings
from runtime.errors import EdgefoldError
from runtime.runners.providers import BY_NAME

# (import name, distribution, what it is for, how to get it)
PACKAGES = (
    ("torch", "torch", "training and export", "pip install 'edgefold[train]'"),
    ("pydantic", "pydantic", "recipes", "pip install 'edgefold[train]'"),
    ("safetensors", "safetensors", "weights", "pip install 'edgefold[train]'"),
    ("pyarrow", "pyarrow", "parquet data", "pip install 'edgefold[train]'"),
    ("PIL", "pillow", "images", "pip install 'edgefold[train]'"),
    ("sklearn", "scikit-learn", "digits, analysis", "pip install 'edgefold[train]'"),
    ("onnx", "onnx", "ONNX export", "pip install 'edgefold[train]'"),
    ("onnxscript", "onnxscript", "ONNX export", "pip install 'edgefold[train]'"),
    ("matplotlib", "matplotlib", "report.html", "pip install 'edgefold[train]'"),
    ("jinja2", "jinja2", "report.html", "pip install 'edgefold[train]'"),
    ("datasets", "datasets", "data of the hub", "pip install 'edgefold[hub]'"),
    ("transformers", "transformers", "text encoders", "pip install 'edgefold[text]'"),
    ("tokenizers", "tokenizers", "texts of text encoders", "pip install tokenizers"),
    ("onnxruntime", "onnxruntime", "ONNX engine", "pip install 'edgefold[onnxruntime]'"),
    ("openvino", "openvino", "a second ONNX engine", "pip install 'edgefold[openvino]'"),
    ("tensorrt_rtx", "tensorrt-rtx", "TensorRT engines", "pip install 'edgefold[rtx]'"),
    (
        "tensorrt",
        "tensorrt",
        "TensorRT engines of the GPU at hand",
        "pip install 'edgefold[tensorrt]', or NVIDIA's own",
    ),
    ("cuda", "cuda-python", "running TensorRT engines", "pip install cuda-python, or a torch with CUDA"),
)


def examine() -> list[dict[str, Any]]:
    """Return one finding each: what, whether it is usable, what was found, and how to get it."""
    findings = [
        _finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}", "")
    ]
    findings += [_package(*package) for package in PACKAGES]
    findings += [*_engines(), _custom_ops(), *_devices(), *_power(), _data_root()]
    return findings


def _finding(what: str, usable: bool, found: str, remedy: str) -> dict[str, Any]:
    return {"what": what, "usable": usable, "found": found, "remedy": remedy}


def _package(module: str, distribution: str, purpose: str, remedy: str) -> dict[str, Any]:
    what = f"{distribution} ({purpose})"
    if importlib.util.find_spec(module) is None:
        return _finding(what, False, "not installed", remedy)
    try:
        return _finding(what, True, importlib.metadata.version(distribution), remedy)
    except importlib.metadata.PackageNotFoundError:
        # A Jetson's onnxruntime comes under another distribution name.
        return _finding(what, True, "installed, version not recorded", remedy)


def _engines() -> list[dict[str, Any]]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    try:
        providers = importlib.import_module("onnxruntime").get_available_providers()
    except Exception as error:  # a broken native library can raise anything, and doctor must still report the rest
        return [
            _finding(
                "engine onnxruntime",
                False,
                f"cannot be loaded: {error}",
                "pip install --force-reinstall onnxruntime",
            )
        ]
    remedy = BY_NAME["cpu"].remedy
    findings = [_finding("engine onnxruntime", "CPUExecutionProvider" in providers, ", ".join(providers), remedy)]
    for name, provider in BY_NAME.items():
        if name == "cpu":
            continue
        plugged = bool(provider.plugin) and importlib.util.find_spec(provider.plugin) is not None
        usable = plugged or provider.name in providers
        found = f"plugin {provider.plugin}" if plugged else "in this build" if usable else "not in this build"
        findings.append(_finding(f"provider {name}", usable, found, provider.remedy))
    return findings


def _custom_ops() -> dict[str, Any]:
    what = "custom ops (packed binary models)"
    remedy = "install a C++17 compiler, then edgefold again: runtime/ops/README.md"
    try:
        found = f"{custom_ops.instruction_set()}, {custom_ops.library_path()}"
    except EdgefoldError as error:
        return _finding(what, False, error.message, remedy)
    return _finding(what, True, found, remedy)


def _devices() -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [_finding("device cpu", True, f"{cores} cores usable by this process", "")]
    remedy = "install a CUDA build of torch (pytorch.org) and an NVIDIA driver"
    if importlib.util.find_spec("torch") is None:
        return [*findings, _finding("device cuda", False, "torch is not installed", remedy)]
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        driver = "with a driver" if shutil.which("nvidia-smi") else "no NVIDIA driver"
        return [*findings, _finding("device cuda", False, f"torch {torch.__version__}, {driver}", remedy)]
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return [*findings, _finding("device cuda", True, names, remedy)]


def _power() -> list[dict[str, Any]]:
    return [_finding(each.what, each.usable, each.found, each.remedy) for each in power_findings()]


def _data_root() -> dict[str, Any]:
    root = os.environ.get("EDGEFOLD_DATA")
    remedy = "export EDGEFOLD_DATA=folder, or --data-root folder; quickstart needs neither"
    if not root:
        return _finding("EDGEFOLD_DATA", False, "not set", remedy)
    return _finding(
        "EDGEFOLD_DATA",
        os.path.isdir(root),
        root if os.path.isdir(root) else f"{root} is not a folder",
        remedy,
    )
