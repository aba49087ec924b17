"""MobileNet V1: Howard et al. 2017 ("MobileNets: efficient convolutional neural networks for mobile vision")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from compress.models.base import Classifier, ModelSpec, image_shape, initialise
from compress.models.blocks import normed_convolution, require_sides
from export.graph import InputSignature

Stem = Literal["imagenet", "cifar"]

# Output widths of the blocks of each stage at width 1; the fourth stage has as many blocks as `blocks` leaves for it.
STAGES = ((64,), (128, 128), (256, 256), (512,), (1024, 1024))
FEWEST_BLOCKS = sum(map(len, STAGES))
LEAST_WIDTH = 8  # as in the authors' code


class MobileNet(Classifier):
    """A 3×3 stem, five stages of depthwise separable blocks, mean over positions, classifier.

    features: each stage's map after its last ReLU; the stages after the first halve height and width.
    """

    feature_names = tuple(f"stage{i + 1}" for i in range(len(STAGES)))

    def __init__(
        self, channels: int, *, stem: Stem, width: float, blocks: int, embedding: int | None, outputs: int
    ) -> None:
        super().__init__()
        before = _scaled(32, width)
        stages: list[list[nn.Module]] = []
        for i, widths in enumerate(STAGES):
            repeats = blocks - FEWEST_BLOCKS if widths == (512,) else 0
            stage: list[nn.Module] = []
            for unscaled in (*widths, *(widths[-1:] * repeats)):
                after = _scaled(unscaled, width)
                if embedding is not None and i == len(STAGES) - 1 and len(stage) == 1:
                    after = embedding
                stage.append(separable(before, after, stride=2 if i and not stage else 1))
                before = after
            stages.append(stage)
        first = normed_convolution(channels, _scaled(32, width), 3, stride=2 if stem == "imagenet" else 1)
        self.stages = nn.ModuleList(nn.Sequential(*([] if i else [first]), *stage) for i, stage in enumerate(stages))
        self.classifier = nn.Linear(before, outputs)


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return a depthwise 3×3 and a pointwise convolution, each with batch norm and ReLU (figure 3, right)."""
    return nn.Sequential(
        normed_convolution(inputs, inputs, 3, stride=stride, groups=inputs), normed_convolution(inputs, outputs, 1)
    )


def _scaled(width: int, multiplier: float) -> int:
    return max(int(width * multiplier), LEAST_WIDTH)


class MobileNetSpec(ModelSpec):
    """MobileNet V1: depthwise separable convolutions. 4.23M parameters at 1000 outputs.

    width: the paper's width multiplier. blocks: depthwise separable blocks, 13 in the paper, 8 in its "shallow" form
    (table 5). embedding: width D of the last block and so of the classifier's input, where it is not 1024 · width.
    stem: `cifar` leaves the stem's stride out, for 32×32.
    """

    kind = "mobilenet"

    stem: Stem = "imagenet"
    width: float = Field(1.0, gt=0, le=8)
    blocks: int = Field(13, ge=FEWEST_BLOCKS, le=128)
    embedding: int | None = Field(None, ge=1, le=65536)

    def build(self, *, signature: InputSignature, outputs: int) -> MobileNet:
        shape = image_shape(signature)
        require_sides(f"mobilenet with stem {self.stem}", shape, 32 if self.stem == "imagenet" else 16)
        model = MobileNet(
            shape[0],
            stem=self.stem,
            width=self.width,
            blocks=self.blocks,
            embedding=self.embedding,
            outputs=outputs,
        )
        initialise(model, self.init)
        return model
