"""What every family of models for small images keeps: shapes, feature maps and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.models import Classifier, ModelSpec, shapes_of
from compress.models.alexnet import AlexNetSpec
from compress.models.resnet import ResNet8x4Spec, ResNetSpec
from compress.models.vgg import VGGSpec
from compress.models.wrn import WideResNetSpec
from export.graph import InputSignature

BOTTLENECK = ResNetSpec(depth=14, block="bottleneck", blocks=(1, 2, 1), widths=(4, 4, 6), stem=5)
SMALL = {
    "wrn": WideResNetSpec(depth=10, widen=1),
    "vgg": VGGSpec(depth=8),
    "alexnet": AlexNetSpec(),
    "bottleneck": BOTTLENECK,
    "projection": ResNetSpec(depth=12, blocks=(2, 1, 2), widths=(4, 4, 6), stem=8, shortcut="projection"),
}
FAMILIES = pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL.keys())


def built(spec: ModelSpec, shape: tuple[int, int, int], outputs: int = 10) -> Classifier:
    """Return the model for images (H, W, channels), in evaluation, with batch norms that change what they read."""
    torch.manual_seed(0)
    model = spec.build(signature=InputSignature(shape), outputs=outputs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def images(rows: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("spec", "size", "names", "features"),
    [
        (
            WideResNetSpec(depth=16, widen=2),
            (32, 32),
            ("stage1", "stage2", "stage3"),
            [(32, 32, 32), (64, 16, 16), (128, 8, 8)],
        ),
        (WideResNetSpec(depth=10, widen=1), (33, 20), None, [(16, 33, 20), (32, 17, 10), (64, 9, 5)]),
        (
            VGGSpec(depth=13),
            (32, 32),
            ("stage1", "stage2", "stage3", "stage4", "stage5"),
            [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)],
        ),
        (VGGSpec(), (33, 20), None, [(64, 33, 20), (128, 16, 10), (256, 8, 5), (512, 4, 2), (512, 4, 2)]),
        (
            AlexNetSpec(),
            (32, 32),
            ("conv1", "conv2", "conv3", "conv4", "conv5"),
            [(64, 4, 4), (192, 2, 2), (384, 2, 2), (256, 2, 2), (256, 1, 1)],
        ),
        (AlexNetSpec(), (40, 65), None, [(64, 5, 8), (192, 2, 4), (384, 2, 4), (256, 2, 4), (256, 1, 2)]),
        (ResNet8x4Spec(), (32, 32), ("stage1", "stage2", "stage3"), [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        (BOTTLENECK, (33, 20), None, [(16, 33, 20), (16, 17, 10), (24, 9, 5)]),
    ],
)
def test_feature_maps(
    spec: ModelSpec, size: tuple[int, int], names: tuple[str, ...] | None, features: list[tuple[int, ...]]
) -> None:
    shapes = shapes_of(spec, signature=InputSignature((*size, 3)), outputs=10)
    assert shapes.feature_names == (names or shapes.feature_names)
    assert list(shapes.features) == features
    assert shapes.embedding == features[-1][0]


@FAMILIES
@pytest.mark.parametrize(("rows", "height", "width"), [(1, 32, 32), (3, 30, 37)])
def test_logits_follow_from_every_feature_map(spec: ModelSpec, rows: int, height: int, width: int) -> None:
    model = built(spec, (height, width, 3), outputs=6)
    with torch.no_grad():
        output = model(images(rows, height, width))
        assert output.logits.shape == (rows, 6)
        assert len(output.features) == len(model.feature_names) == len(set(model.feature_names))
        for i, feature in enumerate(output.features):
            assert (feature >= 0).all()  # behind a ReLU
            assert torch.equal(model.from_feature(feature, i), output.logits)
            assert not torch.equal(model.from_feature(feature + 1, i), output.logits)


@FAMILIES
def test_embedding_is_the_mean_of_the_last_map(spec: ModelSpec) -> None:
    with torch.no_grad():
        output = built(spec, (32, 40, 3))(images(2, 32, 40))
    torch.testing.assert_close(output.embedding, output.features[-1].mean(dim=(2, 3)))


@FAMILIES
def test_every_parameter_gets_a_gradient(spec: ModelSpec) -> None:
    torch.manual_seed(0)
    model = spec.build(signature=InputSignature((32, 32, 3)), outputs=10).train()
    model(images(4, 32, 32)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # A bias before a batch norm moves nothing: its gradient is zero up to rounding.
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if not name.endswith("0.bias"))


@pytest.mark.parametrize(
    ("spec", "least"),
    [(WideResNetSpec(), 4), (VGGSpec(), 8), (AlexNetSpec(), 29), (BOTTLENECK, 4), (ResNet8x4Spec(), 4)],
)
def test_images_that_are_too_small_are_refused(spec: ModelSpec, least: int) -> None:
    for height, width in ((least - 1, 32), (32, least - 1)):
        with pytest.raises(ValueError, match=rf"at least {least} pixels a side, came {height}×{width}"):
            spec.build(signature=InputSignature((height, width, 3)), outputs=10)
    smallest = shapes_of(spec, signature=InputSignature((least, least, 3)), outputs=10)
    assert smallest.features[-1][1:] == (1, 1)


@FAMILIES
def test_text_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="the model takes images, and the data is text"):
        spec.build(signature=InputSignature.of_ids(8, 100), outputs=2)
