"""TensorRT's Python modules: which one can build here, and what they say in their log alone."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from runtime.cuda import cuda_devices
from runtime.engine_layers import HEADING
from runtime.errors import ExportError, MissingExtraError

RTX = "tensorrt_rtx"
MODULES = ("tensorrt", RTX)  # in the order in which they are tried


def tensorrt_module(name: str | None = None) -> ModuleType:
    """Return the module `name`, or the first of `MODULES` that is installed and can build here.

    Raises MissingExtraError where it is not installed, ExportError where it cannot be used.
    """
    if name is not None and name not in MODULES:
        raise ExportError(f"no TensorRT module '{name}'; expected one of {', '.join(MODULES)}")
    unusable = []
    for each in [name] if name else MODULES:
        try:
            module = importlib.import_module(each)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # a library that is missing is an ImportError, OSError or RuntimeError, by version
            unusable.append(f"{each} does not import: {error}")
            continue
        # TensorRT ends the process in its first call where there is no device; RTX does not need one.
        if each == RTX or cuda_devices():
            return module
        unusable.append(f"{each} builds on the GPU that it builds for, and there is none here")
    if unusable:
        raise ExportError("; ".join(unusable), remedy="pip install 'edgefold[rtx]' builds engines without a GPU.")
    raise MissingExtraError(
        f"{name} is not installed" if name else f"neither {' nor '.join(MODULES)} is installed",
        remedy="pip install 'edgefold[rtx]' (GeForce and RTX GPUs), or NVIDIA's own tensorrt on the device",
    )


def collecting_log(trt: ModuleType) -> Any:
    """Return a logger that keeps errors, a line each, as `errors`: TensorRT returns None or False, and says why there.

    `layers` is the message that lists an engine's layers, where there was one.
    """

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            elif message.startswith(HEADING):
                self.layers = message

    return Log()
