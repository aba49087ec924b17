"""The precision in which losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision numbers as float32, others as they are: squares of float16 overflow from 256 on."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
