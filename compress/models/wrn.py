"""Wide residual networks: Zagoruyko & Komodakis 2016, sections 2 and 3."""

from __future__ import annotations

import itertools
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature

WIDTHS = (16, 32, 64)  # of the three stages, before they are widened; the stem keeps the first
LEAST = 4  # pixels a side: two stages halve the map


class WideResNet(Classifier):
    """A 3×3 stem, three stages of pre-activation blocks (halved between stages), mean over positions, classifier.

    features: each stage's map behind the batch norm and ReLU that follow its last block. The paper counts these two to
    what comes next: the first block of the next stage, whose two branches both read them, or the classifier. The
    function and the parameters are the same, and so a map here is behind its ReLU as in the other models.
    """

    feature_names = ("stage1", "stage2", "stage3")

    def __init__(
        self, input_shape: tuple[int, int, int], *, blocks: int, widen: int, dropout: float, outputs: int
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < LEAST:
            raise ValueError(f"wrn needs images of at least {LEAST} pixels a side, came {height}×{width}")
        widths = (WIDTHS[0], *(width * widen for width in WIDTHS))
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList(
            nn.Sequential(
                PreActivationBlock(before, after, 2 if i else 1, dropout, activated=i > 0),
                *(PreActivationBlock(after, after, 1, dropout) for _ in range(blocks - 1)),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for i, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.classifier = nn.Linear(widths[-1], outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        # (N, WIDTHS[index] * widen, H / 2^index, W / 2^index), halves rounded up
        return super().stage(x if index else self.stem(x), index)


class PreActivationBlock(nn.Module):
    """x + conv(dropout(ReLU(BN(conv(ReLU(BN(x))))))), 3×3, the first with the stride.

    Where the shape changes, the shortcut is a 1×1 convolution of ReLU(BN(x)). activated: x comes behind these two.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, *, activated: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if activated else nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = (stride, inputs) != (1, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        before = F.relu(self.norm1(x))
        mapped = F.relu(self.norm2(self.conv1(before)))
        mapped = self.conv2(self.dropout(mapped))
        summed: Tensor = mapped + (x if self.shortcut is None else self.shortcut(before))
        return summed


class WideResNetSpec(ModelSpec):
    """Wide residual network for small images: WRN-16-2 is `{depth: 16, widen: 2}` or `wrn:16-2`; depth 10, 16, 22, ...

    widen: the factor of the widths 16, 32, 64. dropout: between the two convolutions of a block (the paper's is 0.3).
    """

    kind = "wrn"

    init: Init = "he_fan_out"
    depth: int = Field(16, ge=10, le=1000)
    widen: int = Field(2, ge=1, le=64)
    dropout: float = Field(0.0, ge=0, lt=1)

    @classmethod
    def written_short(cls, value: str) -> dict[str, Any] | None:
        depth, _, widen = value.partition("-")
        return {"depth": int(depth), "widen": int(widen)} if depth.isdecimal() and widen.isdecimal() else None

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        if (self.depth - 4) % 6:
            raise PydanticCustomError(
                "depth",
                "depth {depth} is not 4 + 6 · blocks, with three stages of two convolutions a block; "
                "expected 10, 16, 22, 28, 34, 40, ...",
                {"depth": self.depth},
            )
        return self

    def build(self, *, signature: InputSignature, outputs: int) -> WideResNet:
        model = WideResNet(
            image_shape(signature),
            blocks=(self.depth - 4) // 6,
            widen=self.widen,
            dropout=self.dropout,
            outputs=outputs,
        )
        initialise(model, self.init)
        return model
