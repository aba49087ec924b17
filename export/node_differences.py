"""How two nodes that should do the same differ, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper


def node_differences(
    node: onnx.NodeProto,
    reference: onnx.NodeProto,
    constants: Mapping[str, np.ndarray],
    reference_constants: Mapping[str, np.ndarray],
    *,
    tolerance: float,
) -> tuple[str, ...]:
    """Say how two nodes differ in operator, attributes, and the constants that they read; empty where they do not.

    constants: of each one's graph, by name. tolerance: what a constant's numbers may differ by, in standard deviations
    of the reference's.
    """
    if (node.domain, node.op_type) != (reference.domain, reference.op_type):
        return (f"it is {node.op_type} here and {reference.op_type} there",)
    said = []
    attributes, expected = _attributes(node), _attributes(reference)
    for name in sorted({*attributes, *expected}):
        if attributes.get(name) != expected.get(name):
            said.append(f"{name} is {_shown(attributes.get(name))} here and {_shown(expected.get(name))} there")
    for i, (mine, theirs) in enumerate(zip(node.input, reference.input, strict=False)):
        if mine in constants and theirs in reference_constants:
            what = f"its constant '{mine}' (input {i})"
            said += _constant_differences(what, constants[mine], reference_constants[theirs], tolerance)
    if len(node.input) != len(reference.input):
        said.append(f"it reads {len(node.input)} values here and {len(reference.input)} there")
    return tuple(said)


def is_number(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf"


def _constant_differences(what: str, mine: np.ndarray, theirs: np.ndarray, tolerance: float) -> Sequence[str]:
    if mine.shape != theirs.shape:
        return [f"{what} has shape {list(mine.shape)} here and {list(theirs.shape)} there"]
    if not is_number(mine) or not is_number(theirs) or not mine.size:
        return []
    came, expected = mine.astype(np.float64), theirs.astype(np.float64)
    error = np.nan_to_num(np.where(came == expected, 0.0, np.abs(came - expected)), nan=np.inf)
    spread = float(expected.std()) or float(np.abs(expected).max()) or 1.0
    unlike = int((error > tolerance * spread).sum())
    if not unlike:
        return []
    at = np.unravel_index(int(error.argmax()), error.shape)
    place = f" at [{', '.join(map(str, at))}]" if at else ""
    numbers = f"differs in {unlike:,} of {error.size:,} numbers, most{place}"
    return [f"{what} {numbers}: {came[at]:.6g} here and {expected[at]:.6g} there"]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute if each.type != each.GRAPH}


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "absent" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
