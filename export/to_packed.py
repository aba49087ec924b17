"""A simulated binary graph as the packed one: weights and activations of one bit, by the operators of `runtime/ops`.

What torch exports of a binary student is a simulation: signs as floats, convolutions of ±1 weights in float32, with
their scales and batch norms around them. Here every binary layer with its surroundings becomes one
`edgefold::BinaryConv` or `BinaryGemm`, activations between them are channels last, and where only signs go on, only
bits do. The arithmetic is the simulation's own, operation for operation, so that results are equal and not merely
close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from export.binary_layers import (
    PRODUCTS,
    PackedLayer,
    SignSource,
    find_binary_layers,
    name_of,
    take_surroundings,
)
from export.channels_last import TO_FIRST, TO_LAST, channels_last_form, has_channels_last_form, is_pointwise
from export.grid_layers import find_grid_layers, find_mean_pools, pool_form, steps_of
from export.onnx_graph import Node, OnnxGraph, Shape, model_from_parts, without_unread
from export.rewrites import merge_slices, pool_before_affine
from runtime.errors import ExportError

DOMAIN, VERSION = "edgefold", 1
VERSION_KEY = "edgefold.ops"  # among the metadata of a model

# No float32 lies outside: it keeps ONNX Runtime from folding a factor into the weights of the convolution before it,
# which would round other products.
_LIMIT = np.finfo(np.float32).max
_FEW = 256  # weights that are not worth two more nodes


@dataclass(eq=False)
class Draft:
    """A graph that is being written.

    shapes: element type and shape of what the packed operators give. weights: those of a layer, as ±1, by its first
    output.
    """

    source: OnnxGraph
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, Shape]] = field(default_factory=dict)
    layers: list[PackedLayer] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Return the name of a constant; equal ones are one."""
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self.known:
            self.known[key] = unused_name(name, self.constants)
            self.constants[self.known[key]] = value
        return self.known[key]

    def to_model(self, opsets: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
        """Serialise what the outputs need; the same draft gives the same bytes."""
        nodes = without_unread(self.nodes, [each.name for each in self.source.outputs])
        made = {name for node in nodes for name in node.outputs}
        shapes = {name: shape for name, shape in self.shapes.items() if name in made}
        model = model_from_parts(
            self.source.model, nodes, self.constants, shapes=shapes, opsets=opsets, metadata=metadata
        )
        try:
            onnx.checker.check_model(model)
        except Exception as error:  # the checker raises types of its own
            raise ExportError(f"the binary graph is not valid ONNX: {error}") from error
        return bytes(model.SerializeToString(deterministic=True))


def packed_from_onnx(model: bytes, *, layers: Mapping[str, str]) -> bytes:
    """Return a simulated graph (`export.to_onnx`) as a packed one.

    layers: the operator of each binary layer by its name in the exported module (`export.layers.binary_layers`).
    Raises ExportError where a layer would stay float, or where there is no binary layer at all.
    """
    draft = packed_draft(model, layers=layers, strict=True, grid=True)
    return draft.to_model({DOMAIN: VERSION}, {VERSION_KEY: str(VERSION)})


def packed_draft(model: bytes, *, layers: Mapping[str, str], strict: bool, grid: bool) -> Draft:
    """Return the packed graph as it was drafted, for what makes another form of it.

    strict: refuse products of signs with weights that are no signs, too. grid: real convolutions on grids of powers of
    two and poolings are packed operators as well.
    """
    graph = OnnxGraph(onnx.load_model_from_string(model))
    merge_slices(graph)
    on_grid = find_grid_layers(graph) if grid else []
    pool_before_affine(graph, but={layer.node for layer in on_grid})
    found = find_binary_layers(graph, strict=strict)
    _require_all(graph, found, layers)
    order = {node: place for place, node in enumerate(graph.nodes)}
    draft = Draft(graph, layers=sorted([*found, *on_grid], key=lambda layer: order[layer.node]))
    take_surroundings(graph, draft.layers)
    _Writer(draft, grid=grid).write()
    return draft


def unused_name(name: str, used: Mapping[str, object]) -> str:
    """Return `name`, or with a number behind it the first one that is free."""
    number, free = 2, name
    while free in used:
        free, number = f"{name}_{number}", number + 1
    return free


def packed_weights(weight: np.ndarray) -> np.ndarray:
    """Return ±1 weights (outputs, C, height, width) or (outputs, C) as bits, a word of 32 channels last."""
    if weight.ndim == 4:
        weight = weight.transpose(0, 2, 3, 1)
    bits = np.packbits(weight < 0, axis=-1, bitorder="little")
    filled = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 4)])
    return np.ascontiguousarray(filled).view("<u4")


