"""Fully connected networks."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from compress.models.base import Classifier, ModelSpec, image_shape, initialise
from export.graph import InputSignature


class MLP(Classifier):
    """Flatten, then Linear and ReLU for each hidden width, then the classifier."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.feature_names = tuple(f"hidden{i + 1}" for i in range(len(hidden)))
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        mapped: Tensor = self.dropout(self.activation(self.hidden[index](x.flatten(1))))  # (N, width)
        return mapped

    def embed(self, x: Tensor) -> Tensor:
        return x.flatten(1)  # Without hidden layers the embedding is the image.


class MLPSpec(ModelSpec):
    """Fully connected layers with ReLU on the flattened image."""

    kind = "mlp"

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (256, 256)
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(self, *, signature: InputSignature, outputs: int) -> MLP:
        channels, height, width = image_shape(signature)
        model = MLP(channels * height * width, self.hidden, outputs, self.dropout)
        initialise(model, self.init)
        return model
