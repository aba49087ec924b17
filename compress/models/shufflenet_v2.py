"""ShuffleNet V2: Ma et al. 2018 ("ShuffleNet V2: practical guidelines for efficient CNN architecture design")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from compress.models.base import Classifier, ModelSpec, image_shape, initialise
from compress.models.blocks import ChannelShuffle, normed_convolution, require_sides
from compress.models.shufflenet_v1 import STEM_WIDTH, UNITS, Form, stem_of
from export.graph import InputSignature

Size = Literal["0.5x", "1x", "1.5x", "2x"]

# Widths of the three stages and of the convolution behind them (table 5).
WIDTHS: dict[str, tuple[tuple[int, int, int], int]] = {
    "0.5x": ((48, 96, 192), 1024),
    "1x": ((116, 232, 464), 1024),
    "1.5x": ((176, 352, 704), 1024),
    "2x": ((244, 488, 976), 2048),
}


class ShuffleNetV2(Classifier):
    """A stem, three stages that halve at their start, a 1×1 convolution, mean over positions, classifier.

    features: each stage's map after its last shuffle.
    """

    feature_names = tuple(f"stage{i + 1}" for i in range(len(UNITS)))

    def __init__(self, channels: int, *, form: Form, widths: tuple[int, int, int], last: int, outputs: int) -> None:
        super().__init__()
        stem = stem_of(channels, STEM_WIDTH, form)
        before, stages = STEM_WIDTH, []
        for i, (units, after) in enumerate(zip(UNITS, widths, strict=True)):
            others = (SplitUnit(after) for _ in range(units - 1))
            stages.append(nn.Sequential(*([] if i else [stem]), HalvingUnit(before, after), *others))
            before = after
        self.stages = nn.ModuleList(stages)
        self.head = normed_convolution(before, last, 1)
        self.classifier = nn.Linear(last, outputs)

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(self.head(x))


class SplitUnit(nn.Module):
    """One half of the channels is left as it is, the other passes three convolutions; shuffled (figure 3c)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mapped = _branch(width // 2, width // 2, stride=1)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, passed = x.chunk(2, dim=1)
        shuffled: Tensor = self.shuffle(torch.cat([kept, self.mapped(passed)], dim=1))
        return shuffled


class HalvingUnit(nn.Module):
    """Both branches have convolutions and stride 2, and each gives half of the new channels; shuffled (figure 3d)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.short = nn.Sequential(
            normed_convolution(inputs, inputs, 3, stride=2, groups=inputs, activation=None),
            normed_convolution(inputs, outputs // 2, 1),
        )
        self.mapped = _branch(inputs, outputs // 2, stride=2)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        shuffled: Tensor = self.shuffle(torch.cat([self.short(x), self.mapped(x)], dim=1))
        return shuffled


def _branch(inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        normed_convolution(inputs, width, 1),
        normed_convolution(width, width, 3, stride=stride, groups=width, activation=None),
        normed_convolution(width, width, 1),
    )


class ShuffleNetV2Spec(ModelSpec):
    """ShuffleNet V2: split channels, equal widths, channel shuffle. 2.28M parameters at 1000 outputs.

    form: `cifar` is the CRD benchmark's for 32×32, 1.36M parameters at 100 outputs. size: a column of table 5.
    """

    kind = "shufflenet_v2"

    form: Form = "imagenet"
    size: Size = "1x"

    def build(self, *, signature: InputSignature, outputs: int) -> ShuffleNetV2:
        shape = image_shape(signature)
        require_sides(f"shufflenet_v2 of form {self.form}", shape, 32 if self.form == "imagenet" else 8)
        widths, last = WIDTHS[self.size]
        model = ShuffleNetV2(shape[0], form=self.form, widths=widths, last=last, outputs=outputs)
        initialise(model, self.init)
        return model
