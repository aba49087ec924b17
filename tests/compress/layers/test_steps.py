"""Values on grids: the levels and gradients of Brevitas, and steps that were found by hand."""

from __future__ import annotations

import pytest
import torch

from compress.layers.steps import MOST_VALUES, best_steps, snapped


def by_brevitas(x: torch.Tensor, step: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
    from brevitas.core.function_wrapper import Identity
    from brevitas.core.quant import IntQuant

    bits = torch.tensor(float((highest - lowest).bit_length()))
    quantizer = IntQuant(narrow_range=lowest == -highest, signed=lowest < 0, input_view_impl=Identity())
    return quantizer(step, torch.zeros(()), bits, x)


@pytest.mark.parametrize(("lowest", "highest"), [(-128, 127), (-127, 127), (-8, 7), (0, 15), (-1, 1), (0, 3)])
@pytest.mark.parametrize("channels", [1, 4])
def test_levels_and_gradients_are_those_of_brevitas(lowest: int, highest: int, channels: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    shape = (4, 1, 1, 1) if channels == 4 else ()
    reach = (torch.arange(1.0, 5.0) / 2 if shape else torch.tensor(1.0)).reshape(shape)  # less than the largest |x|
    step = reach / highest
    upstream = torch.randn(x.shape)
    ours, growth = x.clone().requires_grad_(), torch.zeros(channels if shape else (), requires_grad=True)
    came = snapped(ours, step, growth, lowest=lowest, highest=highest, factor=torch.tensor(0.5))
    came.backward(upstream)
    theirs, log_step = x.clone().requires_grad_(), step.log().requires_grad_()
    expected = by_brevitas(theirs, log_step.exp(), lowest, highest)
    expected.backward(upstream)
    assert (x > reach).any()
    assert (x < -reach).any()
    torch.testing.assert_close(came, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(growth.grad, 0.5 * log_step.grad.reshape(growth.shape), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_as_its_values_in_float32() -> None:
    x = torch.randn(1000).bfloat16()
    step, growth = torch.tensor(0.013), torch.zeros((), requires_grad=True)
    came = snapped(x, step, growth, lowest=-128, highest=127, factor=torch.ones(()))
    assert came.dtype == torch.bfloat16
    assert torch.equal(came, ((x.float() / step).round().clamp(-128, 127) * step).bfloat16())


def test_the_best_step_is_the_one_with_the_smallest_squared_error() -> None:
    rows = torch.tensor([
        [1.0, -1.0, 0.0, 1.0],  # lies on its grid
        [10.0, 1.0, 1.0, -1.0],  # one large value: it alone, at its own size, beats three small ones and a tenth
        [0.0, 0.0, 0.0, 0.0],
    ])  # fmt: skip
    steps = best_steps(rows, lowest=-1, highest=1)
    assert steps.tolist() == [1.0, 10.0, 1.0]
    torch.manual_seed(0)
    values = torch.randn(1, 5000)
    found = best_steps(values, lowest=-7, highest=7)

    def error(step: torch.Tensor) -> torch.Tensor:
        return (values - (values / step).round().clamp(-7, 7) * step).square().sum()

    assert error(found) <= min(error(found * factor) for factor in (0.5, 0.9, 1.1, 2.0))
    assert 0.3 < found.item() < 0.37  # of a normal distribution: 0.335 deviations (Max 1960, table II, 15 levels)


def test_a_step_of_levels_from_zero_on_reaches_the_largest_value() -> None:
    assert best_steps(torch.arange(16.0)[None] / 2, lowest=0, highest=15).tolist() == [0.5]


def test_of_many_values_some_are_enough() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 20 * MOST_VALUES)
    few = best_steps(values[:, :MOST_VALUES], lowest=-7, highest=7)
    torch.testing.assert_close(best_steps(values, lowest=-7, highest=7), few, rtol=0.05, atol=0)
    values[0, 7] = 1000.0  # between those that are looked at: the steps still reach it, or are a share of that
    assert best_steps(values, lowest=-7, highest=7)[0].item() == pytest.approx(1000 / 7 * 0.01)
