"""A quantised student in QONNX, the form that FPGA flows such as FINN and hls4ml read.

Every grid is one `Quant` node (Pappalardo et al. 2022, "QONNX: representing arbitrary-precision quantized neural
networks") on float tensors, so that weights of 2 or 3 bits say that they have 2 or 3. The file brings a definition of
`Quant` in standard operators along, as a function of its own: any ONNX Runtime runs it as it stands, and so it is
verified like every other form. The package `qonnx` computes the same of it (version 1.0 with onnx 1.19, batch set to 1:
2.8e-7 deviations apart); it is not needed here, and with newer versions of onnx it does not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from export.onnx_graph import Node, model_from_parts
from export.to_qdq import Grid, GridGraph, GridWeight
from runtime.errors import ExportError

DOMAIN = "qonnx.custom_op.general"


def qonnx_from_onnx(model: bytes) -> bytes:
    """Return the exported graph of a quantised student with a Quant node for every grid.

    Raises ExportError where the graph has no grids, or where weights are on none.
    """
    draft = GridGraph(model)
    constants = dict(draft.graph.constants)
    constants["quant.zero"] = np.array(0, np.float32)
    nodes: list[Node] = []
    written: dict[str, str] = {}
    for each in draft.nodes():
        if isinstance(each, Grid):
            constants[f"{each.output}.step"] = each.step
            signed = each.lowest < 0
            nodes.append(_quant(each.source, f"{each.output}.step", each.output, each.bits, constants, signed=signed))
            continue
        weight = draft.layers.get(each)
        if weight is None:
            nodes.append(each)
            continue
        if weight.name not in written:
            written[weight.name] = f"{weight.name}.quantized"
            scales = _along(weight, weight.scales)
            constants |= {f"{weight.name}.values": weight.levels * scales, f"{weight.name}.scales": scales}
            parts = (f"{weight.name}.values", f"{weight.name}.scales", written[weight.name])
            bits = weight.largest.bit_length() + 1
            nodes.append(_quant(*parts, max(bits, 2), constants, signed=True, narrow=True))
        attributes = {**each.attributes, "transB": 1} if each.operator == "Gemm" else each.attributes
        inputs = [each.inputs[0], written[weight.name], *each.inputs[2:]]
        nodes.append(Node(each.operator, inputs, each.outputs, attributes))
    made = model_from_parts(draft.graph.model, nodes, constants, shapes={}, opsets={DOMAIN: 1}, metadata={})
    made.functions.append(_definition(made.opset_import[0].version))
    try:
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        raise ExportError(f"the QONNX graph is not valid ONNX: {' '.join(str(error).split())}") from error
    return bytes(made.SerializeToString(deterministic=True))


def _along(weight: GridWeight, values: np.ndarray) -> np.ndarray:
    """Return values (channels,) in the shape that multiplies the weights."""
    return values.reshape([-1 if place == weight.axis else 1 for place in range(weight.levels.ndim)])


def _quant(
    source: str,
    step: str,
    output: str,
    bits: int,
    constants: dict[str, np.ndarray],
    *,
    signed: bool,
    narrow: bool = False,
) -> Node:
    constants[f"quant.bits{bits}"] = np.array(bits, np.float32)
    attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
    return Node("Quant", [source, step, "quant.zero", f"quant.bits{bits}"], [output], attributes, DOMAIN)


def _definition(opset: int) -> onnx.FunctionProto:
    """Return Quant(x, scale, zero point, bits): −2^(bits − 1) ... 2^(bits − 1) − 1, from 0 on where it is not signed.

    narrow: without the lowest level of signed numbers, or the highest of the others. Halves are rounded to even.
    """
    one = helper.make_tensor("one", onnx.TensorProto.FLOAT, (), [1.0])
    two = helper.make_tensor("two", onnx.TensorProto.FLOAT, (), [2.0])
    nodes = [
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Constant", [], ["two"], value=two),
        *_attribute("signed"),
        *_attribute("narrow"),
        helper.make_node("Sub", ["bits", "signed"], ["exponent"]),
        helper.make_node("Pow", ["two", "exponent"], ["count"]),  # of levels on one side
        helper.make_node("Sub", ["narrow", "count"], ["below"]),
        helper.make_node("Mul", ["signed", "below"], ["lowest"]),
        helper.make_node("Sub", ["one", "signed"], ["unsigned"]),
        helper.make_node("Mul", ["unsigned", "narrow"], ["cut"]),
        helper.make_node("Sub", ["count", "one"], ["above"]),
        helper.make_node("Sub", ["above", "cut"], ["highest"]),
        helper.make_node("Div", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "zero"], ["shifted"]),
        helper.make_node("Round", ["shifted"], ["rounded"]),
        helper.make_node("Max", ["rounded", "lowest"], ["raised"]),
        helper.make_node("Min", ["raised", "highest"], ["level"]),
        helper.make_node("Sub", ["level", "zero"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["y"]),
    ]
    inputs = ["x", "scale", "zero", "bits"]
    return helper.make_function(
        DOMAIN, "Quant", inputs, ["y"], nodes, [helper.make_opsetid("", opset)], ["signed", "narrow", "rounding_mode"]
    )


def _attribute(name: str) -> Sequence[onnx.NodeProto]:
    """Return the nodes that make an attribute of the function, an integer, a float tensor of that name."""
    constant = helper.make_node("Constant", [], [f"{name}.int"])
    constant.attribute.append(onnx.AttributeProto(name="value_int", type=onnx.AttributeProto.INT, ref_attr_name=name))
    return constant, helper.make_node("Cast", [f"{name}.int"], [name], to=onnx.TensorProto.FLOAT)
