"""Binary residual networks: Bulat & Tzimiropoulos 2019 and Liu et al. 2018."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from typing_extensions import Self

from compress.layers import BinaryConv2d, HalvingPool, LayerForm, TwoStepNorm2d
from compress.models.base import Classifier, image_shape, initialise
from compress.models.binary import (
    Activation,
    Arithmetic,
    BinarySpec,
    activation_of,
    first_convolution,
    inner_convolution,
    normed,
)
from compress.models.blocks import require_sides
from export.graph import InputSignature

BlockName = Literal["bulat", "bi_real"]
Stem = Literal["conv7", "conv3", "two_conv3", "depthwise"]
Width = Annotated[int, Field(ge=1, le=4096)]
Size = tuple[int, int]

BLOCKS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# By which a stem shrinks height and width, rounded up.
SHRINKS: dict[Stem, int] = {"conv7": 4, "conv3": 1, "two_conv3": 4, "depthwise": 4}
DEPTHWISE_WIDTH = 16


class BinaryResNet(Classifier):
    """A stem, stages of blocks of two binary 3×3 convolutions (halved between stages), mean over positions, classifier.

    Stem, the 1×1 convolutions of shortcuts and the classifier are not binary. features: each stage's last map.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        stem: Stem,
        block: BlockName,
        form: LayerForm,
        first_layer: Arithmetic,
        downsample: Arithmetic,
        activation: Activation,
        outputs: int,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        size = shrunk((height, width), SHRINKS[stem])
        kind = BulatBlock if block == "bulat" else BiRealBlock
        stages, before = [], widths[0]
        for i, (count, after) in enumerate(zip(blocks, widths, strict=True)):
            stage: list[nn.Module] = [] if i else [stem_of(stem, channels, before, first_layer, activation)]
            for j in range(count):
                stride = 2 if i and not j else 1
                stage.append(kind(before, after, stride, size, form, downsample, activation))
                before, size = after, shrunk(size, stride)
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.feature_names = tuple(f"stage{i + 1}" for i in range(len(widths)))
        self.classifier = nn.Linear(before, outputs)


