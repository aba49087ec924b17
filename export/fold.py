"""The S×C layout of a subclass head and its fold to C classes: the only definition, for training and export.

Subclass logits are class-major: subclass `s` of class `c` sits at index `c * S + s` of a row of C*S.
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_class(z: Tensor, subclasses: int) -> Tensor:
    """View (N, C*S) as (N, C, S): the subclasses of one class side by side."""
    return z.unflatten(1, (classes_of_width(z.shape[1], subclasses), subclasses))  # (N, C, S)


def fold_logits(z: Tensor, subclasses: int) -> Tensor:
    """Class logits (N, C) = logsumexp over the S subclasses of each class in z (N, C*S).

    softmax of the result equals the summed subclass probabilities. Computed in float32 (float64 stays
    float64); with S = 1 the fold is the identity and z itself is returned. Finite for finite z, and so is the
    gradient, which is the softmax within the class.
    """
    if subclasses == 1:
        return z
    # Written out: half-precision engines expand a ReduceLogSumExp node without taking the maximum off.
    grouped = by_class(z if z.dtype == torch.float64 else z.float(), subclasses)  # (N, C, S)
    # The maximum cancels out of the value, so its gradient is zero in exact arithmetic. With it detached the
    # backward pass is the softmax within the class, also at ties, and does not walk through amax.
    maximum = grouped.detach().amax(dim=2, keepdim=True)  # (N, C, 1)
    return (grouped - maximum).exp().sum(dim=2).log() + maximum.squeeze(2)  # (N, C)


def fold_probabilities(p: Tensor, subclasses: int) -> Tensor:
    """Class probabilities (N, C): the sum over the S subclasses of each class in p (N, C*S)."""
    return p if subclasses == 1 else by_class(p, subclasses).sum(dim=2)


def classes_of_width(width: int, subclasses: int) -> int:
    """C of a row of C*S logits. Raises ValueError where S is not positive or does not divide the width."""
    if subclasses < 1:
        raise ValueError(f"subclasses is {subclasses}; expected at least 1")
    if width % subclasses:
        raise ValueError(
            f"{width} subclass logits cannot be split into classes of {subclasses}; expected a multiple of {subclasses}"
        )
    return width // subclasses
