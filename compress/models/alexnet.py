"""AlexNet for small images: Krizhevsky 2014 ("One weird trick"), with paddings for 32×32 and no hidden layers."""

from __future__ import annotations

import itertools

from torch import nn

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature

WIDTHS = (64, 192, 384, 256, 256)
POOLED = (0, 1, 4)  # convolutions that are followed by a pooling
LEAST = 29  # pixels a side: the stride of 4 leaves ceil(29 / 4) = 8 positions, and three poolings one


class AlexNet(Classifier):
    """Convolutions 11×11 (stride 4), 5×5, 3×3, 3×3, 3×3 with ReLU, the first two and the last pooled, classifier.

    features: the map of each convolution after its ReLU, and its pooling where it has one: 4, 2, 2, 2 and 1 positions a
    side from 32×32 pixels.
    """

    feature_names = ("conv1", "conv2", "conv3", "conv4", "conv5")

    def __init__(self, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < LEAST:
            raise ValueError(f"alexnet needs images of at least {LEAST} pixels a side, came {height}×{width}")
        convolutions = (
            nn.Conv2d(before, after, kernel, 4 if kernel == 11 else 1, padding=kernel // 2)
            for (before, after), kernel in zip(itertools.pairwise((channels, *WIDTHS)), (11, 5, 3, 3, 3), strict=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(convolution, nn.ReLU(), *([nn.MaxPool2d(2)] if i in POOLED else []))
            for i, convolution in enumerate(convolutions)
        )
        self.classifier = nn.Linear(WIDTHS[-1], outputs)


class AlexNetSpec(ModelSpec):
    """AlexNet for images of about 32×32 (29 at least): five convolutions, no hidden layers, no dropout.

    For subclass distillation's student (Müller, Kornblith & Hinton 2020). That it is fitted to 32×32 in the usual way,
    which has 2.47 M parameters for ten outputs, is our reading.
    """

    kind = "alexnet"

    init: Init = "torch"

    def build(self, *, signature: InputSignature, outputs: int) -> AlexNet:
        model = AlexNet(image_shape(signature), outputs)
        initialise(model, self.init)
        return model
