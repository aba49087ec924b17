"""Text as a bag of n-grams, in front of fully connected layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from compress.models.base import ModelSpec, Output, id_shape, initialise, without_tail
from compress.models.mlp import MLP
from export.graph import InputSignature

Bag = Literal["mean", "sum"]


class BagMLP(MLP):
    """One vector an id, their mean or sum over a text, then an MLP (fastText has no hidden layer; Joulin et al. 2016).

    The row of `padding` in `table` is zero and stays so: it adds nothing and gets no gradient. A text without ids is
    the zero vector. Dropout takes from the bag, too.
    """

    def __init__(
        self,
        ids: int,
        width: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        dropout: float,
        bag: Bag,
        padding: int = 0,
    ) -> None:
        super().__init__(width, hidden, outputs, dropout)
        self.table = nn.Embedding(ids, width, padding_idx=padding)
        self.padding = padding
        self.bag = bag

    def forward(self, ids: Tensor) -> Output:
        if self.training and ids.device.type == "cpu":
            ids = without_tail(ids, self.padding)  # zeros cost a quarter of a step on short texts
        # A gather and a sum, for which every engine has operators; nn.EmbeddingBag would be exported as a loop.
        x = self.table(ids).sum(1)  # (N, width)
        if self.bag == "mean":
            x = x / (ids != self.padding).sum(1, keepdim=True).clamp(min=1)
        return super().forward(self.dropout(x))


class BagMLPSpec(ModelSpec):
    """Mean or sum of word n-gram vectors, then fully connected layers with ReLU: for text.

    width: of the vectors. hidden: layers after the bag. `init` is that of the layers; the vectors start uniform in
    ±1 / width, as in fastText, whatever it is.
    """

    kind = "bag_mlp"

    width: int = Field(64, ge=1, le=4096)
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (64,)
    dropout: float = Field(0.0, ge=0, lt=1)
    bag: Bag = "mean"

    def build(self, *, signature: InputSignature, outputs: int) -> BagMLP:
        _, ids = id_shape(signature)
        padding = signature.padding
        model = BagMLP(ids, self.width, self.hidden, outputs, dropout=self.dropout, bag=self.bag, padding=padding)
        initialise(model, self.init)
        nn.init.uniform_(model.table.weight, -1 / self.width, 1 / self.width)
        nn.init.zeros_(model.table.weight[padding])
        return model
