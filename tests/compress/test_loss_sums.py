from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress.loss_sums import LossSums, NotFiniteError


def scalars(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


def test_means_are_over_rows_and_not_over_steps() -> None:
    sums = LossSums(("total", "ce"))
    sums.add(3, scalars(1.0, 2.0))
    sums.add(1, scalars(5.0, 6.0))
    assert sums.means == {"total": 0.0, "ce": 0.0}
    sums.settle()
    assert sums.means == {"total": 2.0, "ce": 3.0}
    assert (sums.rows, sums.steps, sums.pending) == (4, 2, [])


def test_an_epoch_goes_on_from_the_sums_of_a_checkpoint() -> None:
    sums = LossSums(("total",), [6.0], 3, 2)
    sums.add(1, scalars(2.0))
    sums.settle()
    assert sums.means == {"total": 2.0}
    assert sums.steps == 3


def test_nothing_waiting_is_nothing_to_do() -> None:
    sums = LossSums(("total",))
    sums.settle()
    assert (sums.means, sums.steps) == ({"total": 0.0}, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named_with_its_losses(value: float) -> None:
    sums = LossSums(("total", "ce"), [1.0, 1.0], 1, 7)
    sums.add(2, scalars(1.0, 1.0))
    sums.add(2, scalars(1.0, value))
    sums.add(2, scalars(value, value))
    with pytest.raises(NotFiniteError) as caught:
        sums.settle()
    assert caught.value.step == 8
    assert repr(caught.value.losses) == repr({"total": 1.0, "ce": value})
    assert (sums.sums, sums.rows) == ([1.0, 1.0], 1)
