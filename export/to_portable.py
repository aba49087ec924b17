"""A binary graph for an engine that has no packed operators: exact, and of standard operators only.

Signs are `uint8`, 2 for +1, 0 for -1 and 1 for what padding with 0 stands for, so that with a zero point of 1 a product
of 8-bit integers is the sum of ±1 itself; convolutions gather the taps of a kernel side by side first. It is made of
the packed graph, operator by operator, so both have one meaning. ONNX Runtime is 2 to 4 times as fast with it as with
float convolutions (`benchmarks/binary_net.py`).

What was tried and is not used, on one core with AVX-512 VNNI: one product per row of a kernel, and slices by rows and
then by columns, cost as much as a slice per tap; ConvInteger takes ten times as long; a quantised convolution cannot
hold the sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from export.channels_last import prelu
from export.onnx_graph import Node
from export.to_packed import DOMAIN, Draft, packed_draft, unused_name
from runtime.errors import ExportError

LONG_ENOUGH = 128  # channels beyond which a constant per channel is no slower than one of a whole row
GATHERED = 128  # channels from which gathering pixels is faster than slicing images

_POSITIVE, _NEITHER, _NEGATIVE = 2, 1, 0


def portable_from_onnx(model: bytes, *, layers: Mapping[str, str], strict: bool = False) -> bytes:
    """Return a simulated graph (`export.to_onnx`) as one of standard operators that gives the same results everywhere.

    layers, strict: as for `export.to_packed`. Without optimisation an engine computes the simulation right as well; but
    one that folds a scale into ±1 weights gives other sums, and a sign may turn over.
    """
    draft = packed_draft(model, layers=layers, strict=strict, grid=False)
    writer = _Expansion(draft)
    for node in draft.nodes:
        writer.write(node)
    draft.nodes = writer.nodes
    draft.shapes = {}
    return draft.to_model({}, {})


class _Expansion:
    """Writes the nodes of a packed draft with packed operators expanded."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.nodes: list[Node] = []
        self.rows: dict[tuple[str, int], str] = {}
        self.names: dict[str, object] = {name: None for node in draft.nodes for name in node.outputs}

    def write(self, node: Node) -> None:
        if node.domain != DOMAIN:
            self.nodes.append(node)
            return
        inputs = [*node.inputs, *[""] * (9 - len(node.inputs))]
        if node.operator == "Binarize":
            self._signs(inputs[0], inputs[1], inputs[2], node.outputs[0])
            return
        sums = self._convolved(node, inputs) if node.operator == "BinaryConv" else self._multiplied(node, inputs)
        y = self._add("Cast", [sums], node, to=onnx.TensorProto.FLOAT)
        steps = [("Mul", inputs[2]), ("Add", inputs[3]), ("PRelu", inputs[4]), ("Add", inputs[5]), ("PRelu", inputs[6])]
        for operator, operand in steps:
            slopes = self.draft.constants.get(operand)
            if slopes is not None:
                operand = self._along_rows(node, operand, slopes)
            if operator == "PRelu" and slopes is not None:
                output = self._unused(f"{node.outputs[0]}.PRelu")
                self.nodes += prelu(y, operand, slopes, output)
                y = output
            elif operand:
                y = self._add(operator, [y, operand], node)
        self.nodes[-1].outputs[0] = node.outputs[0]  # what the last one makes is the layer's
        self._signs(node.outputs[0], inputs[7], inputs[8], node.outputs[1])

    def _along_rows(self, node: Node, name: str, values: np.ndarray) -> str:
        """Return a constant per channel for all pixels of a row, which an engine unfolds when it loads the model.

        ONNX Runtime works in runs as long as the constant; 64 channels take half as long so.
        """
        if node.operator != "BinaryConv" or len(values) > LONG_ENOUGH:
            return name
        width = self._sides(node.outputs[0], 1, 2)[1]
        if (name, width) not in self.rows:
            self.rows[name, width] = self._unused(f"{name}.row")
            shape = self.draft.constant("row", np.array([width, len(values)]))
            self.nodes.append(Node("Expand", [name, shape], [self.rows[name, width]]))
        return self.rows[name, width]

    def _signs(self, x: str, scale: str, bias: str, output: str) -> None:
        if scale:
            x = self._make("Add", [self._make("Mul", [x, scale], output), bias], output)
        positive = self._make("GreaterOrEqual", [x, self.draft.constant("zero", np.array(0, np.float32))], output)
        values = [self._number("positive", _POSITIVE), self._number("negative", _NEGATIVE)]
        self.nodes.append(Node("Where", [positive, *values], [output]))

    def _multiplied(self, node: Node, inputs: list[str]) -> str:
        weight = self.draft.weights[node.outputs[0]]  # (outputs, C)
        return self._product(inputs[0], self.draft.constant(f"{node.outputs[0]}.weight", weight.T), node)

    def _convolved(self, node: Node, inputs: list[str]) -> str:
        weight, group = self.draft.weights[node.outputs[0]], node.attributes["group"]
        outputs, channels, height, width = weight.shape
        if group == 1 and channels >= GATHERED and height * width > 1:
            matrix = weight.transpose(2, 3, 1, 0).reshape(-1, outputs)  # (taps * C, outputs)
            x = self._gathered(node, inputs[0], channels, height, width)
            return self._product(x, self.draft.constant(f"{node.outputs[0]}.weight", matrix), node)
        taps = self._taps(node, self._padded(node, inputs[0]), height, width)
        by_group = weight.reshape(group, outputs // group, channels, height * width).transpose(0, 3, 2, 1)
        table = by_group.reshape(group, height * width * channels, outputs // group)  # (G, taps * C/G, outputs / G)
        name = f"{node.outputs[0]}.weight"
        if group == 1:
            x = taps[0] if len(taps) == 1 else self._add("Concat", taps, node, axis=3)
            return self._product(x, self.draft.constant(name, table[0]), node)
        # (N, H, W, C) → (N, H, W, G, taps * C/G) → (N, H, G, W, ...), a product of matrices for each row and group.
        split = self.draft.constant("split", np.array([0, 0, 0, group, channels]))
        parts = [self._add("Reshape", [tap, split], node) for tap in taps]
        x = parts[0] if len(parts) == 1 else self._add("Concat", parts, node, axis=4)
        x = self._add("Transpose", [x], node, perm=(0, 1, 3, 2, 4))
        product = self._product(x, self.draft.constant(name, table), node)  # (N, H, G, W, outputs / G)
        product = self._add("Transpose", [product], node, perm=(0, 1, 3, 2, 4))
        return self._add("Reshape", [product, self.draft.constant("joined", np.array([0, 0, 0, outputs]))], node)

    def _gathered(self, node: Node, x: str, channels: int, height: int, width: int) -> str:
        """Return the taps of the kernel side by side, (N, H, W, taps * C), gathered pixel by pixel.

        Pixels of an image lie in a row then, and behind the last one there is one more, that of the padding.
        """
        rows, columns = self._sides(node.outputs[0], 1, 2)
        high, wide = self._sides(x, 1, 3)
        (top, left, _, _), (down, right) = node.attributes["pads"], node.attributes["strides"]
        below, beside = node.attributes["dilations"]
        i = (np.arange(rows) * down - top)[:, None] + np.arange(height) * below  # (rows, height)
        j = (np.arange(columns) * right - left)[:, None] + np.arange(width) * beside  # (columns, width)
        i, j = i[:, None, :, None], j[None, :, None, :]
        inside = (i >= 0) & (i < high) & (j >= 0) & (j < wide)
        pixels = np.where(inside, i * wide + j, high * wide).reshape(-1).astype(np.int32)
        constant = self.draft.constant
        x = self._add("Reshape", [x, constant("pixels", np.array([0, high * wide, channels]))], node)
        outside = self._number("outside", _NEITHER + node.attributes["pad_value"])
        x = self._add("Pad", [x, constant("pads", np.array([0, 0, 0, 0, 1, 0])), outside], node)
        x = self._add("Gather", [x, constant("taps", pixels)], node, axis=1)
        shape = np.array([0, rows, columns, height * width * channels])
        return self._add("Reshape", [x, constant("image", shape)], node)

    def _padded(self, node: Node, x: str) -> str:
        top, left, bottom, right = node.attributes["pads"]
        if not any(node.attributes["pads"]):
            return x
        outside = _NEITHER + node.attributes["pad_value"]
        pads = self.draft.constant("pads", np.array([0, top, left, 0, 0, bottom, right, 0]))
        return self._add("Pad", [x, pads, self._number("outside", outside)], node)

    def _taps(self, node: Node, x: str, height: int, width: int) -> list[str]:
        """Return what each tap of the kernel reads, as (N, H, W, C), in the order of the rows."""
        (down, right), (below, beside) = node.attributes["strides"], node.attributes["dilations"]
        if (height, width, down, right) == (1, 1, 1, 1):
            return [x]
        rows, columns = self._sides(node.outputs[0], 1, 2)
        taps = []
        for i in range(height):
            for j in range(width):
                first = (i * below, j * beside)
                last = (first[0] + (rows - 1) * down + 1, first[1] + (columns - 1) * right + 1)
                bounds = [np.array(first), np.array(last), np.array([1, 2]), np.array([down, right])]
                taps.append(self._add("Slice", [x, *(self.draft.constant("tap", each) for each in bounds)], node))
        return taps

    def _sides(self, name: str, *axes: int) -> tuple[int, int]:
        """Return two sizes of what a packed operator gives; they are fixed, as images have one size."""
        first, second = (self.draft.shapes[name][1][axis] for axis in axes)
        if not isinstance(first, int) or not isinstance(second, int):
            raise ExportError(f"{name} has a size of {first}×{second}; expected numbers, for images of one size")
        return first, second

    def _product(self, x: str, weight: str, node: Node) -> str:
        return self._add("MatMulInteger", [x, weight, self._number("neither", _NEITHER)], node)

    def _number(self, name: str, value: int) -> str:
        return self.draft.constant(name, np.array(value, np.uint8))

    def _add(self, operator: str, inputs: list[str], node: Node, **attributes: object) -> str:
        return self._make(operator, inputs, node.outputs[0], **attributes)

    def _make(self, operator: str, inputs: list[str], near: str, **attributes: object) -> str:
        name = self._unused(f"{near}.{operator}")
        self.nodes.append(Node(operator, inputs, [name], dict(attributes)))
        return name

    def _unused(self, name: str) -> str:
        name = unused_name(name, self.names)
        self.names[name] = None
        return name
