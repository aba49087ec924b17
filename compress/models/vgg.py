"""VGG for small images: Simonyan & Zisserman 2015, without its hidden layers, as in the CRD benchmark."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature

Depth = Literal[8, 11, 13, 16, 19]

WIDTHS = (64, 128, 256, 512, 512)
# 3×3 convolutions a stage. 11 to 19 are the paper's A, B, D, E; the names still count the two hidden layers that are
# left out here. 8 is the CRD benchmark's.
CONVOLUTIONS: dict[Depth, tuple[int, int, int, int, int]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
POOLED = (1, 2, 3)  # stages before which the map is halved: the last two work at the same size
LEAST = 2 ** len(POOLED)  # pixels a side


class VGG(Classifier):
    """Five stages of 3×3 convolutions with ReLU, three poolings between them, mean over positions, classifier.

    features: each stage's map after its last ReLU, before the pooling.
    """

    feature_names = ("stage1", "stage2", "stage3", "stage4", "stage5")

    def __init__(self, input_shape: tuple[int, int, int], *, depth: Depth, batch_norm: bool, outputs: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < LEAST:
            raise ValueError(f"vgg needs images of at least {LEAST} pixels a side, came {height}×{width}")
        self.stages = nn.ModuleList(
            nn.Sequential(
                *_convolution(before, after, batch_norm),
                *(layer for _ in range(count - 1) for layer in _convolution(after, after, batch_norm)),
            )
            for (before, after), count in zip(itertools.pairwise((channels, *WIDTHS)), CONVOLUTIONS[depth], strict=True)
        )
        self.classifier = nn.Linear(WIDTHS[-1], outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        # (N, WIDTHS[index], h, w): of 32×32 pixels 32, 16, 8, 4, 4
        return super().stage(F.max_pool2d(x, 2) if index in POOLED else x, index)


def _convolution(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    # With a bias even before a batch norm, as published: the parameter counts include it.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [convolution, nn.ReLU()]


class VGGSpec(ModelSpec):
    """VGG-8, 11, 13, 16 or 19 for small images, its hidden layers replaced by the mean over positions.

    batch_norm: after every convolution, as in the CRD benchmark (Tian et al. 2020), whose vgg8 and vgg13 these are.
    """

    kind = "vgg"

    init: Init = "he_fan_out"
    depth: Depth = 8
    batch_norm: bool = True

    def build(self, *, signature: InputSignature, outputs: int) -> VGG:
        model = VGG(image_shape(signature), depth=self.depth, batch_norm=self.batch_norm, outputs=outputs)
        initialise(model, self.init)
        return model
