"""Factor transfer: the student's translator against what a paraphraser makes of the teacher's feature map."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.base import Classifier, Output
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, Term, TermSpec
from compress.objectives.connectors import BatchNorm, as_map
from compress.objectives.functional.precision import at_least_float32
from compress.objectives.layers import Layers, layer_problem, layer_shapes, resolve

SLOPE = 0.1  # of the leaky ReLU


class FactorSpec(TermSpec):
    """Distance of factors, summed over the pairs of `layers` (Kim, Park & Kwak 2018).

    A paraphraser, the encoder of an autoencoder of the teacher's map, is trained on the training rows before the
    student, without labels, and then frozen; it gives the teacher's factor of rate · channels. The student's
    translator, of the same form, trains with the student. Maps of different size are averaged to the smaller height
    and width first. `variant: flat` compares flattened factors as the paper does, `attention` their attention maps as
    RepDistiller does.

    epochs, batch_size, lr: of the autoencoder (Adam, squared error). An interrupted run trains it again when it goes
    on, with the same result.
    """

    kind = "ft"
    needs = frozenset({"features"})

    layers: Layers = "last"
    variant: functional.FactorVariant = "flat"
    p: int = Field(1, ge=1, le=2)
    rate: float = Field(0.5, gt=0)
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0)

    def problem(self, heads: Heads) -> str | None:
        return layer_problem(self.layers, heads)

    def build(self, heads: Heads) -> Factor:
        return Factor(heads, self)


class Factor(Term):
    """`paraphrasers` (frozen, trained in `prepare`) and `translators` hold one encoder a pair."""

    def __init__(self, heads: Heads, options: FactorSpec) -> None:
        super().__init__()
        self.options = options
        self.pairs = resolve(options.layers, heads)
        shapes = layer_shapes(options.layers, heads)
        factors = [max(1, round(options.rate * teacher[0])) for _, teacher in shapes]
        self.sizes = [_common_size(student, teacher) for student, teacher in shapes]
        self.translators = nn.ModuleList(Encoder(s[0], f) for (s, _), f in zip(shapes, factors, strict=True))
        self.paraphrasers = nn.ModuleList(Encoder(t[0], f) for (_, t), f in zip(shapes, factors, strict=True))
        self.paraphrasers.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Factor:
        """Set the mode of the translators; the paraphrasers stay frozen, their batch-norm statistics too."""
        super().train(mode)
        self.paraphrasers.eval()
        return self

    def prepare(self, preparation: Preparation) -> None:
        """Train the paraphrasers, each with a decoder that is dropped afterwards, on the teacher's maps."""
        options, device = self.options, preparation.labels.device
        # The student's random numbers must not depend on this.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(preparation.seed)
            decoders = nn.ModuleList(Encoder(p.outputs, p.inputs) for p in self._paraphrasers()).to(device)
        self.paraphrasers.requires_grad_(True).train()
        parameters = [*self.paraphrasers.parameters(), *decoders.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=options.lr)
        generator = torch.Generator().manual_seed(preparation.seed)
        for _ in range(options.epochs):
            order = torch.randperm(len(preparation.labels), generator=generator).to(device)
            for rows in order.split(options.batch_size):
                taught = self._maps(preparation.teacher, preparation.inputs(rows))
                losses = [
                    F.mse_loss(decoder(paraphraser(x)), x)
                    for x, paraphraser, decoder in zip(taught, self.paraphrasers, decoders, strict=True)
                ]
                optimizer.zero_grad(set_to_none=True)
                sum(losses[1:], start=losses[0]).backward()
                optimizer.step()
        self.paraphrasers.requires_grad_(False).eval()
        for parameter in self.paraphrasers.parameters():
            parameter.grad = None  # Else the student's optimizer takes a step with it.

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        with torch.no_grad():
            taught = [p(x) for p, x in zip(self.paraphrasers, self._sized(teacher, 1), strict=True)]
        own = [t(x) for t, x in zip(self.translators, self._sized(student, 0), strict=True)]
        options = self.options
        losses = [
            functional.factor_transfer(a, b, options.variant, p2=options.p) for a, b in zip(own, taught, strict=True)
        ]
        return sum(losses[1:], start=losses[0])

    def _paraphrasers(self) -> Iterator[Encoder]:
        for paraphraser in self.paraphrasers:
            assert isinstance(paraphraser, Encoder)
            yield paraphraser

    def _maps(self, teacher: Classifier, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self._sized(teacher(x), 1)

    def _sized(self, output: Output, side: int) -> list[Tensor]:
        """Return the compared maps of one side (0 student, 1 teacher), each of the pair's common size."""
        maps = (at_least_float32(as_map(output.features[pair[side]])) for pair in self.pairs)
        return [
            x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
            for x, size in zip(maps, self.sizes, strict=True)
        ]


class Encoder(nn.Sequential):
    """Three 3×3 convolutions with batch norm and leaky ReLU: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            *(
                layer
                for a, b in ((inputs, inputs), (inputs, outputs), (outputs, outputs))
                for layer in (nn.Conv2d(a, b, 3, padding=1), BatchNorm(b), nn.LeakyReLU(SLOPE))
            )
        )
        self.inputs, self.outputs = inputs, outputs


def _common_size(student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[int, int]:
    """Return the smaller height and width; a vector is a map of one position."""
    if len(student) == 1 or len(teacher) == 1:
        return 1, 1
    return min(student[1], teacher[1]), min(student[2], teacher[2])
