"""MobileNetV2: Sandler et al. 2018 ("Inverted residuals and linear bottlenecks"), and two forms for 32×32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from compress.models.blocks import normed_convolution, require_sides
from export.graph import InputSignature

Form = Literal["imagenet", "cifar", "crd"]

# Width and number of the blocks of each group (table 2), and which groups end a stage.
GROUPS = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))
STAGES = ((0, 1), (2,), (3, 4), (5, 6))
LAST_WIDTH = 1280


@dataclass(frozen=True)
class Shape:
    """Where the forms differ. strides: of each group's first block. expand_first: a 1×1 convolution at expansion 1."""

    stem_kernel: int
    stem_stride: int
    strides: tuple[int, ...]
    activation: type[nn.Module]
    expand_first: bool
    bias: bool
    multiple: int

    @property
    def shrinks(self) -> int:
        return self.stem_stride * 2 ** sum(stride == 2 for stride in self.strides)


SHAPES: dict[str, Shape] = {
    "imagenet": Shape(3, 2, (1, 2, 2, 2, 1, 2, 1), nn.ReLU6, expand_first=False, bias=False, multiple=8),
    # SRRL prints 2.37M and no construction. A common CIFAR-100 form, with biases before batch norm, has that many.
    "cifar": Shape(1, 1, (1, 2, 2, 2, 1, 1, 1), nn.ReLU6, expand_first=True, bias=True, multiple=8),
    "crd": Shape(3, 2, (1, 1, 2, 2, 1, 2, 1), nn.ReLU, expand_first=True, bias=False, multiple=1),
}


class MobileNetV2(Classifier):
    """A stem, seven groups of inverted residuals, a 1×1 convolution, mean over positions, classifier.

    features: the maps after groups 2, 3, 5 and 7, which are linear (no ReLU behind them).
    """

    feature_names = tuple(f"stage{i + 1}" for i in range(len(STAGES)))

    def __init__(self, channels: int, *, shape: Shape, width: float, expansion: int, outputs: int) -> None:
        super().__init__()
        before = scaled(32, width, shape.multiple)
        stem = normed_convolution(
            channels, before, shape.stem_kernel, stride=shape.stem_stride, bias=shape.bias, activation=shape.activation
        )
        groups: list[list[nn.Module]] = []
        for (unscaled, blocks), stride in zip(GROUPS, shape.strides, strict=True):
            after = scaled(unscaled, width, shape.multiple)
            group: list[nn.Module] = []
            for i in range(blocks):
                factor = expansion if groups else 1
                group.append(InvertedResidual(before, after, 1 if i else stride, factor, shape))
                before = after
            groups.append(group)
        self.stages = nn.ModuleList(
            nn.Sequential(*([] if i else [stem]), *(block for index in indices for block in groups[index]))
            for i, indices in enumerate(STAGES)
        )
        last = scaled(LAST_WIDTH, max(width, 1.0), shape.multiple)
        self.head = normed_convolution(before, last, 1, bias=shape.bias, activation=shape.activation)
        self.classifier = nn.Linear(last, outputs)

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(self.head(x))  # (N, 1280)


class InvertedResidual(nn.Module):
    """1×1 to `expansion` times the width, depthwise 3×3, linear 1×1; plus the input where shapes allow (figure 4)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, shape: Shape) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1 or shape.expand_first:
            layers.append(normed_convolution(inputs, wide, 1, bias=shape.bias, activation=shape.activation))
        layers += [
            normed_convolution(wide, wide, 3, stride=stride, groups=wide, bias=shape.bias, activation=shape.activation),
            normed_convolution(wide, outputs, 1, bias=shape.bias, activation=None),
        ]
        self.residual = nn.Sequential(*layers)
        self.adds = (stride, inputs) == (1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.residual(x)
        return x + mapped if self.adds else mapped


def scaled(width: int, multiplier: float, multiple: int) -> int:
    """Return width · multiplier as a multiple of `multiple`: the nearest, and never under nine tenths of it.

    The authors' rule; with `multiple` 1 the fraction is cut off.
    """
    exact = width * multiplier
    if multiple == 1:
        return max(int(exact), 1)
    nearest = max(multiple, int(exact + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * exact else nearest + multiple


class MobileNetV2Spec(ModelSpec):
    """MobileNetV2: inverted residuals. 3.50M parameters at 1000 outputs.

    form: `imagenet` is the paper's; `cifar` is for 32×32, 2.37M at 100 outputs; `crd` is the CRD benchmark's, whose
    `mobilenetv2` has width 0.5. width: the width multiplier. expansion: t, in all groups but the first.
    """

    kind = "mobilenet_v2"

    init: Init = "he_fan_out"
    form: Form = "imagenet"
    width: float = Field(1.0, gt=0, le=8)
    expansion: int = Field(6, ge=1, le=64)

    def build(self, *, signature: InputSignature, outputs: int) -> MobileNetV2:
        shape, channels = SHAPES[self.form], image_shape(signature)
        require_sides(f"mobilenet_v2 of form {self.form}", channels, shape.shrinks)
        model = MobileNetV2(channels[0], shape=shape, width=self.width, expansion=self.expansion, outputs=outputs)
        initialise(model, self.init)
        if self.init == "he_fan_out":
            nn.init.normal_(model.classifier.weight, std=0.01)
        return model
