"""Opens and runs nodes of the domain `edgefold` that are wrong in some way, and counts the answers.

    python malformed_nodes.py LIBRARY COUNT SEED [unlimited]

Prints a JSON object: how many nodes each kind of damage made, and how many of them were refused. Fails where a damaged
node that cannot have a meaning is accepted, or a sound one is not. A crash ends the process, which is what the test
looks for.
"""

from __future__ import annotations

import collections
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MEMORY = 6 << 30  # what a node asks beyond it is refused by the system, and must be by the operator
MOST_ELEMENTS = 1 << 22
TYPES = (np.float32, np.uint32, np.int32, np.uint8, np.int64, np.float64, np.float16, np.bool_, np.uint64)
ODD = (
    0,
    -1,
    -2,
    2,
    3,
    31,
    33,
    1 << 16,
    (1 << 16) + 1,
    1 << 24,
    1 << 31,
    -(1 << 31),
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)
SIZES = (0, 1, 2, 3, 5, 31, 32, 33, 64, 257)
CHANNELWISE = ("scale", "bias", "slope", "slope_after", "sign_scale", "sign_bias")
LAYER = ("X", "W", "scale", "bias", "slope", "residual", "slope_after", "sign_scale", "sign_bias")
FORM = ("strides", "dilations", "pads")


@dataclass(frozen=True)
class Kind:
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    integers: tuple[str, ...]
    lists: tuple[str, ...] = ()


KINDS = {
    "Binarize": Kind(("X", "scale", "bias"), ("X",), ("group",)),
    "BinaryConv": Kind(LAYER, LAYER[:4], ("channels", "group", "out_group", "pad_value"), FORM),
    "BinaryGemm": Kind(LAYER, LAYER[:4], ("channels", "out_group")),
    "FixedConv": Kind(LAYER, LAYER[:4], ("levels", "group", "out_group"), FORM),
    "Pool": Kind(("X",), ("X",), (), ("kernel_shape", "strides", "pads")),
}


@dataclass
class Node:
    kind: str
    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]  # by the operator's name of it, in its order
    outputs: list[str]
    variable: set[str] = field(default_factory=lambda: {"X", "residual"})
    extra_inputs: int = 0
    omitted: set[str] = field(default_factory=set)  # named, but nothing is there

    def model(self) -> bytes:
        names = [name if name in self.inputs or name in self.omitted else "" for name in KINDS[self.kind].inputs]
        while names and not names[-1]:
            names.pop()
        names += ["X"] * self.extra_inputs
        node = NodeProto(op_type=self.kind, domain="edgefold", input=names, output=self.outputs)
        for name, value in self.attributes.items():
            node.attribute.append(value if isinstance(value, AttributeProto) else helper.make_attribute(name, value))
        graph = GraphProto(name="malformed", node=[node])
        for name, value in self.inputs.items():
            if name in self.variable:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
            else:
                graph.initializer.append(numpy_helper.from_array(value, name))
        for name in filter(None, self.outputs):
            kind = TensorProto.FLOAT if name.startswith("Y") else TensorProto.UINT32
            graph.output.append(helper.make_tensor_value_info(name, kind, None))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("edgefold", 1)]
        return ModelProto(ir_version=8, graph=graph, opset_import=opsets).SerializeToString()

    def feed(self) -> dict[str, np.ndarray]:
        return {name: self.inputs[name] for name in self.variable if name in self.inputs}


