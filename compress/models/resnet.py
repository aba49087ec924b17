"""Residual networks for small images: He et al. 2016 ("Deep residual learning for image recognition"), section 4.2."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature

Shortcut = Literal["identity", "projection"]


class ResNet(Classifier):
    """A 3×3 stem, stages of basic blocks (halved between stages), mean over positions, classifier.

    features: each stage's map after its last ReLU.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], blocks: int, widths: tuple[int, ...], shortcut: Shortcut, outputs: int
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        least = 2 ** (len(widths) - 1)
        if min(height, width) < least:
            raise ValueError(
                f"resnet with {len(widths)} stages needs images of at least {least} pixels a side, "
                f"came {height}×{width}"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(before, after, 2 if i else 1, shortcut),
                *(BasicBlock(after, after, 1, shortcut) for _ in range(blocks - 1)),
            )
            for i, (before, after) in enumerate(itertools.pairwise((widths[0], *widths)))
        )
        self.feature_names = tuple(f"stage{i + 1}" for i in range(len(widths)))
        self.classifier = nn.Linear(widths[-1], outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        # (N, widths[index], H / 2^index, W / 2^index), halves rounded up
        return super().stage(x if index else self.stem(x), index)


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))): two 3×3 convolutions, the first with the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if shortcut == "projection" and (stride, inputs) != (1, outputs):
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        elif (stride, inputs) != (1, outputs):
            self.shortcut = Padding(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        mapped = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(mapped)) + self.shortcut(x))


class Padding(nn.Module):
    """The shortcut without parameters (option A): every `stride`-th position, zeros for the `more` new channels."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more = more
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class ResNetSpec(ModelSpec):
    """Residual network for small images, depth 2 + 2 · stages · blocks: 8, 14, 20, 32, ... with three stages.

    shortcut: `identity` pads new channels with zeros (the paper's option A, no parameters), `projection` takes a 1×1
    convolution with batch norm where the shape changes (option B).
    """

    kind = "resnet"

    init: Init = "he"
    depth: int = Field(20, ge=4, le=1202)
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=6)] = (
        16,
        32,
        64,
    )
    shortcut: Shortcut = "identity"

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        step = 2 * len(self.widths)
        if (self.depth - 2) % step or self.depth < step + 2:
            raise PydanticCustomError(
                "depth",
                "depth {depth} is not 2 + {step} · blocks, with {stages} stages of two convolutions a block; "
                "expected {least}, {next}, {after}, ...",
                {
                    "depth": self.depth,
                    "step": step,
                    "stages": len(self.widths),
                    "least": step + 2,
                    "next": 2 * step + 2,
                    "after": 3 * step + 2,
                },
            )
        if self.shortcut == "identity" and list(self.widths) != sorted(self.widths):
            raise PydanticCustomError(
                "widths", "widths become smaller, which a padded shortcut cannot do; use shortcut: projection"
            )
        return self

    @property
    def blocks(self) -> int:
        return (self.depth - 2) // (2 * len(self.widths))

    def build(self, *, signature: InputSignature, outputs: int) -> ResNet:
        model = ResNet(image_shape(signature), self.blocks, self.widths, self.shortcut, outputs)
        initialise(model, self.init)
        return model
