"""Tables of numbers and categories, in front of fully connected layers."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.models.base import ModelSpec, Output, initialise, table_shape
from compress.models.mlp import MLP
from export.graph import InputSignature
from export.table import numbers_and_ids


class TableMLP(MLP):
    """One vector a category, side by side behind the numbers' logarithms (`export.table`), then an MLP.

    All columns share one `table` (ids, width): an id is a hash of its column, too.
    """

    def __init__(
        self,
        numbers: int,
        categories: int,
        ids: int,
        width: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        dropout: float,
    ) -> None:
        super().__init__(numbers + categories * width, hidden, outputs, dropout)
        self.numbers = numbers
        self.table = nn.Embedding(ids, width)

    def forward(self, rows: Tensor) -> Output:
        numbers, ids = numbers_and_ids(rows, self.numbers)
        vectors = self.table(ids).flatten(1)  # (N, categories * width)
        return super().forward(torch.cat([numbers, vectors], dim=1))


class TableMLPSpec(ModelSpec):
    """Category vectors and numbers, then fully connected layers with ReLU: for tables.

    width: of the vectors. hidden: the layers; 2048-1024-512-256 for the teacher and 256 for the student of Müller et
    al. 2020 on Criteo. `init` is that of the layers; the vectors start uniform in ±1 / width, whatever it is.
    """

    kind = "table_mlp"

    width: int = Field(32, ge=1, le=4096)
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (256,)
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(self, *, signature: InputSignature, outputs: int) -> TableMLP:
        numbers, categories, ids = table_shape(signature)
        model = TableMLP(numbers, categories, ids, self.width, self.hidden, outputs, dropout=self.dropout)
        initialise(model, self.init)
        nn.init.uniform_(model.table.weight, -1 / self.width, 1 / self.width)
        return model