def sound_node(rng: np.random.Generator) -> Node:
    kind = str(rng.choice(list(KINDS)))
    group = int(rng.choice([1, 1, 2, 3])) if kind != "BinaryGemm" else 1
    channels = group * int(rng.integers(1, 40))
    batch, height, width = int(rng.integers(1, 3)), int(rng.integers(3, 7)), int(rng.integers(3, 7))
    if kind == "Binarize":
        shape = (batch, height, width, channels) if rng.random() < 0.7 else (batch, channels)
        inputs = {"X": rng.normal(size=shape).astype(np.float32)}
        if rng.random() < 0.5:
            inputs |= {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "bias")}
        return Node(kind, {"group": group}, inputs, ["B"])
    if kind == "Pool":
        mode = str(rng.choice(["max", "mean"]))
        pads = [1, 0, 1, 1] if mode == "max" else [0] * 4
        attributes = {"mode": mode, "kernel_shape": [2, 2], "strides": [2, 1], "pads": pads}
        return Node(
            kind, attributes, {"X": rng.normal(size=(batch, height, width, channels)).astype(np.float32)}, ["Y"]
        )
    words = -(-channels // group // 32)
    outputs = group * int(rng.integers(1, 20))
    attributes: dict[str, Any] = {"channels": channels} if kind != "FixedConv" else {}
    if kind != "BinaryGemm":
        high, wide = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        x_shape, w_shape = (batch, height, group * words, width), (outputs, high, wide, words)
        attributes |= {"strides": [1, 2], "dilations": [1, 1], "pads": [1, 0, 1, 2], "group": group}
        if kind == "BinaryConv":
            attributes["pad_value"] = int(rng.integers(-1, 2))
        else:
            attributes |= {"input_scale": 64.0, "levels": 255}
            x_shape, w_shape = (batch, height, width, channels), (outputs, high, wide, channels // group)
        y_shape = (batch, height + 2 - high + 1, (width + 2 - wide) // 2 + 1, outputs)
    else:
        x_shape, w_shape, y_shape = (batch, words), (outputs, words), (batch, outputs)
    every = {
        "X": _operand(rng, x_shape, np.float32 if kind == "FixedConv" else np.uint32),
        "W": _operand(rng, w_shape, np.int8 if kind == "FixedConv" else np.uint32),
        "residual": rng.normal(size=y_shape).astype(np.float32),
        **{name: rng.normal(size=outputs).astype(np.float32) for name in CHANNELWISE},
    }
    left_out = {name for name in ("slope", "residual", "slope_after") if rng.random() < 0.5}
    left_out |= {"sign_scale", "sign_bias"} if rng.random() < 0.5 else set()
    node_outputs = [["Y"], ["", "B"], ["Y", "B"]][int(rng.integers(3))]
    return Node(kind, attributes, {n: every[n] for n in LAYER if n not in left_out}, node_outputs)


def _operand(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if dtype == np.float32:
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


# Each damages a node in place, and returns whether what is left certainly has no meaning.


def integer_out_of_range(node: Node, rng: np.random.Generator) -> bool:
    if not KINDS[node.kind].integers:
        return list_out_of_range(node, rng)
    name = str(rng.choice(KINDS[node.kind].integers))
    value = node.attributes[name] = int(rng.choice(np.array(ODD, dtype=np.int64)))
    return value < (-1 if name == "pad_value" else 1) or value > 1 << 24


def list_out_of_range(node: Node, rng: np.random.Generator) -> bool:
    if not KINDS[node.kind].lists:
        return integer_out_of_range(node, rng)
    name = str(rng.choice(KINDS[node.kind].lists))
    values = [1] * (4 if name == "pads" else 2)
    value = values[int(rng.integers(len(values)))] = int(rng.choice(np.array(ODD, dtype=np.int64)))
    node.attributes[name] = values
    return value < (1 if name in ("strides", "dilations") else 0) or value > 1 << 16


def list_of_another_length(node: Node, rng: np.random.Generator) -> bool:
    if not KINDS[node.kind].lists:
        return integer_out_of_range(node, rng)
    name = str(rng.choice(KINDS[node.kind].lists))
    length = int(rng.choice([0, 1, 3, 5, 1000]))
    node.attributes[name] = AttributeProto(name=name, type=AttributeProto.INTS, ints=[1] * length)
    return True


def attribute_of_another_type(node: Node, rng: np.random.Generator) -> bool:
    kind = KINDS[node.kind]
    name = str(rng.choice([*kind.integers, *kind.lists]))
    another = 1 if name in kind.lists else [1, 1]
    values: list[Any] = [1.0, "1", [1.0, 2.0], another, ["a"]]
    value = node.attributes[name] = values[int(rng.integers(len(values)))]
    return value != ["a"]  # which the interface has no way to tell from an absent attribute


def grid_or_mode(node: Node, rng: np.random.Generator) -> bool:
    if node.kind == "Pool":
        node.attributes["mode"] = [b"median", b"", b"MAX", b"max\0", 1, 2.0, b"m" * 100_000][int(rng.integers(7))]
        return True
    if node.kind != "FixedConv":
        return integer_out_of_range(node, rng)
    damage = int(rng.integers(3))
    if damage == 0:
        node.attributes["input_scale"] = float(rng.choice([0.0, -0.0, -2.0, 3.0, np.nan, np.inf, -np.inf, 1.1]))
    elif damage == 1 and "W" in node.inputs and node.inputs["W"].ndim > 0 and node.inputs["W"].dtype == np.int8:
        node.attributes["levels"] = 32767
        node.inputs["W"] = np.full_like(node.inputs["W"], -128)
        return node.inputs["W"].size // max(len(node.inputs["W"]), 1) * 128 * 32767 >= 1 << 24
    else:
        node.attributes["input_scale"] = [1, "2", [1.0]][int(rng.integers(3))]
    return True


def attribute_missing(node: Node, rng: np.random.Generator) -> bool:
    required = [
        name for name in ("channels", "levels", "input_scale", "mode", "kernel_shape") if name in node.attributes
    ]
    if not required:
        return integer_out_of_range(node, rng)
    del node.attributes[str(rng.choice(required))]
    return True


def unknown_attribute(node: Node, rng: np.random.Generator) -> bool:
    node.attributes["nonsense"] = int(rng.integers(10))
    return False


def input_of_another_type(node: Node, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(node.inputs)))
    before = node.inputs[name].dtype
    with np.errstate(all="ignore"):
        node.inputs[name] = np.nan_to_num(node.inputs[name]).astype(TYPES[int(rng.integers(len(TYPES)))])
    return node.inputs[name].dtype != before


def input_of_another_rank(node: Node, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(node.inputs)))
    array = node.inputs[name]
    rank = int(rng.integers(0, 7))
    # Binarize takes either of two ranks, whose channels may happen to fit.
    certain = rank != array.ndim and not (node.kind == "Binarize" and name == "X")
    node.inputs[name] = np.resize(array, tuple(rng.integers(1, 4, rank))).astype(array.dtype)
    return certain


def input_of_another_size(node: Node, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(node.inputs)))
    array = node.inputs[name]
    if array.ndim == 0:
        return False
    axis = int(rng.integers(array.ndim))
    shape = list(array.shape)
    size = int(rng.choice(SIZES))
    certain = size != shape[axis] and name in (*CHANNELWISE, "residual")
    shape[axis] = size
    if np.prod([float(size) for size in shape]) > MOST_ELEMENTS:  # another damage has made it huge
        return False
    node.inputs[name] = np.resize(array, shape).astype(array.dtype)
    return certain


def empty_input(node: Node, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(node.inputs)))
    array = node.inputs[name]
    shape = [0 if rng.random() < 0.5 else size for size in array.shape]
    node.inputs[name] = np.zeros(shape, array.dtype)
    return 0 in shape and name == "W"


