"""Fully connected layers on the sentence embeddings of a frozen encoder."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import Self

from compress.kinds import as_recipe_value
from compress.models.base import Output, initialise
from compress.models.encoder import Encoder, Pooling, PretrainedSpec
from compress.models.mlp import MLP
from export.graph import InputSignature


class EmbeddingMLP(MLP):
    """The vector of a text from an encoder that never trains and never drops anything, then an MLP."""

    def __init__(self, encoder: Encoder, width: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> None:
        super().__init__(width, hidden, outputs, dropout)
        self.encoder = encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, ids: Tensor) -> Output:
        with torch.no_grad():
            sentence = self.encoder(ids)  # (N, width)
        return super().forward(sentence)


class EmbeddingMLPSpec(PretrainedSpec):
    """Fully connected layers with ReLU on the sentence embedding of a frozen encoder, which is exported with them.

    encoder: named as for `encoder`. hidden: the layers' widths. pooling: what of the encoder is the embedding, the mean
    over tokens as in sentence encoders. `init` is that of the layers.
    """

    kind = "embedding_mlp"

    encoder: Annotated[str, Field(min_length=1)]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (256,)
    pooling: Pooling = "mean"
    dropout: float = Field(0.0, ge=0, lt=1)

    @property
    def name_of_encoder(self) -> str:
        return self.encoder

    def build(self, *, signature: InputSignature, outputs: int) -> EmbeddingMLP:
        encoder, width = self.build_encoder(signature, self.pooling)
        model = EmbeddingMLP(encoder, width, self.hidden, outputs, self.dropout)
        initialise(model.hidden, self.init)
        initialise(model.classifier, self.init)
        return model

    def resolved(self) -> dict[str, Any]:
        options = as_recipe_value(self)[self.kind]
        del options["encoder"]
        return {self.kind: {**options, "content": self.content()}}
