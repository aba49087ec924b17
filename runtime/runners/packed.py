"""ONNX Runtime with the operators of packed binary models (`runtime/ops`)."""

from __future__ import annotations

from typing import Any

from runtime.custom_ops import library_path
from runtime.errors import BundleError, EngineError, MissingExtraError
from runtime.onnx_file import OnnxHeader
from runtime.runners.base import one_line
from runtime.runners.onnxruntime import OnnxRuntimeRunner

DOMAIN, VERSION = "edgefold", 1
PORTABLE = "onnx"  # the same model on standard operators


class PackedRunner(OnnxRuntimeRunner):
    """Runs a packed binary model: its operators come from a library beside the engine."""

    def _configure(self, options: Any, header: OnnxHeader) -> None:
        version = header.opsets.get(DOMAIN, VERSION)
        if version > VERSION:
            raise BundleError(
                f"{self.path}: needs version {version} of the operators {DOMAIN!r}, and this edgefold has {VERSION}",
                remedy="Install the edgefold version that wrote the bundle, or export it again.",
            )
        try:
            library = library_path()
        except (MissingExtraError, EngineError) as error:
            raise type(error)(error.message, remedy=f"{error.remedy}\n{self._way_out()}".strip()) from error
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:  # its exception types are private and differ between versions
            raise EngineError(
                f"{library}: onnxruntime {self.version} does not take these operators: {one_line(error)}",
                remedy=f"{self._upgrade(header)}\n{self._way_out()}".strip(),
            ) from error

    def _way_out(self) -> str:
        if PORTABLE not in self.bundle.formats:
            return ""
        return f"Or run --format {PORTABLE}: the same model on standard operators, with the same results but slower."