def huge_dimensions(node: Node, rng: np.random.Generator) -> bool:
    """An X without elements may have sizes that no product of them fits."""
    array = node.inputs["X"]
    if array.ndim == 0:
        return False
    shape = [int(rng.choice([1, 2, 1 << 20, 1 << 30, 1 << 40])) if rng.random() < 0.6 else n for n in array.shape]
    while np.prod([float(max(size, 1)) for size in shape]) * 8 >= 2.0**63:
        shape[int(np.argmax(shape))] = 1
    shape[int(rng.integers(len(shape)))] = 0
    node.inputs["X"] = np.zeros(shape, array.dtype)
    return False


def huge_padding(node: Node, rng: np.random.Generator) -> bool:
    if "pads" not in KINDS[node.kind].lists:
        return huge_dimensions(node, rng)
    node.inputs.pop("residual", None)
    if rng.random() < 0.5:
        node.attributes["pads"] = [65536] * 4
        return True
    if node.kind == "Pool":
        size = int(rng.choice([1, 2, 65536]))
        node.attributes |= {"pads": [int(each) for each in rng.choice([2, 3, 65535], 4)], "kernel_shape": [size, size]}
        node.attributes["strides"] = [65536, 65536]
        return size < 65536
    node.attributes |= {"pads": [int(each) for each in rng.choice([0, 1, 500], 4)], "strides": [65536, 65536]}
    return False


