"""ONNX Runtime's execution providers by short names, and what to install where one is missing.

A provider is either compiled into the engine, or a plugin: a package of its own whose library is registered with an
ordinary onnxruntime (1.23 or newer).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from runtime.errors import DeviceError, EngineError, MissingExtraError, UsageError
from runtime.runners.base import one_line

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """A provider. plugin: the module that brings it; options: what its build is given, `{threads}` filled in."""

    name: str
    remedy: str = ""
    plugin: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def filled_options(self, threads: int) -> dict[str, str]:
        return {key: value.format(threads=threads) for key, value in self.options.items()}


# By the name that is given on the command line and in a recipe (`runtime.runners.choice.ProviderName`). A package that
# is called onnxruntime-... takes the place of onnxruntime, one called onnxruntime-ep-... (and qnn's) comes beside it.
BY_NAME: Mapping[str, Provider] = {
    "cpu": Provider(CPU, "pip install --force-reinstall onnxruntime"),
    # TF32 is off, as everywhere here: a file says fp32 and is compared as such.
    "cuda": Provider("CUDAExecutionProvider", "pip install onnxruntime-gpu", options={"use_tf32": "0"}),
    "tensorrt": Provider("TensorrtExecutionProvider", "pip install onnxruntime-gpu tensorrt"),
    "nv-tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "pip install onnxruntime-ep-nv-tensorrt-rtx",
        "onnxruntime_ep_nv_tensorrt_rtx",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "pip install onnxruntime-ep-openvino (Intel) or onnxruntime-openvino (any x86)",
        "onnxruntime_ep_openvino",
        {"device_type": "CPU", "precision": "FP32", "num_of_threads": "{threads}"},
    ),
    "xnnpack": Provider(
        "XnnpackExecutionProvider",
        "build onnxruntime with --use_xnnpack",
        options={"intra_op_num_threads": "{threads}"},
    ),
    "coreml": Provider("CoreMLExecutionProvider", "pip install onnxruntime, on macOS"),
    "qnn": Provider("QNNExecutionProvider", "pip install onnxruntime-qnn", "onnxruntime_qnn"),
}


def plugin_devices(engine: ModuleType, provider: Provider) -> Sequence[Any]:
    """Register the plugin of `provider` and return the devices that it offers here.

    Raises MissingExtraError where it is not installed, EngineError where it does not load, and DeviceError where it
    finds no device.
    """
    try:
        plugin = importlib.import_module(provider.plugin)
    except ModuleNotFoundError as error:
        if error.name != provider.plugin:
            raise EngineError(f"{provider.plugin} is installed but does not import: {one_line(error)}") from error
        raise _not_there(engine, provider) from error
    if not hasattr(engine, "register_execution_provider_library"):
        raise EngineError(
            f"onnxruntime {engine.__version__} takes no plugins, and {provider.name} comes as one",
            remedy="pip install 'onnxruntime>=1.23'",
        )
    devices = _devices(engine, provider)
    if not devices:
        try:
            engine.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as error:  # "already registered" comes as the same type as a library that does not load
            if "already registered" not in str(error):
                raise EngineError(f"{provider.plugin} does not load here: {one_line(error)}") from error
        devices = _devices(engine, provider)
    if not devices:
        raise DeviceError(
            f"{provider.name} finds no device here that it runs on; {provider.plugin} is installed",
            remedy="Run it where the device and its driver are, or leave the provider out for the CPU.",
        )
    return devices


def require_here(engine: ModuleType, name: str) -> str:
    """Return the engine's own name of the provider `name`. Raises what it lacks here, UsageError for an unknown one."""
    if name not in BY_NAME:
        raise UsageError(f"provider is {name!r}, expected {', '.join(BY_NAME)}")
    provider = BY_NAME[name]
    if provider.plugin and provider.name not in engine.get_available_providers():
        plugin_devices(engine, provider)
    else:
        require_compiled_in(engine, provider)
    return provider.name


def require_compiled_in(engine: ModuleType, provider: Provider) -> None:
    """Raise MissingExtraError unless this build of onnxruntime has `provider`."""
    if provider.name not in engine.get_available_providers():
        raise _not_there(engine, provider)


def _devices(engine: ModuleType, provider: Provider) -> list[Any]:
    return [each for each in engine.get_ep_devices() if each.ep_name == provider.name]


def _not_there(engine: ModuleType, provider: Provider) -> MissingExtraError:
    has = ", ".join(engine.get_available_providers())
    return MissingExtraError(
        f"this build of onnxruntime ({engine.__version__}) has no {provider.name}; it has {has}",
        remedy=provider.remedy,
    )
