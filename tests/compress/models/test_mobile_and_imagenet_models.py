"""MobileNets, ShuffleNets and large ResNets, against the parameter counts that are printed for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models import MODELS, Classifier, ModelSpec, parameter_count, shapes_of
from compress.models.blocks import ChannelShuffle
from compress.models.imagenet_resnet import Bottleneck, ImageNetResNetSpec
from compress.models.mobilenet import MobileNetSpec
from compress.models.mobilenet_v2 import SHAPES, InvertedResidual, MobileNetV2Spec, scaled
from compress.models.shufflenet_v1 import ShuffleNetV1Spec, ShuffleUnit
from compress.models.shufflenet_v2 import ShuffleNetV2Spec, SplitUnit
from export.graph import InputSignature

# The smallest member of each family that takes 32×32.
SMALL: dict[str, ModelSpec] = {
    "mobilenet": MobileNetSpec(stem="cifar", width=0.25, blocks=8),
    "mobilenet_v2": MobileNetV2Spec(form="crd", width=0.25),
    "mobilenet_v2 cifar": MobileNetV2Spec(form="cifar", width=0.25),
    "shufflenet_v1": ShuffleNetV1Spec(form="cifar", width=0.25),
    "shufflenet_v2": ShuffleNetV2Spec(form="cifar", size="0.5x"),
    "imagenet_resnet": ImageNetResNetSpec(depth=18, stem="cifar"),
}
FAMILIES = pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)


def signature_of(*sides: int, channels: int = 3) -> InputSignature:
    return InputSignature((channels, *(sides * 2)[:2]), layout="NCHW")


def images(rows: int) -> Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def built(spec: ModelSpec, outputs: int = 10) -> Classifier:
    """Return a model whose batch norms have seen one batch, so that none of them is the identity."""
    torch.manual_seed(0)
    model = spec.build(signature=signature_of(32), outputs=outputs)
    with torch.no_grad():
        model(images(4))
    return model.eval()


# Sizes

IMAGENET, CIFAR = (1000, 224), (100, 32)


PRINTED: list[tuple[str, dict[str, Any], tuple[int, int], str]] = [
    # Howard et al. 2017, tables 5 and 6, in millions; 4.23 in SRRL.
    ("mobilenet", {}, IMAGENET, "4.23"),
    ("mobilenet", {"width": 0.75}, IMAGENET, "2.6"),
    ("mobilenet", {"width": 0.5}, IMAGENET, "1.3"),
    ("mobilenet", {"width": 0.25}, IMAGENET, "0.5"),
    ("mobilenet", {"blocks": 8}, IMAGENET, "2.9"),
    # SRRL, CIFAR-100.
    ("mobilenet_v2", {"form": "cifar"}, CIFAR, "2.37"),
    # Ma et al. 2018, table 8.
    ("shufflenet_v2", {"size": "0.5x"}, IMAGENET, "1.4"),
    ("shufflenet_v2", {"size": "1x"}, IMAGENET, "2.3"),
    ("shufflenet_v2", {"size": "1.5x"}, IMAGENET, "3.5"),
    ("shufflenet_v2", {"size": "2x"}, IMAGENET, "7.4"),
    # SRRL, ImageNet; depth 101 as the PyTorch model zoo prints it.
    ("imagenet_resnet", {"depth": 18}, IMAGENET, "11.69"),
    ("imagenet_resnet", {"depth": 34}, IMAGENET, "21.80"),
    ("imagenet_resnet", {"depth": 50}, IMAGENET, "25.56"),
    ("imagenet_resnet", {"depth": 101}, IMAGENET, "44.55"),
    ("imagenet_resnet", {"depth": 152}, IMAGENET, "60.19"),
]


@pytest.mark.parametrize(("kind", "options", "outputs_and_side", "printed"), PRINTED)
def test_parameter_count_is_the_printed_one(
    kind: str, options: dict[str, Any], outputs_and_side: tuple[int, int], printed: str
) -> None:
    outputs, side = outputs_and_side
    found = parameter_count(MODELS[kind](**options), signature=signature_of(side), outputs=outputs)
    digits = len(printed.partition(".")[2])
    assert f"{found / 1e6:.{digits}f}" == printed


PUBLISHED_CODE: list[tuple[str, dict[str, Any], tuple[int, int], int]] = [
    # The CRD paper prints no counts; these are of its published code, to the last parameter.
    ("mobilenet_v2", {"form": "crd", "width": 0.5}, CIFAR, 812_836),
    ("shufflenet_v1", {"form": "cifar"}, CIFAR, 949_258),
    ("shufflenet_v2", {"form": "cifar"}, CIFAR, 1_355_528),
    ("imagenet_resnet", {"depth": 50, "stem": "cifar"}, CIFAR, 23_705_252),
    # Sandler et al. print 3.4M, and 6.9M at width 1.4: neither is met, by the authors' own rules for the widths.
    # These are the counts of the PyTorch model zoo's form (3.50M).
    ("mobilenet_v2", {}, IMAGENET, 3_504_872),
    ("mobilenet_v2", {"width": 1.4}, IMAGENET, 6_108_776),
    # And of its ShuffleNetV2, whose paper prints 1.4 and 2.3 million.
    ("shufflenet_v2", {"size": "0.5x"}, IMAGENET, 1_366_792),
    ("shufflenet_v2", {}, IMAGENET, 2_278_604),
]


@pytest.mark.parametrize(("kind", "options", "outputs_and_side", "exact"), PUBLISHED_CODE)
def test_parameter_count_of_published_code(
    kind: str, options: dict[str, Any], outputs_and_side: tuple[int, int], exact: int
) -> None:
    outputs, side = outputs_and_side
    assert parameter_count(MODELS[kind](**options), signature=signature_of(side), outputs=outputs) == exact


def test_mobilenets_embedding_is_the_width_of_its_last_block() -> None:
    narrow, wide = MobileNetSpec(), MobileNetSpec(embedding=2048)
    assert shapes_of(narrow, signature=signature_of(224), outputs=5).embedding == 1024
    shapes = shapes_of(wide, signature=signature_of(224), outputs=5)
    assert (shapes.embedding, shapes.features[-1]) == (2048, (2048, 7, 7))
    more = [parameter_count(spec, signature=signature_of(224), outputs=5) for spec in (wide, narrow)]
    # A pointwise convolution's 1024 inputs, two of batch norm and five of the classifier, for each new channel.
    assert more[0] - more[1] == 1024 * (1024 + 2 + 5)


@pytest.mark.parametrize(("width", "expected"), [(0.5, 16), (0.75, 24), (1.0, 24), (1.4, 32)])
def test_widths_are_rounded_as_the_authors_round_them(width: float, expected: int) -> None:
    assert scaled(24, width, 8) == expected


# Shapes


@pytest.mark.parametrize(
    ("spec", "side", "embedding", "features"),
    [
        (
            MobileNetSpec(),
            224,
            1024,
            ((64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)),
        ),
        (MobileNetSpec(stem="cifar"), 32, 1024, ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 2, 2))),
        (MobileNetV2Spec(), 224, 1280, ((24, 56, 56), (32, 28, 28), (96, 14, 14), (320, 7, 7))),
        (MobileNetV2Spec(form="cifar"), 32, 1280, ((24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 4, 4))),
        (MobileNetV2Spec(form="crd", width=0.5), 32, 1280, ((12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2))),
        (ShuffleNetV1Spec(), 224, 960, ((240, 28, 28), (480, 14, 14), (960, 7, 7))),
        (ShuffleNetV1Spec(form="cifar"), 32, 960, ((240, 16, 16), (480, 8, 8), (960, 4, 4))),
        (ShuffleNetV2Spec(), 224, 1024, ((116, 28, 28), (232, 14, 14), (464, 7, 7))),
        (ShuffleNetV2Spec(form="cifar"), 32, 1024, ((116, 16, 16), (232, 8, 8), (464, 4, 4))),
        (ImageNetResNetSpec(), 224, 512, ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))),
        (
            ImageNetResNetSpec(depth=50, stem="cifar"),
            32,
            2048,
            ((256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)),
        ),
    ],
)
def test_stages_and_embedding_have_the_papers_shapes(
    spec: ModelSpec, side: int, embedding: int, features: tuple[tuple[int, ...], ...]
) -> None:
    shapes = shapes_of(spec, signature=signature_of(side), outputs=7)
    assert shapes.embedding == embedding
    assert shapes.features == features
    assert shapes.feature_names == tuple(f"stage{i + 1}" for i in range(len(features)))


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("form", ["imagenet", "cifar"])
@pytest.mark.parametrize("width", [0.25, 1.5])
def test_shufflenet_v1_has_every_size_of_its_table(groups: Any, form: Any, width: float) -> None:
    spec = ShuffleNetV1Spec(groups=groups, form=form, width=width)
    shapes = shapes_of(spec, signature=signature_of(32), outputs=5)
    assert [feature[0] / shapes.features[0][0] for feature in shapes.features] == [1, 2, 4]
    assert shapes.embedding >= width * {1: 576, 2: 800, 3: 960, 4: 1088, 8: 1536}[groups] * 0.99


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets_have_the_layers_that_their_names_count(depth: Any) -> None:
    with torch.device("meta"):
        model = ImageNetResNetSpec(depth=depth).build(signature=signature_of(32), outputs=5)
    shortcuts = {layer for name, layer in model.named_modules() if "shortcut" in name}
    counted = [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in shortcuts
    ]  # fmt: skip
    assert len(counted) == depth


@pytest.mark.parametrize("channels", [1, 3])
@FAMILIES
def test_channels_of_the_images_are_the_stems(spec: ModelSpec, channels: int) -> None:
    with torch.device("meta"):
        model = spec.build(signature=signature_of(33, 40, channels=channels), outputs=6).eval()
        assert model(torch.zeros(1, channels, 33, 40)).logits.shape == (1, 6)


# Outputs


@FAMILIES
def test_logits_follow_from_every_feature_map(spec: ModelSpec) -> None:
    model = built(spec)
    with torch.no_grad():
        output = model(images(2))
        assert len(output.features) == len(model.feature_names)
        for i, feature in enumerate(output.features):
            assert torch.equal(model.from_feature(feature, i), output.logits)
            assert not torch.equal(model.from_feature(feature + 1, i), output.logits)
    expected = output.embedding @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(output.logits, expected)


@FAMILIES
def test_every_parameter_gets_a_gradient(spec: ModelSpec) -> None:
    model = built(spec).train()
    model(images(4)).logits.square().sum().backward()
    # A bias in front of a batch norm has a gradient of zero but for rounding.
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.ndim > 1)


def test_channel_shuffle_is_pytorchs() -> None:
    x = torch.randn(2, 12, 3, 2, generator=torch.Generator().manual_seed(0))
    for groups in (1, 2, 3, 4):
        assert torch.equal(ChannelShuffle(groups)(x), F.channel_shuffle(x, groups))


def test_split_unit_leaves_the_first_half_of_the_channels_as_it_is() -> None:
    torch.manual_seed(0)
    unit, x = SplitUnit(8).eval(), torch.randn(2, 8, 5, 5)
    output = unit(x)
    assert torch.equal(output[:, 0::2], x[:, :4])
    assert torch.equal(output[:, 1::2], unit.mapped(x[:, 4:]))


def test_halving_shuffle_unit_puts_new_channels_before_the_pooled_input() -> None:
    torch.manual_seed(0)
    unit, x = ShuffleUnit(6, 18, 3, "cifar").eval(), torch.rand(2, 6, 8, 8)
    output = unit(x)
    assert output.shape == (2, 18, 4, 4)
    # Mean of 3×3 with padding counted, by hand at an inner position and in the corner.
    torch.testing.assert_close(output[:, 12:, 1, 1], x[:, :, 1:4, 1:4].mean((2, 3)))
    torch.testing.assert_close(output[:, 12:, 0, 0], x[:, :, :2, :2].sum((2, 3)) / 9)


@pytest.mark.parametrize(("stride", "outputs", "adds"), [(1, 4, True), (2, 4, False), (1, 6, False)])
def test_inverted_residual_adds_its_input_where_shapes_allow(stride: int, outputs: int, adds: bool) -> None:
    torch.manual_seed(0)
    block, x = InvertedResidual(4, outputs, stride, 6, SHAPES["imagenet"]).eval(), torch.randn(2, 4, 6, 6)
    expected = block.residual(x) + x if adds else block.residual(x)
    assert torch.equal(block(x), expected)
    assert (block(x) < 0).any()  # the bottleneck is linear


def test_bottleneck_with_a_zero_branch_passes_its_input() -> None:
    block, x = Bottleneck(16, 4, 1, "projection").eval(), torch.rand(2, 16, 5, 5)
    nn.init.zeros_(block.norm3.weight)
    assert torch.equal(block(x), x)


# Initialisation


def test_he_fan_out_is_the_published_codes() -> None:
    assert ImageNetResNetSpec().init == MobileNetV2Spec().init == "he_fan_out"
    model = built(ImageNetResNetSpec(depth=18, stem="cifar"))
    weight = model.stages[1][0].conv1.weight  # 128 × 64 × 3 × 3
    assert weight.var().item() == pytest.approx(2 / (128 * 9), rel=0.03)
    bound = 1 / math.sqrt(512)  # as PyTorch makes linear layers
    assert 0.98 * bound < model.classifier.weight.abs().max() <= bound


def test_mobilenet_v2_counts_a_depthwise_fan_out_over_all_channels() -> None:
    model = built(MobileNetV2Spec(form="crd", width=0.5))
    wide = model.stages[-1][-1].residual[1][0].weight  # depthwise: 480 × 1 × 3 × 3
    assert wide.shape == (480, 1, 3, 3)
    assert wide.var().item() == pytest.approx(2 / (480 * 9), rel=0.1)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not model.classifier.bias.any()


@FAMILIES
def test_he_fan_out_leaves_no_bias_before_a_norm(spec: ModelSpec) -> None:
    model = built(spec.model_copy(update={"init": "he_fan_out"}))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert not any(layer.bias.any() for layer in layers if layer.bias is not None)
    for layer in layers:
        bound = 6 * math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2))
        assert 0 < layer.weight.abs().max() < bound


# Refusals


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (MobileNetSpec(), 32),
        (MobileNetSpec(stem="cifar"), 16),
        (MobileNetV2Spec(), 32),
        (MobileNetV2Spec(form="cifar"), 8),
        (MobileNetV2Spec(form="crd"), 16),
        (ShuffleNetV1Spec(), 32),
        (ShuffleNetV1Spec(form="cifar"), 8),
        (ShuffleNetV2Spec(), 32),
        (ShuffleNetV2Spec(form="cifar"), 8),
        (ImageNetResNetSpec(), 32),
        (ImageNetResNetSpec(stem="cifar"), 8),
    ],
)
def test_images_that_are_too_small_are_refused(spec: ModelSpec, least: int) -> None:
    assert shapes_of(spec, signature=signature_of(least), outputs=5).features[-1][1:] == (1, 1)
    for height, width in ((least - 1, least), (least, least - 1)):
        with pytest.raises(ValueError, match=rf"{spec.kind} .* at least {least} pixels a side, came {height}×{width}"):
            shapes_of(spec, signature=signature_of(height, width), outputs=5)


@FAMILIES
def test_text_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="takes images"):
        spec.build(signature=InputSignature.of_ids(9, 30), outputs=5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mobilenet", {"width": 0.0}),
        ("mobilenet", {"blocks": 7}),
        ("mobilenet", {"embedding": 0}),
        ("mobilenet_v2", {"form": "tiny"}),
        ("mobilenet_v2", {"expansion": 0}),
        ("shufflenet_v1", {"groups": 5}),
        ("shufflenet_v2", {"size": 1}),
        ("imagenet_resnet", {"depth": 20}),
    ],
)
def test_options_out_of_range_are_refused(kind: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MODELS[kind](**options)
