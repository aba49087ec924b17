"""What an ONNX file holds, read without onnx: inputs and outputs, operators, and the size of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.onnx_file import operators_from_bytes
from runtime.onnx_signature import Value, signature_from_bytes


@dataclass(frozen=True)
class GraphSummary:
    """operators: how often which is used, most first. weights: how many numbers of which data type the file carries."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: Mapping[str, int]
    weights: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        tensors = {
            what: [{"name": each.name, "dtype": each.dtype, "shape": list(each.axes or ())} for each in values]
            for what, values in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        return {**tensors, "operators": dict(self.operators), "weights": dict(self.weights)}


def summary_from_bytes(data: bytes, name: str) -> GraphSummary:
    """Read a model's bytes; `name` is what error messages call it. Raises BundleError where it is not a whole model."""
    nodes = operators_from_bytes(data, name).nodes
    used = Counter(node.kind if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.kind}" for node in nodes)
    operators = dict(sorted(used.items(), key=lambda each: (-each[1], each[0])))
    signature = signature_from_bytes(data, name)
    return GraphSummary(signature.inputs, signature.outputs, operators, signature.weights)
