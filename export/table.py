"""What a model reads of a table's row: the only definition, used in training and in the exported graph."""

from __future__ import annotations

import torch
from torch import Tensor


def numbers_and_ids(rows: Tensor, numbers: int) -> tuple[Tensor, Tensor]:
    """Return log(1 + max(x, 0)) of the numbers of int32 rows (N, length), float32 (N, numbers), and the ids behind.

    So does the published code of DLRM (Naumov et al. 2019) with Criteo's counts: a negative number counts as 0, and so
    does a missing one (`runtime.table.MISSING`, the most negative). Cast before anything else: engines compute on
    floating point, and few of them on whole numbers. The addition is in float32, which has 1 + x of every count below
    2^24; a half would be infinite from 65,520 on.
    """
    x = torch.relu(rows[:, :numbers].float())
    return torch.log(x + 1), rows[:, numbers:]
