"""Every model, by a recipe's way of export: ONNX within the gate of its precision, and engines of TensorRT-RTX.

The engine is built for a GPU that need not be here, so nothing is run by it.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_encoders
import torch
from torch import nn

from compress.models import MODELS, ModelSpec
from compress.models.alexnet import AlexNetSpec
from compress.models.bag_mlp import BagMLPSpec
from compress.models.binary import BinarySpec
from compress.models.binary_cnn import BinaryCNNSpec
from compress.models.binary_resnet import BinaryResNetSpec
from compress.models.embedding_mlp import EmbeddingMLPSpec
from compress.models.encoder import EncoderSpec
from compress.models.imagenet_resnet import ImageNetResNetSpec
from compress.models.mlp import MLPSpec
from compress.models.mnist_cnn import MnistCNNSpec
from compress.models.mobilenet import MobileNetSpec
from compress.models.mobilenet_v2 import MobileNetV2Spec
from compress.models.resnet import ResNet8x4Spec, ResNet32x4Spec, ResNetSpec
from compress.models.shufflenet_v1 import ShuffleNetV1Spec
from compress.models.shufflenet_v2 import ShuffleNetV2Spec
from compress.models.small_cnn import SmallCNNSpec
from compress.models.table_mlp import TableMLPSpec
from compress.models.vgg import VGGSpec
from compress.models.wrn import WideResNetSpec
from compress.quantize import QuantizedSpec, QuantizeSpec
from export.calibration import outputs_of
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.layers import binary_layers
from export.parity import GATES, Comparison, Gate, compare, worst
from export.to_bf16 import bf16_from_onnx, widened_from_bf16
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import Form, Int8Model, int8_from_onnx
from export.to_onnx import onnx_from_graph
from export.to_qdq import qdq_from_onnx
from runtime.engine_build import engine_from_onnx

CLASSES, SUBCLASSES = 5, 2
BATCH_SIZES = (1, 8, 64)
GPU = "sm86"

MNIST = InputSignature((28, 28, 1))
# Higher than wide, so that no two axes are taken for each other.
CIFAR = InputSignature((32, 30, 3))
SMALLER = InputSignature((16, 12, 3))
LARGE = InputSignature((96, 64, 3))  # the forms for ImageNet shrink images by 32
WORDS = InputSignature.of_ids(16, 512)
TOKENS = InputSignature.of_ids(16, tiny_encoders.VOCABULARY, dynamic_length=True)
TABLE = InputSignature.of_table(13, 26, 512)


@dataclass(frozen=True)
class Case:
    """A model as it is exported here: as the papers use it where that takes seconds, else narrow or on small images.

    spec: or a function that makes it of the folder of an encoder.
    """

    name: str
    spec: ModelSpec | Callable[[str], ModelSpec]
    signature: InputSignature = CIFAR

    def __str__(self) -> str:
        return self.name


SHALLOW: dict[str, Any] = {"blocks": (1, 1, 1), "widths": (16, 32, 64), "stem": "conv3"}
# A line for each form of each family that has a graph of its own; a new model needs one.
CASES = (
    Case("alexnet", AlexNetSpec()),
    Case("bag_mlp", BagMLPSpec(width=8), WORDS),
    Case("binary_cnn", BinaryCNNSpec(), MNIST),
    Case("binary_resnet", BinaryResNetSpec(blocks=(1, 1, 1), widths=(16, 32, 64)), LARGE),
    Case("binary_resnet, cifar, bulat, learned", BinaryResNetSpec(**SHALLOW, block="bulat", scale="learned_factors")),
    Case("binary_resnet, depthwise", BinaryResNetSpec(blocks=(1, 1), widths=(16, 32), stem="depthwise"), LARGE),
    Case("binary_resnet, cifar, ternary", BinaryResNetSpec(**SHALLOW, weights="ternary", activation="none")),
    Case("binary_resnet, cifar, 4 bits", BinaryResNetSpec(**SHALLOW, weights="int4", activations="int4")),
    Case("embedding_mlp", lambda folder: EmbeddingMLPSpec(encoder=folder, hidden=(24, 12)), TOKENS),
    Case("encoder", lambda folder: EncoderSpec(name=folder), TOKENS),
    Case("imagenet_resnet 18", ImageNetResNetSpec(depth=18), LARGE),
    Case("imagenet_resnet 50, cifar", ImageNetResNetSpec(depth=50, stem="cifar"), SMALLER),
    Case("mlp", MLPSpec(hidden=(784, 784)), MNIST),
    Case("mnist_cnn", MnistCNNSpec(), MNIST),
    Case("mobilenet 0.5", MobileNetSpec(width=0.5), LARGE),
    Case("mobilenet 0.5, cifar, D = 2048", MobileNetSpec(width=0.5, stem="cifar", embedding=2048)),
    Case("mobilenet_v2 0.5", MobileNetV2Spec(width=0.5), LARGE),
    Case("mobilenet_v2 0.5, cifar", MobileNetV2Spec(form="cifar", width=0.5)),
    Case("mobilenet_v2 0.5, crd", MobileNetV2Spec(form="crd", width=0.5)),
    Case("resnet 20", ResNetSpec(depth=20)),
    Case("resnet 8, projection", ResNetSpec(depth=8, shortcut="projection")),
    Case("resnet 20, bottleneck", ResNetSpec(depth=20, block="bottleneck", shortcut="projection")),
    Case("resnet 10, four stages", ResNetSpec(depth=10, blocks=(1, 1, 1, 1), widths=(32, 32, 64, 128))),
    Case("resnet8x4", ResNet8x4Spec()),
    Case("resnet32x4", ResNet32x4Spec(), SMALLER),
    Case("shufflenet_v1", ShuffleNetV1Spec(), LARGE),
    Case("shufflenet_v1, cifar", ShuffleNetV1Spec(form="cifar")),
    Case("shufflenet_v2 0.5x", ShuffleNetV2Spec(size="0.5x"), LARGE),
    Case("shufflenet_v2, cifar", ShuffleNetV2Spec(form="cifar")),
    Case("small_cnn", SmallCNNSpec()),
    Case("table_mlp", TableMLPSpec(width=8, hidden=(32,)), TABLE),
    Case("vgg 8", VGGSpec(depth=8)),
    Case("wrn 16-2", WideResNetSpec(depth=16, widen=2)),
    Case("wrn 10-1, dropout", WideResNetSpec(depth=10, widen=1, dropout=0.3)),
)


@dataclass(frozen=True)
class Exported:
    """A model with statistics of its own, and its ONNX file."""

    case: Case
    graph: DeployableGraph
    model: bytes


def inputs_of(signature: InputSignature, rows: int, seed: int) -> np.ndarray:
    """Return inputs that differ from row to row: ids, or images of a colour of their own under noise."""
    random = np.random.default_rng(seed)
    if signature.numbers:
        numbers = random.integers(0, 5000, (rows, signature.numbers), dtype=np.int32)
        ids = random.integers(0, signature.ids or 0, (rows, signature.shape[0] - signature.numbers), dtype=np.int32)
        return np.concatenate([numbers, ids], axis=1)
    if signature.ids is not None:
        return random.integers(0, signature.ids, (rows, *signature.shape), dtype=np.int32)
    colours = random.integers(0, 192, (rows, 1, 1, signature.channels), dtype=np.uint8)
    return colours + random.integers(0, 64, (rows, *signature.shape), dtype=np.uint8)


def export(case: Case, encoder: str) -> Exported:
    """Export `case` by the way of a recipe, after batches in training have given its batch norms statistics."""
    torch.manual_seed(0)
    signature = case.signature
    normalization = None
    if signature.ids is None:
        normalization = Normalization(1 / 255, (0.4,) * signature.channels, (0.25,) * signature.channels)
    spec = case.spec if isinstance(case.spec, ModelSpec) else case.spec(encoder)
    student = spec.build(signature=signature, outputs=CLASSES * SUBCLASSES)
    graph = DeployableGraph(Preprocess(signature, normalization), student, CLASSES, SUBCLASSES).train()
    for module in graph.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches: of what they start with nothing stays
            # A deep network of random weights multiplies rounding at every ReLU behind a batch norm: float32 would be
            # up to 1e-4 deviations from float64, in torch as in ONNX. Away from the kink it is 6e-6.
            nn.init.ones_(module.bias)
    with torch.no_grad():
        for seed in range(2):
            graph(torch.from_numpy(inputs_of(signature, 16, seed)))
    graph.eval()
    return Exported(case, graph, onnx_from_graph(graph, signature, metadata={}))


def options_of(exported: Exported) -> onnxruntime.SessionOptions:
    """Return the session's options: without optimisation where signs are taken.

    ONNX Runtime folds factors behind a convolution into its weights, which rounds otherwise, and a sign at zero turns
    over by one rounding.
    """
    options = onnxruntime.SessionOptions()
    if isinstance(exported.case.spec, BinarySpec):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def parity(exported: Exported) -> Comparison:
    """Compare the file in ONNX Runtime with torch at every batch size; the worst of them, by the gate of FP32."""
    inputs = inputs_of(exported.case.signature, max(BATCH_SIZES), seed=9)
    with torch.no_grad():
        reference = exported.graph(torch.from_numpy(inputs)).numpy()
    session = onnxruntime.InferenceSession(exported.model, options_of(exported), providers=["CPUExecutionProvider"])
    compared = []
    for size in BATCH_SIZES:
        rows = min(8 * size, len(inputs))
        batches = np.split(inputs[:rows], rows // size)
        logits = np.concatenate([session.run(["logits"], {"input": batch})[0] for batch in batches])
        compared.append(compare(reference[:rows], logits, reference[:rows].argmax(axis=1), GATES["fp32"]))
    return worst(compared)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("encoder")
    tiny_encoders.write(folder)
    return str(folder)


@pytest.fixture(scope="module", params=CASES, ids=str)
def exported(request: pytest.FixtureRequest, encoder: str) -> Exported:
    return export(request.param, encoder)


def test_no_model_is_forgotten(encoder: str) -> None:
    specs = [case.spec if isinstance(case.spec, ModelSpec) else case.spec(encoder) for case in CASES]
    # timm is no dependency of the tests: test_timm.py exports one of its kind.
    assert {spec.kind for spec in specs} == set(MODELS) - {"timm"}
    assert len({case.name for case in CASES}) == len(CASES)


def test_onnx_equals_torch(exported: Exported) -> None:
    comparison = parity(exported)
    assert comparison.passed, comparison.reasons
    # A model that gives all inputs the same logits would pass whatever the file computed.
    with torch.no_grad():
        logits = exported.graph(torch.from_numpy(inputs_of(exported.case.signature, 64, seed=9)))
    assert logits.std(dim=0).max() > 0.01 * logits.std()


def test_tensorrt_rtx_builds_it(exported: Exported) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    signature = exported.case.signature
    length = signature.shape[0] if signature.dynamic_length else None
    engine = engine_from_onnx(
        exported.model, batch_sizes=BATCH_SIZES, length=length, compute_capability=GPU, module="tensorrt_rtx"
    )
    assert engine.batch_sizes == BATCH_SIZES
    assert len(engine.plan) > 0.9 * 4 * sum(each.numel() for each in exported.graph.student.parameters())
    inputs = [(each.name, each.dtype, each.shape) for each in engine.inputs]
    assert inputs == [("input", signature.dtype, (-1, *((-1,) if length else signature.shape)))]
    assert [(each.name, each.dtype, each.shape) for each in engine.outputs] == [("logits", "float32", (-1, CLASSES))]


def build(exported: Exported, model: bytes) -> None:
    length = exported.case.signature.shape[0] if exported.case.signature.dynamic_length else None
    engine_from_onnx(model, batch_sizes=BATCH_SIZES, length=length, compute_capability=GPU, module="tensorrt_rtx")


def optimised(model: bytes, folder: Path) -> Counter[str]:
    """Return how many nodes of each operator ONNX Runtime makes of a model on this CPU."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # or it warns that the file is for this machine alone
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def leave_binary_out(exported: Exported) -> None:
    if binary_layers(exported.graph):
        pytest.skip("half precision and INT8 are for models with real weights")