def words(channels: int, groups: int) -> int:
    """Return the words of 32 bits that `channels` in `groups` take."""
    return groups * -(-channels // groups // 32)


def _require_all(graph: OnnxGraph, found: Sequence[PackedLayer], expected: Mapping[str, str]) -> None:
    """Raise ExportError unless every layer that says that it is binary was found.

    There may be fewer of them, as the exporter makes one of equal layers with equal inputs. Of a layer that was not
    found there is a product left over, by its weights of one magnitude or by weights that are not constant.
    """
    if not found and not expected:
        raise ExportError(
            "the model has no binary layers, so there is nothing to pack",
            remedy="Leave `packed` out of `formats`, or choose a binary model.",
        )
    names, packed = {each.name for each in found}, {each.node for each in found}
    if len(found) >= len(expected):
        return
    left = [node for node in graph.nodes if node.operator in PRODUCTS and node not in packed and _may_be(graph, node)]
    named = [name for name in (name_of(graph, node) for node in left) if name in expected]
    float_layers = named or [name for name in expected if name not in names]
    if left or not found:
        raise ExportError(
            f"{len(expected)} layers are binary, but {len(found)} are so in the exported graph; "
            "these would stay float: " + ", ".join(f"{name} ({expected[name]})" for name in float_layers),
            remedy="Between signs and such a layer only padding with 0, 1 or -1 may stand, its weights must be "
            "constant and ± one magnitude per output.",
        )


def _may_be(graph: OnnxGraph, node: Node) -> bool:
    """Whether a product may have been meant to be binary."""
    weight = graph.constant(node, 1)
    if weight is None:
        return True
    by_output = np.abs(weight.reshape(len(weight), -1) if node.operator != "MatMul" else weight.T)
    return bool(by_output.size and (by_output == by_output[:, :1]).all() and by_output.shape[1] > 1)


class _Writer:
    """Goes through the simulated graph in its order and writes the packed one into the draft."""

    def __init__(self, draft: Draft, *, grid: bool) -> None:
        self.draft, self.graph = draft, draft.source
        self.plain = {each.name for each in self.graph.inputs}  # values that are there as in the simulated graph
        self.last: dict[str, str] = {}  # values that are there channels last, and under which names
        self.bits: list[tuple[SignSource, int, str]] = []  # signs that are there, and for how many groups
        self.at = {layer.last: layer for layer in draft.layers}
        self.fused = {node for layer in draft.layers for node in layer.nodes}
        self.grid = grid
        self.means = find_mean_pools(self.graph) if grid else {}  # by the node that makes them
        self.live = self._live_nodes()
        self.wanted = self._wanted_channels_last()
        self.exact = self._reaching_signs()

    def write(self) -> None:
        for node in self.graph.nodes:
            if node in self.at:
                self._write_layer(self.at[node])
            elif node in self.live:
                self._write_node(node)
        for output in self.graph.outputs:
            self._plain(output.name)

    def _live_nodes(self) -> set[Node]:
        """Return the nodes that are still needed where layers and poolings read from where they begin."""
        values, live = {each.name for each in self.graph.outputs}, set()
        for node in reversed(self.graph.nodes):
            if node in self.at:
                layer = self.at[node]
                values.update(name for name in (layer.source.value, layer.residual) if name)
            elif node not in self.fused and values.intersection(node.outputs):
                live.add(node)
                values.update([self.means[node]] if node in self.means else node.inputs)
        return live

    def _wanted_channels_last(self) -> set[str]:
        """Return the values that binary layers read, and those that these are made of, as far as that is possible."""
        read = {name for layer in self.draft.layers for name in (layer.source.value, layer.residual) if name}
        wanted = {name for name in read if self.graph.rank(name) == 4}
        for node in reversed(self.graph.nodes):
            if node in self.means and node in self.live:
                wanted.add(self.means[node])
            elif wanted.intersection(node.outputs) and self._has_channels_last_form(node):
                wanted.update(name for name in node.inputs if self.graph.rank(name) == 4)
        return wanted - set(self.graph.constants)

    def _reaching_signs(self) -> set[Node]:
        """Return the nodes whose results reach a binary layer, where one rounding turns a sign over."""
        values = {layer.node.inputs[0] for layer in self.draft.layers if layer.is_binary}
        found = set()
        for node in reversed(self.graph.nodes):
            if values.intersection(node.outputs):
                found.add(node)
                values.update(node.inputs)
        return found

    def _write_layer(self, layer: PackedLayer) -> None:
        constant, outputs = self.draft.constant, layer.outputs
        residual = "" if layer.residual is None else self._real(layer.residual)
        signs = self._signs_read_from(layer.value)
        inputs = [
            *self._input_and_weight(layer),
            constant(f"{layer.name}.scale", layer.scale),
            constant(f"{layer.name}.bias", layer.bias),
            "" if layer.slope is None else constant(f"{layer.name}.slope", layer.slope),
            residual,
            "" if layer.slope_after is None else constant(f"{layer.name}.slope_after", layer.slope_after),
            *self._affine(layer.name, signs[0]),
        ]
        attributes: dict[str, object] = {"channels": layer.channels} if layer.is_binary else {}
        if layer.rank == 4:
            attributes |= {"strides": layer.strides, "dilations": layer.dilations, "pads": layer.pads}
            attributes["group"] = layer.group
        if layer.operator == "BinaryConv":
            attributes["pad_value"] = layer.pad_value
        if not layer.is_binary:
            attributes |= {"input_scale": layer.input_scale, "levels": layer.levels}
        if signs[1] != 1:
            attributes["out_group"] = signs[1]
        real, bits = self._made(layer.value, layer.rank), f"{layer.value}_bits"
        self._emit(Node(layer.operator, _trimmed(inputs), [real, bits], attributes, DOMAIN))
        self.bits.append((*signs, bits))
        self.draft.weights[real] = layer.weight
        shape = self.graph.shape(layer.value) or (None,) * layer.rank
        batch, *sizes = shape if layer.rank == 2 else (shape[0], shape[2], shape[3], outputs)
        self.draft.shapes[real] = (onnx.TensorProto.FLOAT, (batch, *sizes))
        self.draft.shapes[bits] = (onnx.TensorProto.UINT32, _bits_shape((batch, *sizes), outputs, signs[1]))

    def _input_and_weight(self, layer: PackedLayer) -> list[str]:
        if layer.is_binary:
            bits = self._bits(layer.source, layer.group, layer.channels)
            return [bits, self.draft.constant(f"{layer.name}.bits", packed_weights(layer.weight))]
        whole = np.ascontiguousarray(layer.weight.transpose(0, 2, 3, 1))
        return [self._real(layer.source.value), self.draft.constant(f"{layer.name}.int8", whole)]

    def _signs_read_from(self, value: str) -> tuple[SignSource, int]:
        """Return the signs that the producer of `value` gives along with it: those of the first layer that reads it."""
        readers = [each for each in self.draft.layers if each.is_binary and each.source.value == value]
        return (readers[0].source, readers[0].group) if readers else (SignSource(value), 1)

    def _affine(self, name: str, signs: SignSource) -> list[str]:
        if signs.scale is None or signs.bias is None:
            return ["", ""]
        constant = self.draft.constant
        return [constant(f"{name}.sign_scale", signs.scale), constant(f"{name}.sign_bias", signs.bias)]

    def _bits(self, signs: SignSource, group: int, channels: int) -> str:
        """Return the name of the signs packed for `group` groups, packing them where nobody has yet."""
        for known, groups, name in self.bits:
            if groups == group and known.same_as(signs):
                return name
        x = self._real(signs.value)
        name = unused_name(f"{signs.value}_bits", self.draft.shapes)
        attributes = {"group": group} if group != 1 else {}
        self._emit(Node("Binarize", _trimmed([x, *self._affine(name, signs)]), [name], attributes, DOMAIN))
        self.bits.append((signs, group, name))
        shape = self.graph.shape(signs.value) or (None,) * (self.graph.rank(signs.value) or 4)
        shape = shape if len(shape) == 2 else (shape[0], shape[2], shape[3], channels)
        self.draft.shapes[name] = (onnx.TensorProto.UINT32, _bits_shape(shape, channels, group))
        return name

    def _write_node(self, node: Node) -> None:
        if node in self.means or (self.grid and self._pools(node)):
            return self._write_pool(node)
        if node.operator == "Transpose" and tuple(node.attributes.get("perm", ())) == TO_FIRST:
            self.last[node.outputs[0]] = self._plain(node.inputs[0])  # its input is it, channels last
        if self._goes_channels_last(node):
            return self._write_channels_last(node)
        inputs = [self._plain_input(name, node) for name in node.inputs]
        if node.operator == "Conv" and node.inputs[1] in self.graph.constants:
            inputs[1] = self._weight(node.inputs[1], self.graph.constants[node.inputs[1]])
        self._emit(Node(node.operator, inputs, node.outputs, node.attributes, node.domain))
        self.plain.update(node.outputs)
        return None

    def _pools(self, node: Node) -> bool:
        return pool_form(self.graph, node) is not None and self._goes_channels_last(node)

    def _write_pool(self, node: Node) -> None:
        """Write a pooling as a packed operator; one of the whole image may have to lose its axes of 1 behind it."""
        name = node.outputs[0]
        attributes = {"mode": "mean", "kernel_shape": (2, 2), "strides": (2, 2)}
        if node not in self.means:
            attributes = pool_form(self.graph, node) or {}
        x = self._real(self.means.get(node, node.inputs[0]))
        output = self._made(name, self.graph.rank(name) or 4)
        pooled = f"{name}_pooled" if output == name else output
        self._emit(Node("Pool", [x], [pooled], attributes, DOMAIN))
        batch, channels, *_ = self.graph.shape(node.inputs[0]) or (None, None)
        height, width = (self.graph.shape(name) or ())[2:] or (1, 1)
        self.draft.shapes[pooled] = (onnx.TensorProto.FLOAT, (batch, height, width, channels))
        if pooled != output:
            shape = self.draft.constant("flat", np.array([0, -1]))
            self._emit(Node("Reshape", [pooled, shape], [output]))

    def _has_channels_last_form(self, node: Node) -> bool:
        return has_channels_last_form(self.graph, node) or (self.grid and pool_form(self.graph, node) is not None)

    def _goes_channels_last(self, node: Node) -> bool:
        if not self._has_channels_last_form(node):
            return False
        only_last = any(name in self.last and name not in self.plain for name in node.inputs)
        return only_last or node.outputs[0] in self.wanted

    def _write_channels_last(self, node: Node) -> None:
        moving = [name for name in node.inputs if name and name not in self.graph.constants]
        inputs = {name: self._real(name) for name in moving}
        rank = self.graph.rank(node.outputs[0]) or 0
        output = self._made(node.outputs[0], rank)

        def constant(name: str, value: np.ndarray) -> str:
            return self._weight(name, value) if is_pointwise(self.graph, node) else self.draft.constant(name, value)

        for each in channels_last_form(self.graph, node, inputs, output, constant):
            self._emit(each)

    def _plain_input(self, name: str, reader: Node) -> str:
        """Return an input of a node that stays as it is; what is read as 1×1 images needs no transposition."""
        shape = self.graph.shape(name)
        flat = reader.operator in ("Reshape", "Flatten") and shape is not None and shape[2:] == (1, 1)
        if flat and name in self.last and name not in self.plain and name == reader.inputs[0]:
            return self.last[name]
        barrier = reader in self.exact and reader.operator in ("Mul", "Add", "Sub", "Div")
        if barrier and self.graph.made_by(name, "Conv") and name in self.plain:
            bounds = [self.draft.constant("bound", np.array(each, np.float32)) for each in (-_LIMIT, _LIMIT)]
            self._emit(Node("Clip", [name, *bounds], [f"{name}_apart"]))
            return f"{name}_apart"
        return self._plain(name)

    def _real(self, name: str) -> str:
        """Return the name of real activations as binary layers take them."""
        if self.graph.rank(name) != 4:
            return self._plain(name)
        if name not in self.last:
            self._emit(Node("Transpose", [self._plain(name)], [f"{name}_last"], {"perm": TO_LAST}))
            self.last[name] = f"{name}_last"
        return self.last[name]

    def _plain(self, name: str) -> str:
        """Return `name` after making sure that it is there as in the simulated graph."""
        if name in self.graph.constants:
            return self.draft.constant(name, self.graph.constants[name])
        if name and name not in self.plain:
            self._emit(Node("Transpose", [self.last[name]], [name], {"perm": TO_FIRST}))
            self.plain.add(name)
        return name

    def _made(self, name: str, rank: int) -> str:
        """Note that `name` is made now, channels last where it has four axes, and return what it is called then."""
        if rank != 4:
            self.plain.add(name)
            return name
        self.last[name] = f"{name}_last"
        return f"{name}_last"

    def _weight(self, name: str, value: np.ndarray) -> str:
        """Return a constant as 8-bit numbers and their steps where that is the same, else as it is.

        Cast and Mul, which every engine folds when it loads the model. ONNX Runtime keeps a DequantizeLinear and makes
        the product after it one of 4-bit blocks, with other roundings.
        """
        steps = steps_of(value) if value.size >= _FEW and value.dtype == np.float32 else None
        if steps is None or name not in self.graph.constants:
            return self.draft.constant(name, value)
        eight = self.draft.constant(f"{name}.int8", np.rint(value / steps).astype(np.int8))
        real = unused_name(f"{name}.real", {output: node for node in self.draft.nodes for output in node.outputs})
        self._emit(Node("Cast", [eight], [f"{real}.whole"], {"to": onnx.TensorProto.FLOAT}))
        self._emit(Node("Mul", [f"{real}.whole", self.draft.constant(f"{name}.steps", steps)], [real]))
        return real

    def _emit(self, node: Node) -> None:
        self.draft.nodes.append(node)


def _bits_shape(shape: Shape, channels: int, groups: int) -> Shape:
    batch, *image, _ = shape
    count = words(channels, groups)
    return (batch, image[0], count, image[1]) if image else (batch, count)


def _trimmed(inputs: list[str]) -> list[str]:
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs
