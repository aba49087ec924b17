"""A model of an earlier opset, for an engine that is too old for today's: the same values, and the IR of that time.

Forms are made at the opset of `export.to_onnx` and taken down when they are done, so they need to know of none other.
Neither the exporter nor onnx does it: torch's stops at 18, and onnx.version_converter (1.23) has no way down for Pad,
Split, LayerNormalization and, before 14, Mul, and leaves ReduceMean invalid.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import defs, helper, numpy_helper

from export.older_operators import REWRITES, Nodes, Values, values_of
from export.opsets import LEAST_OPSET, OPSET
from runtime.errors import ExportError

# Since then they have only come to take more types, or attributes whose default is what was done before.
_SAME = {
    "Add", "AveragePool", "BatchNormalization", "Cast", "Constant", "ConstantOfShape", "DequantizeLinear", "Div",
    "Equal", "GreaterOrEqual", "Identity", "IsNaN", "LeakyRelu", "LessOrEqual", "Mul", "PRelu", "Pow", "QuantizeLinear",
    "Relu", "Resize", "ScatterND", "Sub", "Where", *REWRITES,
}  # fmt: skip
_FUNCTIONS_SINCE = 15  # whose IR version is the first with functions in a model


def at_opset(model: bytes, opset: int) -> bytes:
    """Return an exported model as one of `opset`, from LEAST_OPSET to OPSET, and of its IR version.

    Names, inputs, outputs and metadata stay. Raises ExportError where an operator has no equal in that opset.
    """
    parsed = onnx.load_model_from_string(model)
    own = next(each.version for each in parsed.opset_import if not each.domain)
    if not LEAST_OPSET <= opset <= own:
        raise ExportError(
            f"opset {opset} for a model of opset {own}", remedy=f"Choose one from {LEAST_OPSET} to {OPSET}."
        )
    if parsed.functions and opset < _FUNCTIONS_SINCE:
        raise _refusal(f"{parsed.functions[0].name}, a function,", _FUNCTIONS_SINCE, opset, "can be part of a model")
    values = values_of(parsed)
    for part in (parsed.graph, *parsed.functions):
        nodes = [each for node in part.node for each in _older(node, own, opset, values)]
        del part.node[:]
        part.node.extend(nodes)
    for imports in (parsed.opset_import, *(function.opset_import for function in parsed.functions)):
        for each in imports:
            each.version = each.version if each.domain else opset
    _take_constants(parsed.graph, values)
    parsed.ir_version = helper.find_min_ir_version_for(parsed.opset_import, ignore_unknown=True)
    try:
        onnx.checker.check_model(parsed, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        reason = " ".join(str(error).split())
        raise ExportError(
            f"the model cannot be written in opset {opset}: {reason}", remedy="Choose a later one, or leave it out."
        ) from error
    return bytes(parsed.SerializeToString(deterministic=True))


def _older(node: onnx.NodeProto, own: int, opset: int, values: Values) -> Nodes:
    """Return what stands for a node in `opset`."""
    operator = node.op_type
    if node.domain:
        return [node]
    if any(each.HasField("g") for each in node.attribute):
        raise ExportError(f"{operator} has a graph of its own, which no exported form has")
    now = defs.get_schema(operator, own)
    try:
        if operator in REWRITES and opset < REWRITES[operator][0]:
            return REWRITES[operator][1](node, values)
        before = defs.get_schema(operator, opset)
    except ExportError as error:
        error.remedy = error.remedy or f"Choose opset {REWRITES[operator][0]} or a later one."
        raise
    except defs.SchemaError:
        raise _refusal(operator, now.since_version, opset, "is an operator") from None
    if before.since_version == now.since_version:
        return [node]
    new = [each for each in node.attribute if each.name not in before.attributes]
    if operator not in _SAME or len(node.input) > before.max_input:
        raise _refusal(operator, now.since_version, opset, "has its meaning")
    for each in new:
        if helper.get_attribute_value(each) != helper.get_attribute_value(now.attributes[each.name].default_value):
            raise _refusal(f"{operator}'s {each.name}", now.since_version, opset, "is an attribute")
    kept = onnx.NodeProto()
    kept.CopyFrom(node)
    del kept.attribute[:]
    kept.attribute.extend(each for each in node.attribute if each not in new)
    return [kept]


def _refusal(what: str, since: int, opset: int, means: str) -> ExportError:
    return ExportError(
        f"{what} {means} from opset {since} on, and opset {opset} is asked for",
        remedy=f"Choose opset {since} or a later one, or leave opset out.",
    )


def _take_constants(graph: onnx.GraphProto, values: Values) -> None:
    """Add what the nodes need, and drop what they no longer read."""
    read = set(_names_read(graph))
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.added.items())


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
    yield from (each.name for each in graph.output)