def test_half_precision_meets_its_gate(exported: Exported) -> None:
    leave_binary_out(exported)
    if exported.case.name.startswith("binary_resnet"):
        pytest.skip("activations of few bits turn over where half precision rounds: the gate refuses these")
    half = fp16_from_onnx(exported.model)
    inputs = inputs_of(exported.case.signature, 256, seed=9)
    reference, logits = (outputs_of(model, ["logits"], inputs)[0] for model in (exported.model, half))
    # Random weights give some rows two classes that are all but equal.
    gate = replace(GATES["fp16"], metric_drop_points=1.0)
    comparison = compare(reference, logits, reference.argmax(axis=1), gate)
    assert comparison.passed, comparison.reasons
    assert len(half) < 0.7 * len(exported.model)
    if importlib.util.find_spec("tensorrt_rtx"):
        build(exported, half)


def test_bfloat16_meets_its_gate(exported: Exported) -> None:
    leave_binary_out(exported)
    kind = exported.case.name.split(",")[0].split(" ")[0]
    if kind == "binary_resnet" or next(case for case in CASES if case.name.startswith(kind)) is not exported.case:
        pytest.skip("one of each family; activations of few bits turn over where bfloat16 rounds")
    half = bf16_from_onnx(exported.model)
    inputs = inputs_of(exported.case.signature, 256, seed=9)
    models = (exported.model, widened_from_bf16(half))
    reference, logits = (outputs_of(model, ["logits"], inputs)[0] for model in models)
    # Random weights give some rows two classes that are all but equal.
    gate = replace(GATES["bf16"], top1_agreement=0.95, metric_drop_points=5.0)
    comparison = compare(reference, logits, reference.argmax(axis=1), gate)
    assert comparison.passed, comparison.reasons
    assert len(half) < 0.7 * len(exported.model)