class BulatBlock(nn.Module):
    """x + layer(layer(x)), a layer being batch norm, sign, binary convolution, activation.

    Bulat & Tzimiropoulos 2019 ("XNOR-Net++: improved binary neural networks"), after Rastegari et al. 2016.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, size: Size, form: LayerForm, downsample: Arithmetic,
        activation: Activation,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = []
        for before, step in ((inputs, stride), (outputs, 1)):
            layers.append(TwoStepNorm2d(before))
            layers.append(BinaryConv2d(before, outputs, 3, stride=step, padding=1, form=form, size=size))
            layers.append(activation_of(activation, outputs))
            size = shrunk(size, step)
        self.layers = nn.Sequential(*layers)
        self.shortcut = shortcut_of(inputs, outputs, stride, downsample)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.layers(x) + self.shortcut(x)
        return mapped


class BiRealBlock(nn.Module):
    """Two layers of activation(x + batch norm(binary convolution(sign(x)))): a shortcut around each convolution.

    Liu et al. 2018 ("Bi-Real net"), figure 1, whose activation is `none`; one behind the sum is Martinez et al.'s
    (2020, "Training binary neural networks with real-to-binary convolutions").
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, size: Size, form: LayerForm, downsample: Arithmetic,
        activation: Activation,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer1 = BinaryConv2d(inputs, outputs, 3, stride=stride, padding=1, form=form, norm=True, size=size)
        self.shortcut = shortcut_of(inputs, outputs, stride, downsample)
        self.activation1 = activation_of(activation, outputs)
        size = shrunk(size, stride)
        self.layer2 = BinaryConv2d(outputs, outputs, 3, padding=1, form=form, norm=True, size=size)
        self.activation2 = activation_of(activation, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation1(self.layer1(x) + self.shortcut(x))
        mapped: Tensor = self.activation2(self.layer2(x) + x)
        return mapped


def shortcut_of(inputs: int, outputs: int, stride: int, arithmetic: Arithmetic) -> nn.Module:
    """Return what brings x (N, inputs, H, W) to the shape of the block's map: mean over 2×2, 1×1 convolution, norm."""
    if (stride, inputs) == (1, outputs):
        return nn.Identity()
    pool = [HalvingPool()] if stride == 2 else []
    return nn.Sequential(*pool, *normed(inner_convolution(inputs, outputs, 1, arithmetic), outputs))


def stem_of(stem: Stem, channels: int, width: int, arithmetic: Arithmetic, activation: Activation) -> nn.Module:
    if stem == "conv3":
        return normed(first_convolution(channels, width, 3, 1, arithmetic), width, activation)
    if stem == "conv7":
        return normed(first_convolution(channels, width, 7, 2, arithmetic), width, activation).append(
            nn.MaxPool2d(3, 2, padding=1)
        )
    if stem == "two_conv3":
        first = normed(first_convolution(channels, width // 2, 3, 2, arithmetic), width // 2, "relu")
        return first.extend(normed(inner_convolution(width // 2, width, 3, arithmetic, stride=2), width, activation))
    few = min(DEPTHWISE_WIDTH, width)
    first = normed(first_convolution(channels, few, 3, 2, arithmetic), few, "relu")
    first.extend(normed(inner_convolution(few, few, 3, arithmetic, stride=2, groups=few), few, "relu"))
    return first.extend(normed(inner_convolution(few, width, 1, arithmetic), width, activation))


def shrunk(size: Size, factor: int) -> Size:
    return -(-size[0] // factor), -(-size[1] // factor)


class BinaryResNetSpec(BinarySpec):
    """Binary residual network. For ImageNet `{depth: 18}` or 34; for 32×32 `{depth: 18, stem: conv3}`.

    depth: 18 or 34, or `blocks` of two convolutions for each of `widths`
    (`{blocks: [2, 2, 2], widths: [32, 64, 128], stem: conv3}`). stem: `conv7` 7×7 and max pool, `two_conv3` and
    `depthwise` (3×3, depthwise 3×3, 1×1) lighter ones, all shrinking by 4; `conv3` one 3×3 for small images. block:
    `bulat` batch norm, sign, convolution, activation; `bi_real` a shortcut around each convolution. downsample: the 1×1
    convolutions of shortcuts, as first_layer. activation: behind each convolution or sum.
    """

    kind = "binary_resnet"

    depth: Literal[18, 34] | None = None
    blocks: Annotated[tuple[Annotated[int, Field(ge=1, le=200)], ...], Field(min_length=1, max_length=6)] | None = None
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=6)] = (64, 128, 256, 512)
    stem: Stem = "conv7"
    block: BlockName = "bi_real"
    downsample: Arithmetic = "fixed8"
    activation: Activation = "prelu"

    @property
    def blocks_of_stages(self) -> tuple[int, ...]:
        return self.blocks or BLOCKS[self.depth or 18]

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.depth and self.blocks:
            raise PydanticCustomError("depth", "depth and blocks are both given; expected one of them")
        if len(self.blocks_of_stages) != len(self.widths):
            raise PydanticCustomError(
                "blocks",
                "there are blocks for {blocks} stages and widths for {stages}; expected as many",
                {"blocks": len(self.blocks_of_stages), "stages": len(self.widths)},
            )
        if self.block == "bi_real" and self.activation == "relu":
            raise PydanticCustomError(
                "activation",
                "a bi_real block signs what the activation gives, and of relu every sign is +1; expected prelu or none",
            )
        if self.stem == "two_conv3" and self.widths[0] < 2:
            raise PydanticCustomError("widths", "stem two_conv3 halves the first width; expected at least 2")
        return self

    def build(self, *, signature: InputSignature, outputs: int) -> BinaryResNet:
        shape = image_shape(signature)
        least = SHRINKS[self.stem] * 2 ** (len(self.widths) - 1)
        require_sides(f"binary_resnet with {len(self.widths)} stages and stem {self.stem}", shape, least)
        model = BinaryResNet(
            shape,
            blocks=self.blocks_of_stages,
            widths=self.widths,
            stem=self.stem,
            block=self.block,
            form=self.form,
            first_layer=self.first_layer,
            downsample=self.downsample,
            activation=self.activation,
            outputs=outputs,
        )
        initialise(model, self.init)
        return model
