"""A plain convolutional network for small images, from a few thousand parameters up."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature


class SmallCNN(Classifier):
    """Stages of 3×3 convolution, batch norm and ReLU, halved between stages; mean over positions; classifier."""

    def __init__(self, input_shape: tuple[int, int, int], widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < 2 ** (len(widths) - 1):
            raise ValueError(
                f"small_cnn with {len(widths)} stages needs images of at least {2 ** (len(widths) - 1)} pixels a side, "
                f"came {height}×{width}"
            )
        sizes = (channels, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        )
        self.feature_names = tuple(f"stage{i + 1}" for i in range(len(widths)))
        self.classifier = nn.Linear(widths[-1], outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        # (N, widths[index], H / 2^index, W / 2^index)
        return super().stage(F.max_pool2d(x, 2) if index else x, index)


class SmallCNNSpec(ModelSpec):
    """3×3 convolutions with batch norm, one stage a width, mean pooling: for small images."""

    kind = "small_cnn"

    init: Init = "he"
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=8)] = (
        16,
        32,
        64,
    )

    def build(self, *, signature: InputSignature, outputs: int) -> SmallCNN:
        model = SmallCNN(image_shape(signature), self.widths, outputs)
        initialise(model, self.init)
        return model