def quantised(exported: Exported, form: Form) -> Int8Model:
    rows, labels = inputs_of(exported.case.signature, 128, seed=9), np.zeros(96, np.int64)
    gate = Gate(0.3, 0.9, 100.0)
    made = int8_from_onnx(exported.model, rows[:32], rows[32:], labels, gate=gate, method="percentile", form=form)
    assert made.result.passed, made.result.reasons
    # Random weights in many layers add their errors up: the deepest MobileNet has some of its layers in float.
    assert len(made.float_layers) < len(made.layers) / 2
    return made


def test_int8_meets_its_gate(exported: Exported) -> None:
    leave_binary_out(exported)
    made = quantised(exported, "signed")
    if importlib.util.find_spec("tensorrt_rtx"):
        build(exported, made.model)


def test_int8_for_a_cpu_meets_its_gate_and_is_computed_on_8_bit_numbers(exported: Exported, tmp_path: Path) -> None:
    leave_binary_out(exported)
    made = quantised(exported, "cpu")
    operators = optimised(made.model, tmp_path)
    convolutions = {layer.name for layer in made.layers if layer.operator == "Conv"}
    in_float = convolutions.intersection(made.float_layers)
    assert operators["Conv"] + operators["FusedConv"] == len(in_float)
    assert operators["QLinearConv"] >= len(convolutions) - len(in_float)  # and batch norms, and the scaling of pixels
    assert operators["BatchNormalization"] == 0
    rounds = exported.case.name.startswith("binary_resnet")  # its own few bits, in float
    if convolutions and not in_float and not rounds:
        assert operators["Clip"] == 0
        padded = operators["Pad"]  # which has no kernel for 8 bits in these graphs
        assert operators["DequantizeLinear"] == operators["QuantizeLinear"] == padded
        assert operators["Add"] == 1  # of the fold


# What grids have not met elsewhere: frozen layers, attention, shuffled channels, depthwise convolutions under ReLU6.
QUANTISED = ("embedding_mlp", "encoder", "mobilenet_v2 0.5, cifar", "shufflenet_v2, cifar")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in QUANTISED], ids=str)
def test_a_quantised_model_is_exported_as_its_integers(case: Case, encoder: str) -> None:
    spec = case.spec if isinstance(case.spec, ModelSpec) else case.spec(encoder)
    few = replace(case, spec=QuantizedSpec(model=spec, quantize=QuantizeSpec(weights=4)))
    exported = export(few, encoder)
    inputs = inputs_of(case.signature, 64, seed=9)
    with torch.no_grad():
        reference = exported.graph(torch.from_numpy(inputs)).numpy()
    made = qdq_from_onnx(exported.model)
    comparison = compare(reference, outputs_of(made, ["logits"], inputs)[0], reference.argmax(axis=1), GATES["int8"])
    assert comparison.passed, comparison.reasons
    assert len(made) < len(exported.model)