def required_input_missing(node: Node, rng: np.random.Generator) -> bool:
    node.inputs.pop(str(rng.choice(KINDS[node.kind].required)), None)
    return True


def input_that_nothing_makes(node: Node, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(node.inputs)))
    node.inputs.pop(name)
    node.omitted.add(name)
    return True


def one_of_two(node: Node, rng: np.random.Generator) -> bool:
    names = ("scale", "bias") if node.kind == "Binarize" else ("sign_scale", "sign_bias")
    return node.inputs.pop(str(rng.choice(names)), None) is not None


def constant_that_varies(node: Node, rng: np.random.Generator) -> bool:
    names = [name for name in node.inputs if name not in node.variable]
    if not names:
        return False
    node.variable.add(str(rng.choice(names)))
    return True


def too_many_inputs(node: Node, rng: np.random.Generator) -> bool:
    node.extra_inputs = 20
    return True


def other_outputs(node: Node, rng: np.random.Generator) -> bool:
    choices = [[], [""], ["", ""], ["Y", "B", "Y2"], ["B", "Y"]]
    node.outputs = choices[int(rng.integers(len(choices)))]
    return True


def everything_at_random(node: Node, rng: np.random.Generator) -> bool:
    for damage in rng.choice(np.array(DAMAGES[:-1], dtype=object), 3):
        if node.inputs and "X" in node.inputs:
            damage(node, rng)
    return False


DAMAGES: list[Callable[[Node, np.random.Generator], bool]] = [
    integer_out_of_range,
    list_out_of_range,
    list_of_another_length,
    attribute_of_another_type,
    attribute_missing,
    grid_or_mode,
    unknown_attribute,
    input_of_another_type,
    input_of_another_rank,
    input_of_another_size,
    empty_input,
    huge_dimensions,
    huge_padding,
    required_input_missing,
    input_that_nothing_makes,
    one_of_two,
    constant_that_varies,
    too_many_inputs,
    other_outputs,
    everything_at_random,
]


def answer(node: Node, options: onnxruntime.SessionOptions) -> str:
    """Return the error, or nothing where the node ran."""
    try:
        session = onnxruntime.InferenceSession(node.model(), options, providers=["CPUExecutionProvider"])
        session.run(None, node.feed())
    except Exception as error:  # onnxruntime's classes are private
        return str(error) or "an error without a text"
    return ""


def main(library: str, count: int, seed: int, *, limited: bool = True) -> None:
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng = np.random.default_rng(seed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(library)
    made: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    by_operator = 0
    for i in range(count):
        node = sound_node(rng)
        if i % 50 == 0:
            problem = answer(node, options)
            if problem:
                sys.exit(f"seed {seed}, node {i}: a sound {node} was refused: {problem}")
            continue
        damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
        hopeless = damage(node, rng)
        problem = answer(node, options)
        if hopeless and not problem:
            sys.exit(f"seed {seed}, node {i}: {damage.__name__} was accepted: {node}")
        made[damage.__name__] += 1
        refused[damage.__name__] += bool(problem)
        by_operator += "edgefold::" in problem
    print(json.dumps({"made": made, "refused": refused, "by_operator": by_operator}))


if __name__ == "__main__":
    # A sanitizer's own memory is more than any limit.
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), limited=sys.argv[4:] != ["unlimited"])
