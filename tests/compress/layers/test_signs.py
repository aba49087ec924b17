from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress.layers.signs import STE, sharpness, sign, straight_through_sign

NAN = float("nan")
VALUES = torch.tensor([-math.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, math.inf, NAN])
SIGNS = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0]


def gradient(ste: STE, values: list[float], progress: float = 0.0) -> Tensor:
    x = torch.tensor(values, requires_grad=True)
    straight_through_sign(x, ste, progress).backward(torch.full_like(x, 3.0))
    assert x.grad is not None
    return x.grad / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sign_is_never_zero(dtype: torch.dtype) -> None:
    x = VALUES.to(dtype)
    expected = torch.tensor(SIGNS, dtype=dtype)
    assert torch.equal(sign(x), expected)
    for ste in ("clipped", "polynomial", "tanh"):
        assert torch.equal(straight_through_sign(x, ste), expected)
        assert straight_through_sign(x, ste).dtype == dtype


def test_signs_keep_the_memory_format() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert straight_through_sign(x, "clipped").is_contiguous(memory_format=torch.channels_last)


def test_clipped_passes_the_gradient_inside_one() -> None:
    assert gradient("clipped", [-1.5, -1.0, -0.99, 0.0, 0.3, 1.0, 2.0]).tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_polynomial_is_a_triangle() -> None:
    # Bi-Real net, equation 7: 2 + 2x on [-1, 0), 2 - 2x on [0, 1), 0 elsewhere.
    found = gradient("polynomial", [-2.0, -1.0, -0.75, -0.25, 0.0, 0.5, 1.0, 3.0])
    assert found.tolist() == pytest.approx([0, 0, 0.5, 1.5, 2, 1, 0, 0])


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_tanh_has_the_slope_of_its_function(progress: float) -> None:
    t = 10 ** (-1 + 2 * progress)
    assert sharpness(progress) == pytest.approx(t)
    x = torch.tensor([-1.5, -0.1, 0.0, 0.05, 0.7], dtype=torch.float64, requires_grad=True)
    (max(1 / t, 1) * torch.tanh(t * x)).sum().backward()
    assert x.grad is not None
    assert gradient("tanh", x.tolist(), progress).tolist() == pytest.approx(x.grad.tolist(), abs=1e-5)


def test_tanh_begins_as_the_identity_and_ends_as_a_narrow_peak() -> None:
    assert gradient("tanh", [-1.0, 0.0, 1.0], 0.0).tolist() == pytest.approx([0.99, 1.0, 0.99], abs=0.01)
    assert gradient("tanh", [-1.0, 0.0, 1.0], 1.0).tolist() == pytest.approx([0.0, 10.0, 0.0], abs=1e-4)
