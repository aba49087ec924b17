"""Small models of the domain `edgefold`, and images for them; `packed_reference` tells what they must give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from packed_reference import run_reference

# The lowest that hold all of this, so that the oldest supported engine loads the models too.
OPSET, IR_VERSION = 17, 8
CLASSES = 5


def packed(x: np.ndarray) -> np.ndarray:
    """Pack the signs of the last axis (C) into uint32 words (..., words)."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 32) * 32), np.uint64)
    padded[..., : x.shape[-1]] = x < 0
    words = (padded.reshape(*x.shape[:-1], -1, 32) << np.arange(32, dtype=np.uint64)).sum(-1)
    return words.astype(np.uint32)


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


def image_classifier(height: int = 9, width: int = 7, channels: int = 3, seed: int = 2) -> onnx.ModelProto:
    """uint8 images [N, H, W, C] → logits [N, CLASSES], through all operators and every kind of step.

    3×3 on a grid, strides 1 × 2 → maximum over 2×2 → Binarize (with scale and bias) → 3×3, strides 2 × 1, padded with
    0, slope, both outputs → dilated, grouped, padded with +1, a residual, slope_after, signs with scale and bias → 1×1
    padded with -1, only signs → linear; and beside it the mean over what the second binary convolution gives.
    """
    rng = np.random.default_rng(seed)
    rows = (height + 2 - 3) // 2 + 1
    columns = (width + 2 - 3) // 2 + 1
    stem, first, second, third = 11, 24, 24, 36
    constants = {
        "w0": rng.integers(-127, 128, (stem, 3, 3, channels), np.int8),
        "x_scale": rng.normal(size=stem).astype(np.float32),
        "x_bias": rng.normal(size=stem).astype(np.float32),
        "w1": packed(rng.normal(size=(first, 3, 3, stem))),
        "w2": packed(rng.normal(size=(second, 3, 3, first // 2))),
        "w3": packed(rng.normal(size=(third, 1, 1, second))),
        "w4": packed(rng.normal(size=(CLASSES, (rows + 2) * (columns + 2) * 64))),
    }
    steps = {
        "0": (stem, ("scale", "bias", "slope")),
        "1": (first, ("scale", "bias", "slope")),
        "2": (second, ("scale", "bias", "slope_after", "sign_scale", "sign_bias")),
        "3": (third, ("scale", "bias")),
        "4": (CLASSES, ("scale", "bias")),
    }
    for layer, (outputs, names) in steps.items():
        constants |= {f"{name}{layer}": value for name, value in _channelwise(rng, outputs, names).items()}
    constants["scale4"] /= 32  # so that not one class always wins
    constants["flat"] = np.array([0, -1], np.int64)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        node(
            "FixedConv", ["x", "w0", "scale0", "bias0", "slope0"], ["y0"],
            input_scale=0.125, levels=31, strides=[1, 2], pads=[1, 1, 1, 1],
        ),
        node("Pool", ["y0"], ["m0"], mode="max", kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
        node("Binarize", ["m0", "x_scale", "x_bias"], ["b0"]),
        node(
            "BinaryConv", ["b0", "w1", "scale1", "bias1", "slope1"], ["y1", "b1"],
            channels=stem, strides=[2, 1], pads=[1, 1, 1, 1], out_group=2,
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
        node("Pool", ["y2"], ["mean"], mode="mean", kernel_shape=[0, 0]),
        helper.make_node("Reshape", ["b3", "flat"], ["b4"]),
        node("BinaryGemm", ["b4", "w4", "scale4", "bias4"], ["logits"], channels=(rows + 2) * (columns + 2) * 64),
    ]  # fmt: skip
    return model_of(
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, channels])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("y2", TensorProto.FLOAT, ["N", rows, columns, second]),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", 1, 1, second]),
        ],
        constants,
    )


def classify_images(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of `image_classifier`'s model, computed the plain way."""
    return [np.ascontiguousarray(each) for each in run_reference(model.SerializeToString(), images)]


def random_images(count: int, height: int = 9, width: int = 7, channels: int = 3, seed: int = 1) -> np.ndarray:
    """Return uint8 images, each with a contrast and a darkest value of its own."""
    rng = np.random.default_rng(seed)
    noise = rng.random((count, height, width, channels)) * rng.integers(1, 256, (count, 1, 1, channels))
    return np.minimum(noise + rng.integers(0, 100, (count, 1, 1, channels)), 255).astype(np.uint8)


def write_image(path: Any, image: np.ndarray) -> None:
    """Write uint8 [H, W, C] as a binary PGM or PPM file, with a comment as image programs write them."""
    height, width, channels = image.shape
    kind = {1: "P5", 3: "P6"}[channels]
    path.write_bytes(f"{kind}\n# made by a test\n{width} {height}\n255\n".encode() + image.tobytes())
