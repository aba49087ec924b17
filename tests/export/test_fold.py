"""The fold: what it equals, how exact it is, and the gradient that training relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from export.fold import by_class, fold_logits, fold_probabilities

ULP_AT_200 = 2.0**-16  # spacing of float32 between 128 and 256


@st.composite
def heads(draw: st.DrawFn, width: int, most: float = 200.0) -> tuple[np.ndarray, int]:
    """Logits (N, C*S) that a float32 tensor holds exactly, and S."""
    rows, classes, subclasses = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    element = st.floats(-most, most, width=32)
    dtype = np.float32 if width == 32 else np.float64
    return draw(hnp.arrays(dtype, (rows, classes * subclasses), elements=element)), subclasses


def summed_probabilities(z: np.ndarray, subclasses: int) -> Tensor:
    """The reference, float64: softmax over all C*S, then the sum over each class's columns, by index."""
    p = torch.from_numpy(z).double().softmax(dim=1)
    classes = z.shape[1] // subclasses
    columns = [sum(p[:, c * subclasses + s] for s in range(subclasses)) for c in range(classes)]
    return torch.stack(columns, dim=1)


@given(heads(width=64))
@settings(max_examples=100, deadline=None)
def test_softmax_of_folded_logits_is_the_summed_subclass_probability(head: tuple[np.ndarray, int]) -> None:
    z, subclasses = head
    p = fold_logits(torch.from_numpy(z), subclasses).softmax(dim=1)
    torch.testing.assert_close(p, summed_probabilities(z, subclasses), atol=1e-12, rtol=0)


@given(heads(width=32))
@settings(max_examples=100, deadline=None)
def test_float32_fold_loses_no_more_than_float32_must(head: tuple[np.ndarray, int]) -> None:
    z, subclasses = head
    folded = fold_logits(torch.from_numpy(z), subclasses)
    exact = by_class(torch.from_numpy(z).double(), subclasses).logsumexp(dim=2)
    # One rounding where the maximum is added back, and those of a log that is at most log(5).
    assert (folded.double() - exact).abs().max() <= ULP_AT_200 / 2 + 1e-6
    # Two logits that each are half an ulp off move a probability by at most a quarter of an ulp at 200.
    expected = summed_probabilities(z, subclasses)
    torch.testing.assert_close(folded.double().softmax(dim=1), expected, atol=ULP_AT_200 / 4 + 1e-6, rtol=0)


@given(heads(width=32, most=12.0))
@settings(max_examples=100, deadline=None)
def test_float32_fold_of_ordinary_logits_keeps_probabilities_to_a_millionth(
    head: tuple[np.ndarray, int],
) -> None:
    z, subclasses = head
    p = fold_logits(torch.from_numpy(z), subclasses).softmax(dim=1)
    torch.testing.assert_close(p.double(), summed_probabilities(z, subclasses), atol=1e-6, rtol=0)


def test_float32_probabilities_of_random_logits_up_to_200_are_right_to_a_millionth() -> None:
    z = torch.rand(20_000, 40, generator=torch.Generator().manual_seed(0)) * 400 - 200
    p = fold_logits(z, 4).double().softmax(dim=1)
    error = (p - summed_probabilities(z.numpy(), 4)).abs()
    assert error.median() <= 1e-6
    assert error.max() <= ULP_AT_200 / 4 + 1e-6


def test_hand_computed_fold_is_class_major() -> None:
    # Classes {0: (log 1, log 2), 1: (log 3, log 5), 2: (0, 0)}: the fold is the log of each sum.
    z = torch.tensor([[1.0, 2.0, 3.0, 5.0, 1.0, 1.0]], dtype=torch.float64).log()
    expected = torch.tensor([[math.log(3), math.log(8), math.log(2)]], dtype=torch.float64)
    torch.testing.assert_close(fold_logits(z, 2), expected, atol=1e-15, rtol=0)
    assert by_class(z, 2).shape == (1, 3, 2)
    assert by_class(z, 2)[0, 1].tolist() == z[0, 2:4].tolist()


def test_by_class_is_a_view() -> None:
    z = torch.zeros(2, 6)
    by_class(z, 3)[1, 0, 2] = 7.0
    assert z[1, 2] == 7.0


def test_fold_probabilities_sums_each_class() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(fold_probabilities(p, 2), torch.tensor([[0.3, 0.7]]))
    assert fold_probabilities(p, 1) is p


def test_one_subclass_returns_the_logits_themselves() -> None:
    z = torch.randn(2, 3)
    assert fold_logits(z, 1) is z


@given(heads(width=64))
@settings(max_examples=100, deadline=None)
def test_gradient_is_that_of_logsumexp(head: tuple[np.ndarray, int]) -> None:
    values, subclasses = head
    z = torch.from_numpy(values).requires_grad_()
    ours = fold_logits(z, subclasses)
    weights = torch.linspace(-1.0, 2.0, ours.numel(), dtype=torch.float64).reshape(ours.shape)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), z)
    (expected,) = torch.autograd.grad((by_class(z, subclasses).logsumexp(dim=2) * weights).sum(), z)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("row", [[3.0, 3.0, 3.0, 3.0], [200.0, 200.0, -200.0, -200.0], [-200.0, 200.0, 200.0, -200.0]])
def test_gradient_at_ties_and_extremes_is_the_softmax_within_the_class(row: list[float]) -> None:
    z = torch.tensor([row], requires_grad=True)
    (gradient,) = torch.autograd.grad(fold_logits(z, 2).sum(), z)
    expected = by_class(z.detach(), 2).softmax(dim=2).reshape(1, 4)
    assert torch.equal(gradient, expected)


def test_gradient_passes_numerical_differentiation() -> None:
    z = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fold_logits(x, 3), (z,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_fold_in_float32(dtype: torch.dtype) -> None:
    # 14 + log 2 in float16 would be 14.6953; exp(14) itself overflows float16.
    folded = fold_logits(torch.tensor([[14.0, 14.0]], dtype=dtype), 2)
    assert folded.dtype == torch.float32
    assert folded.item() == pytest.approx(14 + math.log(2), abs=1e-6)


@pytest.mark.parametrize(("width", "subclasses", "said"), [(10, 4, "10 .* multiple of 4"), (4, 0, "at least 1")])
def test_width_that_is_no_multiple_should_fail(width: int, subclasses: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fold_logits(torch.zeros(1, width), subclasses)
