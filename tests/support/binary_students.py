"""Binary students as the exporter expects them, small and random: what training makes, without training it.

A binary layer computes `conv(sign(x), ±1 weights) * scale + bias` as three operations, has `packs_as`, and gives by
`for_export` a module of plain buffers that does the same arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Affine(nn.Module):
    """Batch norm in evaluation mode: x * a + b, channel by channel."""

    def __init__(self, channels: int, seed: int = 0, rank: int = 4) -> None:
        super().__init__()
        generator, shape = generator_of(seed + 1000), (1, -1, 1, 1) if rank == 4 else (1, -1)
        a = torch.randn(channels, generator=generator).mul(0.5).exp()
        self.register_buffer("a", (a * torch.where(torch.rand(channels, generator=generator) < 0.2, -1, 1)).view(shape))
        self.register_buffer("b", torch.randn(channels, generator=generator).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a + self.b


class _Exported(nn.Module):
    """What `for_export` gives: the function of a layer over its buffers alone."""

    def __init__(self, function: Callable[..., Tensor], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_buffers()))


class BinaryConv2d(nn.Module):
    """sign(x) convolved with the signs of latent weights, then scale and bias; `pad_value` stands outside the image."""

    packs_as = "BinaryConv"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        padding: tuple[int, int, int, int] | int = 0,
        groups: int = 1,
        pad_value: float = 0.0,
        affine: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = generator_of(seed)
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.latent = nn.Parameter(torch.randn(outputs, inputs // groups, *kernel, generator=generator))
        self.options = {"stride": stride, "dilation": dilation, "groups": groups}
        self.padding, self.pad_value, self.affine = padding, pad_value, affine
        fan = inputs // groups * kernel[0] * kernel[1]
        spread = torch.where(torch.rand(outputs, generator=generator) < 0.3, -1.0, 1.0)
        self.register_buffer("scale", (torch.rand(outputs, generator=generator) + 0.5) * spread * fan**-0.5)
        self.register_buffer("bias", torch.randn(outputs, generator=generator))

    def compute(self, x: Tensor, *, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        x, padding = sign(x), self.padding
        if isinstance(padding, tuple) or self.pad_value:
            top, left, bottom, right = padding if isinstance(padding, tuple) else (padding,) * 4
            x, padding = F.pad(x, (left, right, top, bottom), value=self.pad_value), 0
        y = F.conv2d(x, weight, padding=padding, **self.options)
        return y * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1) if self.affine else y

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, weight=sign(self.latent), scale=self.scale, bias=self.bias)

    def for_export(self) -> nn.Module:
        weight = sign(self.latent).detach().clone()
        return _Exported(self.compute, weight=weight, scale=self.scale.clone(), bias=self.bias.clone())


class BinaryLinear(nn.Module):
    """sign(x) times the signs of latent weights, then scale and bias."""

    packs_as = "BinaryGemm"

    def __init__(self, inputs: int, outputs: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = generator_of(seed)
        self.latent = nn.Parameter(torch.randn(outputs, inputs, generator=generator))
        self.register_buffer("scale", (torch.rand(outputs, generator=generator) + 0.5) * inputs**-0.5)
        self.register_buffer("bias", torch.randn(outputs, generator=generator))

    def compute(self, x: Tensor, *, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.linear(sign(x), weight) * scale + bias

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, weight=sign(self.latent), scale=self.scale, bias=self.bias)

    def for_export(self) -> nn.Module:
        weight = sign(self.latent).detach().clone()
        return _Exported(self.compute, weight=weight, scale=self.scale.clone(), bias=self.bias.clone())


class GridConv2d(nn.Module):
    """A convolution of x in `levels` steps to either side of 0 with weights of whole steps, both powers of two."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        step: float = 2.0**-4,
        levels: int = 127,
        largest: int = 127,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = generator_of(seed + 3000)
        whole = torch.randint(-largest, largest + 1, (outputs, inputs // groups, kernel, kernel), generator=generator)
        exponents = torch.randint(-12, -6, (outputs, 1, 1, 1), generator=generator)
        self.register_buffer("weight", torch.ldexp(whole.float(), exponents))
        self.step, self.levels = step, levels
        self.options = (stride, kernel // 2, dilation, groups)

    def forward(self, x: Tensor) -> Tensor:
        snapped = (x * (1 / self.step)).clamp(-self.levels, self.levels).round() * self.step
        return F.conv2d(snapped, self.weight, None, *self.options)


class Fixed8Conv2d(nn.Module):
    """A real convolution whose sums are exact in any order: inputs and weights on grids of powers of two."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = generator_of(seed)
        steps = torch.exp2(torch.randint(-9, -6, (outputs, 1, 1, 1), generator=generator).float())
        weight = torch.randint(-127, 128, (outputs, inputs // groups, kernel, kernel), generator=generator)
        self.latent = nn.Parameter(weight * steps)
        self.options = {"stride": stride, "padding": padding, "groups": groups}

    def compute(self, x: Tensor, *, weight: Tensor) -> Tensor:
        snapped = torch.clamp(torch.round(x * 64), -255, 255) * 0.015625
        return F.conv2d(snapped, weight, **self.options)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, weight=self.latent)

    def for_export(self) -> nn.Module:
        return _Exported(self.compute, weight=self.latent.detach().clone())


def mean_of_fours(x: Tensor) -> Tensor:
    """avg_pool2d(x, 2), added in row-major order."""
    a, b = x[:, :, 0::2, 0::2], x[:, :, 0::2, 1::2]
    c, d = x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]
    return (a + b + c + d) * 0.25


class BiRealBlock(nn.Module):
    """sign → binary convolution → batch norm, plus shortcut, then PReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.conv = BinaryConv2d(inputs, outputs, 3, stride=stride, padding=1, seed=seed)
        self.act = nn.PReLU(outputs)
        nn.init.uniform_(self.act.weight, 0.0, 0.5, generator=generator_of(seed + 1))
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(Fixed8Conv2d(inputs, outputs, 1, seed=seed + 2), Affine(outputs, seed + 3))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = mean_of_fours(x) if self.stride == 2 else x
        shortcut = shortcut if self.down is None else self.down(shortcut)
        return self.act(self.conv(x) + shortcut)


class BiRealNet(nn.Module):
    """A residual network with a shortcut around each binary convolution: `blocks` of them for each of `widths`."""

    def __init__(
        self,
        *,
        channels: int = 3,
        widths: Sequence[int] = (8, 16),
        blocks: int = 2,
        stem: str = "plain",
        outputs: int = 10,
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        if stem == "plain":
            self.stem = nn.Sequential(Fixed8Conv2d(channels, widths[0], 3, padding=1), Affine(widths[0]))
        elif stem == "seven":
            self.stem = nn.Sequential(
                Fixed8Conv2d(channels, widths[0], 7, stride=2, padding=3),
                Affine(widths[0]),
                nn.PReLU(widths[0]),
                nn.MaxPool2d(3, 2, 1),
            )
        else:  # light
            self.stem = nn.Sequential(
                Fixed8Conv2d(channels, 16, 3, stride=2, padding=1),
                Affine(16),
                nn.ReLU(),
                Fixed8Conv2d(16, 16, 3, stride=2, padding=1, groups=16, seed=1),
                Affine(16, 1),
                Fixed8Conv2d(16, widths[0], 1, seed=2),
                Affine(widths[0], 2),
            )
        layers: list[nn.Module] = []
        for before, (stage, width) in zip((widths[0], *widths), enumerate(widths), strict=False):
            for block in range(blocks):
                first = block == 0
                layers.append(
                    BiRealBlock(before if first else width, width, 2 if first and stage else 1, seed=10 * len(layers))
                )
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Chain(nn.Module):
    """Batch norm → binary convolution, several in a row, without shortcuts: only signs go from one to the next."""

    def __init__(self, channels: Sequence[int], outputs: int = 4, **options: object) -> None:
        super().__init__()
        pairs = itertools.pairwise(channels)
        self.body = nn.Sequential(
            *(
                nn.Sequential(Affine(a, i), BinaryConv2d(a, b, 3, padding=1, seed=i, **options))  # type: ignore[arg-type]
                for i, (a, b) in enumerate(pairs)
            )
        )
        self.classifier = nn.Linear(channels[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).mean((2, 3)))
