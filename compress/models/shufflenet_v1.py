"""ShuffleNet V1: Zhang et al. 2018 ("ShuffleNet: an extremely efficient convolutional neural network ...")."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.base import Classifier, ModelSpec, image_shape, initialise
from compress.models.blocks import ChannelShuffle, normed_convolution, require_sides
from export.graph import InputSignature

Form = Literal["imagenet", "cifar"]
Groups = Literal[1, 2, 3, 4, 8]

STEM_WIDTH = 24
UNITS = (4, 8, 4)
FIRST_WIDTH = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # table 1, stage 2; every later stage doubles it


class ShuffleNetV1(Classifier):
    """A stem, three stages of shuffle units that halve at their start, mean over positions, classifier.

    features: each stage's map after its last ReLU.
    """

    feature_names = tuple(f"stage{i + 1}" for i in range(len(UNITS)))

    def __init__(self, channels: int, *, form: Form, groups: int, width: float, outputs: int) -> None:
        super().__init__()
        stem = stem_of(channels, STEM_WIDTH, form)
        before, stages = STEM_WIDTH, []
        for i, units in enumerate(UNITS):
            after = _multiple(FIRST_WIDTH[groups] * width, groups) * 2**i
            # The first pointwise convolution has too few channels for groups (section 3.2).
            first = ShuffleUnit(before, after, groups, form, grouped_entry=i > 0)
            others = (ShuffleUnit(after, after, groups, form) for _ in range(units - 1))
            stages.append(nn.Sequential(*([] if i else [stem]), first, *others))
            before = after
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(before, outputs)


class ShuffleUnit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; added to the input, or, with stride 2, beside its mean pool.

    It has stride 2 where the widths differ. The bottleneck is a quarter of the unit's width; in the CRD benchmark's
    `cifar` form, a quarter of what the convolutions add to it (54 and not 60 in the first unit of three groups).
    """

    def __init__(self, inputs: int, outputs: int, groups: int, form: Form, *, grouped_entry: bool = True) -> None:
        super().__init__()
        self.halves = inputs != outputs
        new = outputs - inputs if self.halves else outputs
        middle = _multiple((outputs if form == "imagenet" else new) / 4, groups)
        self.mapped = nn.Sequential(
            normed_convolution(inputs, middle, 1, groups=groups if grouped_entry else 1),
            ChannelShuffle(groups if grouped_entry else 1),
            # The CRD benchmark has a ReLU here; the paper has none (figure 2).
            normed_convolution(
                middle,
                middle,
                3,
                stride=2 if self.halves else 1,
                groups=middle,
                activation=nn.ReLU if form == "cifar" else None,
            ),
            normed_convolution(middle, new, 1, groups=groups, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        mapped = self.mapped(x)
        if not self.halves:
            return F.relu(mapped + x)
        return F.relu(torch.cat([mapped, F.avg_pool2d(x, 3, 2, padding=1)], dim=1))


def stem_of(channels: int, width: int, form: Form) -> nn.Sequential:
    """Return a 3×3 convolution of stride 2 and a max pool or, for 32×32, a 1×1 convolution."""
    if form == "cifar":
        return normed_convolution(channels, width, 1)
    return normed_convolution(channels, width, 3, stride=2).append(nn.MaxPool2d(3, 2, padding=1))


def _multiple(width: float, of: int) -> int:
    """Return the least multiple of `of` that is not under the whole part of `width`."""
    return max(-(-int(width) // of), 1) * of


class ShuffleNetV1Spec(ModelSpec):
    """ShuffleNet V1: grouped 1×1 convolutions with channel shuffle.

    form: `cifar` is the CRD benchmark's for 32×32, 0.95M parameters at 100 outputs with three groups. groups: g, which
    sets the widths (table 1). width: the factor of the paper's "ShuffleNet 0.5×"; the stem keeps its 24 channels.
    """

    kind = "shufflenet_v1"

    form: Form = "imagenet"
    groups: Groups = 3
    width: float = Field(1.0, ge=0.25, le=8)

    def build(self, *, signature: InputSignature, outputs: int) -> ShuffleNetV1:
        shape = image_shape(signature)
        require_sides(f"shufflenet_v1 of form {self.form}", shape, 32 if self.form == "imagenet" else 8)
        model = ShuffleNetV1(shape[0], form=self.form, groups=self.groups, width=self.width, outputs=outputs)
        initialise(model, self.init)
        return model
