"""binary_resnet and binary_cnn: their layers, options and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compress.layers import BinaryConv2d, BinaryLinear, FixedPointConv2d, HalvingPool, TwoStepNorm2d
from compress.models import profile_of, shapes_of
from compress.models.binary_cnn import BinaryCNNSpec
from compress.models.binary_resnet import BinaryResNetSpec
from compress.models.resnet import ResNetSpec
from export.graph import InputSignature
from export.layers import binary_layers, with_exported_layers

CIFAR = InputSignature((32, 32, 3))
ODD = InputSignature((30, 23, 3))
IMAGENET = InputSignature((224, 224, 3))
MNIST = InputSignature((28, 28, 1))
SMALL: dict[str, Any] = {"blocks": (1, 1), "widths": (8, 16), "stem": "conv3"}


def kinds(module: nn.Module) -> list[str]:
    """Return the types of the modules without children, in the order of the modules."""
    return [type(each).__name__ for each in module.modules() if not list(each.children())]


@pytest.mark.parametrize(("spec", "signature", "features", "embedding"), [
    (BinaryResNetSpec(depth=18), IMAGENET, [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)], 512),
    (BinaryResNetSpec(depth=34, stem="conv3"), CIFAR, [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)], 512),
    (BinaryResNetSpec(**{**SMALL, "stem": "two_conv3"}), ODD, [(8, 8, 6), (16, 4, 3)], 16),
    (BinaryResNetSpec(**{**SMALL, "stem": "depthwise", "block": "bulat"}), ODD, [(8, 8, 6), (16, 4, 3)], 16),
    (BinaryResNetSpec(**{**SMALL, "scale": "learned_factors"}), ODD, [(8, 30, 23), (16, 15, 12)], 16),
    (BinaryCNNSpec(), MNIST, [(32, 14, 14), (64, 7, 7), (128, 4, 4)], 128),
    (BinaryCNNSpec(widths=(4, 5), hidden=7, scale="learned_dense"), ODD, [(4, 15, 12), (5, 8, 6)], 7),
])  # fmt: skip
def test_maps_are_halved_upwards(
    spec: Any, signature: InputSignature, features: list[tuple[int, ...]], embedding: int
) -> None:
    shapes = shapes_of(spec, signature=signature, outputs=10)
    assert list(shapes.features) == features
    assert shapes.embedding == embedding
    assert shapes.feature_names == tuple(f"stage{i + 1}" for i in range(len(features)))


def test_a_bulat_block_is_norm_sign_convolution_activation_twice() -> None:
    model = BinaryResNetSpec(**SMALL, block="bulat").build(signature=CIFAR, outputs=10)
    block = model.stages[1][0]
    layer = ["TwoStepNorm2d", "BinaryConv2d", "ChannelPReLU"]
    assert kinds(block) == [*layer, *layer, "HalvingPool", "FixedPointConv2d", "TwoStepNorm2d"]
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), block.layers(x) + block.shortcut(x))
    norms = [module for module in block.layers if isinstance(module, TwoStepNorm2d)]
    assert [norm.num_features for norm in norms] == [8, 16]


def test_a_bi_real_block_has_a_shortcut_around_each_convolution() -> None:
    model = BinaryResNetSpec(**SMALL, activation="none").build(signature=CIFAR, outputs=10)
    block = model.stages[1][0].eval()
    x = torch.randn(2, 8, 6, 6)
    middle = block.layer1(x) + block.shortcut(x)
    assert torch.equal(block(x), block.layer2(middle) + middle)
    assert block.layer1.norm is not None
    assert isinstance(model.stages[0][1].shortcut, nn.Identity)


def test_stems_and_shortcuts_are_in_fixed_point_or_real() -> None:
    for stem, convolutions in (("conv7", 1), ("conv3", 1), ("two_conv3", 2), ("depthwise", 3)):
        options = {**SMALL, "stem": stem}
        fixed = BinaryResNetSpec(**options).build(signature=CIFAR, outputs=10)
        assert kinds(fixed).count("FixedPointConv2d") == convolutions + 1
        assert "Conv2d" not in kinds(fixed)
        real = BinaryResNetSpec(**options, first_layer="real", downsample="real").build(signature=CIFAR, outputs=10)
        assert kinds(real).count("Conv2d") == convolutions + 1
        assert "FixedPointConv2d" not in kinds(real)
    first = next(m for m in fixed.modules() if isinstance(m, FixedPointConv2d))
    assert (first.step, first.levels) == (2**-6, 255)


def test_only_stem_shortcuts_and_classifier_are_not_binary() -> None:
    model = BinaryResNetSpec(depth=18).build(signature=IMAGENET, outputs=10)
    layers = [module for module in model.modules() if isinstance(module, BinaryConv2d)]
    assert len(layers) == 16
    assert set(binary_layers(model).values()) == {"BinaryConv"}
    assert len(binary_layers(with_exported_layers(model.eval()))) == 16
    cnn = BinaryCNNSpec().build(signature=MNIST, outputs=10)
    assert list(binary_layers(cnn).values()) == ["BinaryConv", "BinaryConv", "BinaryGemm"]


@pytest.mark.parametrize(("options", "message"), [
    ({"depth": 18, "blocks": (1, 1, 1, 1)}, "both given"),
    ({"blocks": (1, 1)}, "blocks for 2 stages and widths for 4"),
    ({"block": "bi_real", "activation": "relu"}, "every sign is \\+1"),
    ({"scale": "xnor_k", "weights": "int4"}, "xnor_k is for binary"),
    ({"weights": "int3"}, "int8"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BinaryResNetSpec(**options)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 pixels a side, came 28×28"):
        BinaryResNetSpec().build(signature=MNIST, outputs=10)
    with pytest.raises(ValueError, match="at least 8 pixels"):
        BinaryCNNSpec().build(signature=InputSignature((7, 9, 1)), outputs=10)


def test_training_goes_in_steps_between_models_with_the_same_parameters() -> None:
    steps = [
        BinaryResNetSpec(**SMALL, weights="real", activations="real"),
        BinaryResNetSpec(**SMALL, weights="real"),
        BinaryResNetSpec(**SMALL, ste="tanh"),
        BinaryResNetSpec(**SMALL, weights="ternary"),
    ]
    for source in steps:
        for spec in steps:
            assert spec.takes_weights_of(source)
            weights = source.build(signature=CIFAR, outputs=10).state_dict()
            spec.build(signature=CIFAR, outputs=10).load_state_dict(weights)
    first = steps[0]
    assert not first.takes_weights_of(BinaryResNetSpec(**{**SMALL, "widths": (8, 17)}))
    assert not first.takes_weights_of(BinaryResNetSpec(**SMALL, scale="learned"))
    assert not first.takes_weights_of(BinaryResNetSpec(**SMALL, activations="int4"))
    assert not first.takes_weights_of(BinaryCNNSpec())
    assert not ResNetSpec().takes_weights_of(first)
    assert ResNetSpec().takes_weights_of(ResNetSpec())


def test_the_profile_counts_by_bits() -> None:
    spec = BinaryResNetSpec(blocks=(1, 1), widths=(8, 16), stem="conv3", block="bulat", activation="none")
    profile = profile_of(spec, signature=InputSignature((8, 8, 3)), outputs=5)
    binary = 9 * (8 * 8 * 64 + 8 * 8 * 64 + 8 * 16 * 16 + 16 * 16 * 16)
    assert profile.macs == {1: binary, 9: 27 * 8 * 64, 8: 8 * 16 * 16, 32: 16 * 5}
    weights = 9 * (8 * 8 + 8 * 8 + 8 * 16 + 16 * 16)
    norms = 2 * (8 + 8 + 8 + 8 + 16 + 16)
    assert profile.bytes == {
        "1 bit": weights // 8,
        "8 bit": 27 * 8 + 8 * 16,
        "float32": 4 * (norms + 16 * 5 + 5),
    }
    assert profile.parameters == weights + 27 * 8 + 8 * 16 + norms + 16 * 5 + 5
    (note,) = profile.notes
    assert note.startswith(f"MACs by the bits of the larger factor: {binary / 1000:.0f} k of 1 bit, ")


@pytest.mark.parametrize(("options", "bits"), [
    ({"activations": "real"}, 32), ({"weights": "real"}, 32), ({"weights": "ternary"}, 2),
    ({"weights": "int4", "activations": "int8"}, 8),
])  # fmt: skip
def test_a_product_is_binary_only_if_both_factors_are(options: dict[str, Any], bits: int) -> None:
    profile = profile_of(BinaryCNNSpec(**options), signature=MNIST, outputs=5)
    assert 1 not in profile.macs
    assert profile.macs[bits] >= 9 * 32 * 64 * 49 + 9 * 64 * 128 * 16 + 16 * 128 * 128


def test_linear_layers_take_what_a_scale_of_maps_leaves_for_vectors() -> None:
    for scale, left in (("xnor_k", "mean_abs"), ("learned_factors", "learned"), ("none", "none")):
        model = BinaryCNNSpec(scale=scale).build(signature=MNIST, outputs=10)  # type: ignore[arg-type]
        assert isinstance(model.hidden, BinaryLinear)
        assert model.hidden.form.scale == left


def test_the_whole_net_evaluates_to_the_bit_as_its_exported_layers() -> None:
    torch.manual_seed(0)
    model = BinaryResNetSpec(**SMALL).build(signature=ODD, outputs=10).train()
    x = torch.randn(4, 3, 30, 23)
    model(x)
    model.eval()
    exported = with_exported_layers(model)
    pools = [module for module in exported.modules() if isinstance(module, HalvingPool)]
    assert len(pools) == 1
    assert torch.equal(exported(x).logits, model(x).logits)
    assert len(list(exported.parameters())) == 2 + 5  # the classifier and the slopes of PReLU
