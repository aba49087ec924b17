"""A small binary network for small images: seconds to train."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from compress.layers import BinaryConv2d, BinaryLinear, LayerForm
from compress.layers.form import OVER_POSITIONS
from compress.models.base import Classifier, image_shape, initialise
from compress.models.binary import Arithmetic, BinarySpec, first_convolution, normed
from compress.models.blocks import require_sides
from export.graph import InputSignature


class BinaryCNN(Classifier):
    """A 3×3 convolution of the pixels, binary 3×3 convolutions, all of stride 2, a binary linear layer, classifier.

    Each is followed by a batch norm, and that by the next one's sign. features: the map behind each norm.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        *,
        widths: tuple[int, ...],
        hidden: int,
        form: LayerForm,
        first_layer: Arithmetic,
        outputs: int,
    ) -> None:
        super().__init__()
        channels, *size = input_shape
        stages: list[nn.Module] = [normed(first_convolution(channels, widths[0], 3, 2, first_layer), widths[0])]
        size = [(side + 1) // 2 for side in size]
        for before, after in itertools.pairwise(widths):
            height, width = size
            stages.append(
                BinaryConv2d(before, after, 3, stride=2, padding=1, form=form, norm=True, size=(height, width))
            )
            size = [(side + 1) // 2 for side in size]
        self.stages = nn.ModuleList(stages)
        self.feature_names = tuple(f"stage{i + 1}" for i in range(len(widths)))
        # Positions and K are a map's: what is left of such a scale for a vector is one number a channel.
        flat = {"xnor_k": "mean_abs", **dict.fromkeys(OVER_POSITIONS, "learned")}.get(form.scale, form.scale)
        of_vectors = LayerForm(form.weights, form.activations, form.ste, flat)  # type: ignore[arg-type]
        self.hidden = BinaryLinear(widths[-1] * size[0] * size[1], hidden, form=of_vectors, norm=True)
        self.classifier = nn.Linear(hidden, outputs)

    def embed(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.hidden(x.flatten(1))  # (N, hidden)
        return embedding


class BinaryCNNSpec(BinarySpec):
    """Binary 3×3 convolutions of stride 2 behind one of the pixels, and a binary linear layer of `hidden` outputs."""

    kind = "binary_cnn"

    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=8)] = (
        32,
        64,
        128,
    )
    hidden: int = Field(128, ge=1, le=65536)

    def build(self, *, signature: InputSignature, outputs: int) -> BinaryCNN:
        shape = image_shape(signature)
        require_sides(f"binary_cnn with {len(self.widths)} stages", shape, 2 ** len(self.widths))
        model = BinaryCNN(
            shape,
            widths=self.widths,
            hidden=self.hidden,
            form=self.form,
            first_layer=self.first_layer,
            outputs=outputs,
        )
        initialise(model, self.init)
        return model
