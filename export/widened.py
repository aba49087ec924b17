"""A bundle's bfloat16 model where no engine has bfloat16: its arithmetic in float32, rounded to bfloat16."""

from __future__ import annotations

from export.to_bf16 import widened_from_bf16
from runtime.runners.onnxruntime import OnnxRuntimeRunner

NOTE = "computed in float32 with every result rounded to bfloat16: no engine here has bfloat16"


class WidenedRunner(OnnxRuntimeRunner):
    """Runs the bfloat16 model of a bundle by `widened_from_bf16`: for its results, never for its speed."""

    def _check_loaded(self) -> None:
        super()._check_loaded()
        self.notes = (NOTE,)

    def _read_model(self) -> bytes:
        return widened_from_bf16(super()._read_model())
