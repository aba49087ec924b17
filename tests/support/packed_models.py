"""Small models of the domain `edgefold`, and what they must give: a naive reading of runtime/ops/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The lowest that hold all of this, so that the oldest supported engine loads the models too.
OPSET, IR_VERSION = 17, 8
CLASSES = 5


def signs(x: np.ndarray) -> np.ndarray:
    """Return ±1 (int64): -1 for NaN, +1 for -0.0."""
    return np.where(x >= 0, 1, -1)


def packed(x: np.ndarray, group: int = 1) -> np.ndarray:
    """Pack the signs of the last axis (C) into uint32 words (..., words)."""
    channels = x.shape[-1] // group
    bits = (signs(x) < 0).reshape(*x.shape[:-1], group, channels)
    padded = np.zeros((*bits.shape[:-1], -(-channels // 32) * 32), np.uint64)
    padded[..., :channels] = bits
    words = (padded.reshape(*padded.shape[:-1], -1, 32) << np.arange(32, dtype=np.uint64)).sum(-1)
    return words.astype(np.uint32).reshape(*x.shape[:-1], -1)


def packed_image(x: np.ndarray, group: int = 1) -> np.ndarray:
    """Pack float [N, H, W, C] to uint32 [N, H, words, W]."""
    return np.ascontiguousarray(packed(x, group).swapaxes(2, 3))


def binary_conv(
    x: np.ndarray,
    weights: np.ndarray,
    *,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    group: int = 1,
    pad_value: int = 0,
) -> np.ndarray:
    """Return the sums [N, H', W', outputs] of ±1 inputs x [N, H, W, C], weights [outputs, kh, kw, C / group]."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=pad_value)
    outputs, high, wide, channels = weights.shape
    rows = (x.shape[1] - dilations[0] * (high - 1) - 1) // strides[0] + 1
    columns = (x.shape[2] - dilations[1] * (wide - 1) - 1) // strides[1] + 1
    y = np.zeros((len(x), rows, columns, outputs), np.int64)
    for output in range(outputs):
        first = output // (outputs // group) * channels
        for row in range(rows):
            for column in range(columns):
                patch = x[
                    :,
                    row * strides[0] : row * strides[0] + dilations[0] * (high - 1) + 1 : dilations[0],
                    column * strides[1] : column * strides[1] + dilations[1] * (wide - 1) + 1 : dilations[1],
                    first : first + channels,
                ]
                y[:, row, column, output] = (patch * weights[output]).sum((1, 2, 3))
    return y


