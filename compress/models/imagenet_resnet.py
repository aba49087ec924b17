"""Residual networks for large images: He et al. 2016 ("Deep residual learning for image recognition"), table 1."""

from __future__ import annotations

from typing import Literal

from torch import nn

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from compress.models.blocks import normed_convolution, require_sides
from compress.models.resnet import BasicBlock, Bottleneck
from export.graph import InputSignature

Depth = Literal[18, 34, 50, 101, 152]
Stem = Literal["imagenet", "cifar"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
DEEPEST_OF_BASIC_BLOCKS = 34


class ImageNetResNet(Classifier):
    """A stem, four stages of residual blocks (halved between stages), mean over positions, classifier.

    features: each stage's map after its last ReLU.
    """

    feature_names = tuple(f"stage{i + 1}" for i in range(len(WIDTHS)))

    def __init__(self, channels: int, *, depth: Depth, stem: Stem, outputs: int) -> None:
        super().__init__()
        block = BasicBlock if depth <= DEEPEST_OF_BASIC_BLOCKS else Bottleneck
        before, stages = WIDTHS[0], []
        for i, (blocks, width) in enumerate(zip(BLOCKS[depth], WIDTHS, strict=True)):
            stage: list[nn.Module] = [] if i else [_stem(channels, stem)]
            for j in range(blocks):
                stride = 2 if i and not j else 1
                stage.append(block(before, width, stride, "projection"))
                before = width * block.expansion
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(before, outputs)


def _stem(channels: int, stem: Stem) -> nn.Sequential:
    if stem == "cifar":
        return normed_convolution(channels, WIDTHS[0], 3)
    return normed_convolution(channels, WIDTHS[0], 7, stride=2).append(nn.MaxPool2d(3, 2, padding=1))


class ImageNetResNetSpec(ModelSpec):
    """ResNet-18 to ResNet-152 for large images. 11.69M to 60.19M parameters at 1000 outputs.

    stem: `imagenet` is a 7×7 convolution of stride 2 and a max pool; `cifar` a 3×3 convolution, for 32×32, which makes
    depth 50 the CRD benchmark's ResNet-50. The small networks of the paper's section 4.2 are `resnet`.
    """

    kind = "imagenet_resnet"

    init: Init = "he_fan_out"
    depth: Depth = 18
    stem: Stem = "imagenet"

    def build(self, *, signature: InputSignature, outputs: int) -> ImageNetResNet:
        shape = image_shape(signature)
        require_sides(f"imagenet_resnet with stem {self.stem}", shape, 32 if self.stem == "imagenet" else 8)
        model = ImageNetResNet(shape[0], depth=self.depth, stem=self.stem, outputs=outputs)
        initialise(model, self.init)
        return model
