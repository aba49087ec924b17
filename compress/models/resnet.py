"""Residual networks for small images: He et al. 2016 ("Deep residual learning for image recognition"), section 4.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from compress.models.base import Classifier, Init, ModelSpec, image_shape, initialise
from export.graph import InputSignature

Shortcut = Literal["identity", "projection"]
BlockName = Literal["basic", "bottleneck"]
Width = Annotated[int, Field(ge=1, le=4096)]


class ResNet(Classifier):
    """A 3×3 stem, stages of residual blocks (halved between stages), mean over positions, classifier.

    features: each stage's map after its last ReLU. widths: of the blocks' 3×3 convolutions, a stage each; the maps of
    bottleneck stages are four times as wide. blocks: how many, a stage each. stem: its width.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        *,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        block: BlockName,
        shortcut: Shortcut,
        outputs: int,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        least = 2 ** (len(widths) - 1)
        if min(height, width) < least:
            raise ValueError(
                f"resnet with {len(widths)} stages needs images of at least {least} pixels a side, "
                f"came {height}×{width}"
            )
        kind = BLOCKS[block]
        maps = [width * kind.expansion for width in widths]
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(
                kind(before, width, 2 if i else 1, shortcut),
                *(kind(after, width, 1, shortcut) for _ in range(count - 1)),
            )
            for i, (before, after, width, count) in enumerate(
                zip([stem, *maps[:-1]], maps, widths, blocks, strict=True)
            )
        )
        self.feature_names = tuple(f"stage{i + 1}" for i in range(len(widths)))
        self.classifier = nn.Linear(maps[-1], outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        # (N, channels, H / 2^index, W / 2^index), halves rounded up
        return super().stage(x if index else self.stem(x), index)


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))): two 3×3 convolutions, the first with the stride."""

    expansion = 1
    layers = 2

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut_of(inputs, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        mapped = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(mapped)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Convolutions 1×1, 3×3 (with the stride) and 1×1 around the shortcut; the map is four times as wide as the 3×3.

    The stride is the 3×3's, as in the PyTorch form of ResNet-50 whose 4.09 G multiply-accumulates are the usual
    reference; in the paper it is the first 1×1's (3.8 G). Parameters are the same.
    """

    expansion = 4
    layers = 3

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut_of(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        mapped = F.relu(self.norm1(self.conv1(x)))
        mapped = F.relu(self.norm2(self.conv2(mapped)))
        return F.relu(self.norm3(self.conv3(mapped)) + self.shortcut(x))


BLOCKS: dict[BlockName, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def shortcut_of(inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> nn.Module:
    """Return what brings x (N, inputs, H, W) to the shape of the block's map."""
    if (stride, inputs) == (1, outputs):
        return nn.Identity()
    if shortcut == "identity":
        return Padding(outputs - inputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Padding(nn.Module):
    """The shortcut without parameters (option A): every `stride`-th position, zeros for the `more` new channels."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more = more
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class ResNetSpec(ModelSpec):
    """Residual network for small images, as deep as `depth`: 8, 14, 20, 32, ... with three stages of basic blocks.

    depth: the stem, the classifier, and two convolutions a basic block or three a bottleneck; shared equally among the
    stages, or as `blocks` says (`{depth: 18, blocks: [2, 2, 2, 2], widths: [64, 128, 256, 512]}`). widths: of the 3×3
    convolutions, a stage each; a bottleneck's map is four times as wide. stem: its width, the first of `widths` where
    it is not given. shortcut: `identity` pads new channels with zeros (the paper's option A, no parameters),
    `projection` takes a 1×1 convolution with batch norm where the shape changes (option B).

    The networks of the distillation papers, found by counting parameters (tests/compress/models/test_papers.py):

    - SRRL's ResNet-8, 14, 26 on CIFAR-10 are the paper's own, with `identity`: projections would make 0.18 M of the
      0.17 M printed for ResNet-14.
    - SRRL's ResNet-10, 18, 34 have four stages of [1, 1, 1, 1], [2, 2, 2, 2], [3, 4, 6, 3] blocks, and projections. Of
      widths from 8 to 256, stems of 16, 32 and 64, and both shortcuts, only [32, 32, 64, 128] gives the 0.34, 0.75 and
      1.39 M printed for CIFAR-100; [16, 32, 64, 128] gives 0.32, 0.71 and 1.35. The wide ones are [64, 128, 256, 512].
    - SRRL's ResNet-50 (1.99 M) was not found: [3, 4, 6, 3] bottlenecks of [32, 32, 64, 128] give 1.58 M.
    - LELP's ResNet-56 and ResNet-92 with an embedding of 256 are taken for bottlenecks, since both depths are 9n + 2
      and 256 is 4 · 64. No printed count confirms it; blocks with pre-activation would also fit, and these have none.
    - Subclass distillation's ResNet-20 with an embedding of 128 is taken for one with widths [32, 64, 128].
    """

    kind = "resnet"

    init: Init = "he"
    depth: int = Field(20, ge=4, le=1202)
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=6)] = (16, 32, 64)
    shortcut: Shortcut = "identity"
    block: BlockName = "basic"
    blocks: tuple[Annotated[int, Field(ge=1, le=200)], ...] | None = None
    stem: Width | None = None

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        if self.blocks is not None:
            self._check_blocks(self.blocks)
        elif (self.depth - 2) % self._step or self.depth < self._step + 2:
            raise PydanticCustomError(
                "depth",
                "depth {depth} is not 2 + {step} · blocks, with {stages} stages of {layers} convolutions a block; "
                "expected {least}, {next}, {after}, ..., or `blocks` for each stage",
                {
                    "depth": self.depth,
                    "step": self._step,
                    "stages": len(self.widths),
                    "layers": {2: "two", 3: "three"}[BLOCKS[self.block].layers],
                    "least": self._step + 2,
                    "next": 2 * self._step + 2,
                    "after": 3 * self._step + 2,
                },
            )
        return self

    def _check_blocks(self, blocks: tuple[int, ...]) -> None:
        if len(blocks) != len(self.widths):
            raise PydanticCustomError(
                "blocks",
                "blocks has {blocks} stages and widths has {stages}; expected as many",
                {"blocks": len(blocks), "stages": len(self.widths)},
            )
        depth = 2 + BLOCKS[self.block].layers * sum(blocks)
        if self.depth != depth:
            raise PydanticCustomError(
                "depth",
                "depth {depth} does not agree with blocks {blocks}, which make {made}; write depth: {made}",
                {"depth": self.depth, "blocks": list(blocks), "made": depth},
            )

    @model_validator(mode="after")
    def _widths_that_can_be_padded(self) -> Self:
        expansion = BLOCKS[self.block].expansion
        maps = [self._stem, *(width * expansion for width in self.widths)]
        if self.shortcut == "identity" and maps != sorted(maps):
            raise PydanticCustomError(
                "widths", "widths become smaller, which a padded shortcut cannot do; use shortcut: projection"
            )
        return self

    @property
    def _step(self) -> int:
        return BLOCKS[self.block].layers * len(self.widths)

    @property
    def _stem(self) -> int:
        return self.widths[0] if self.stem is None else self.stem

    def build(self, *, signature: InputSignature, outputs: int) -> ResNet:
        blocks = self.blocks or ((self.depth - 2) // self._step,) * len(self.widths)
        model = ResNet(
            image_shape(signature),
            stem=self._stem,
            widths=self.widths,
            blocks=blocks,
            block=self.block,
            shortcut=self.shortcut,
            outputs=outputs,
        )
        initialise(model, self.init)
        return model


class ResNet8x4Spec(ResNetSpec):
    """`resnet` as the CRD benchmark's resnet8x4 (Tian et al. 2020): depth 8, stem 32, widths 64, 128, 256."""

    kind = "resnet8x4"

    init: Init = "he_fan_out"
    depth: int = Field(8, ge=4, le=1202)
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=6)] = (64, 128, 256)
    shortcut: Shortcut = "projection"
    stem: Width | None = 32


class ResNet32x4Spec(ResNet8x4Spec):
    """`resnet` as the CRD benchmark's resnet32x4 (Tian et al. 2020): depth 32, stem 32, widths 64, 128, 256."""

    kind = "resnet32x4"

    depth: int = Field(32, ge=4, le=1202)