def epilogue(
    sums: np.ndarray, channelwise: Mapping[str, np.ndarray], residual: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return Y and what B is the sign of, both float32 with each step rounded."""
    y = sums.astype(np.float32) * channelwise["scale"] + channelwise["bias"]
    if "slope" in channelwise:
        y = np.where(y < 0, y * channelwise["slope"], y)
    if residual is not None:
        y = y + residual
    if "slope_after" in channelwise:
        y = np.where(y < 0, y * channelwise["slope_after"], y)
    if "sign_scale" not in channelwise:
        return y, y
    return y, y * channelwise["sign_scale"] + channelwise["sign_bias"]


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "packed", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("edgefold", 1)],
        ir_version=IR_VERSION,
        producer_name="test",
    )
    helper.set_model_props(model, {"edgefold.ops": "1"})
    return model


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, domain="edgefold", **attributes)


def _channelwise(rng: np.random.Generator, outputs: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=outputs).astype(np.float32) for name in names}


def image_classifier(height: int = 9, width: int = 7, channels: int = 3, seed: int = 0) -> onnx.ModelProto:
    """uint8 images [N, H, W, C] → logits [N, CLASSES], through all three operators and every kind of step.

    Binarize (with scale and bias) → 3×3, strides 2 × 1, padded with 0, slope, both outputs → dilated, grouped, padded
    with +1, a residual, slope_after, signs with scale and bias → 1×1 padded with -1, only signs → linear.
    """
    rng = np.random.default_rng(seed)
    rows = (height + 2 - 3) // 2 + 1
    first, second, third = 24, 24, 36
    constants = {
        "x_scale": np.full(channels, 1 / 64, np.float32),
        "x_bias": rng.normal(-2, 0.5, channels).astype(np.float32),
        "w1": packed(rng.normal(size=(first, 3, 3, channels))),
        "w2": packed(rng.normal(size=(second, 3, 3, first // 2))),
        "w3": packed(rng.normal(size=(third, 1, 1, second))),
        "w4": packed(rng.normal(size=(CLASSES, (rows + 2) * (width + 2) * 64))),
    }
    steps = {
        "1": (first, ("scale", "bias", "slope")),
        "2": (second, ("scale", "bias", "slope_after", "sign_scale", "sign_bias")),
        "3": (third, ("scale", "bias")),
        "4": (CLASSES, ("scale", "bias")),
    }
    for layer, (outputs, names) in steps.items():
        constants |= {f"{name}{layer}": value for name, value in _channelwise(rng, outputs, names).items()}
    constants["flat"] = np.array([0, -1], np.int64)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        node("Binarize", ["x", "x_scale", "x_bias"], ["b0"]),
        node(
            "BinaryConv", ["b0", "w1", "scale1", "bias1", "slope1"], ["y1", "b1"],
            channels=channels, strides=[2, 1], pads=[1, 1, 1, 1], out_group=2,
        ),
        node(
            "BinaryConv", ["b1", "w2", "scale2", "bias2", "", "y1", "slope_after2", "sign_scale2", "sign_bias2"],
            ["y2", "b2"],
            channels=first, dilations=[2, 2], pads=[2, 2, 2, 2], group=2, pad_value=1,
        ),
        node(
            "BinaryConv", ["b2", "w3", "scale3", "bias3"], ["", "b3"],
            channels=second, pads=[1, 1, 1, 1], pad_value=-1,
        ),
        helper.make_node("Reshape", ["b3", "flat"], ["b4"]),
        node("BinaryGemm", ["b4", "w4", "scale4", "bias4"], ["logits"], channels=(rows + 2) * (width + 2) * 64),
    ]  # fmt: skip
    return model_of(
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, channels])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("y2", TensorProto.FLOAT, ["N", rows, width, second]),
        ],
        constants,
    )


def classify_images(model: onnx.ModelProto, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits and y2 of `image_classifier`'s model, computed the plain way."""
    c = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}

    def layer(number: str) -> dict[str, np.ndarray]:
        names = ("scale", "bias", "slope", "slope_after", "sign_scale", "sign_bias")
        return {name: c[name + number] for name in names if name + number in c}

    channels = images.shape[-1]
    x0 = signs(images.astype(np.float32) * c["x_scale"] + c["x_bias"])
    w1, w2, w3 = unpacked(c["w1"], channels), unpacked(c["w2"], 12), unpacked(c["w3"], 24)
    y1, s1 = epilogue(binary_conv(x0, w1, strides=(2, 1), pads=(1, 1, 1, 1)), layer("1"))
    sums = binary_conv(signs(s1), w2, dilations=(2, 2), pads=(2, 2, 2, 2), group=2, pad_value=1)
    y2, s2 = epilogue(sums, layer("2"), residual=y1)
    _, s3 = epilogue(binary_conv(signs(s2), w3, pads=(1, 1, 1, 1), pad_value=-1), layer("3"))
    words = packed_image(s3).reshape(len(images), -1)
    w4 = unpacked(c["w4"], c["w4"].shape[1] * 32)
    logits, _ = epilogue(unpacked(words, words.shape[1] * 32) @ w4.T, layer("4"))
    return logits, y2


def unpacked(words: np.ndarray, channels: int) -> np.ndarray:
    """Return the ±1 of words (..., words) of one group."""
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    return 1 - 2 * bits.reshape(*words.shape[:-1], -1)[..., :channels].astype(np.int64)


def random_images(count: int, height: int = 9, width: int = 7, channels: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def write_image(path: Any, image: np.ndarray) -> None:
    """Write uint8 [H, W, C] as a binary PGM or PPM file, with a comment as image programs write them."""
    height, width, channels = image.shape
    kind = {1: "P5", 3: "P6"}[channels]
    path.write_bytes(f"{kind}\n# made by a test\n{width} {height}\n255\n".encode() + image.tobytes())
