"""Layers on grids: what they compute, when their steps are set, what they are exported as."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.layers.quant import QuantConv2d, QuantLayer, QuantLinear
from export.layers import with_exported_layers
from runtime.errors import ExportError


def convolution(weight_bits: int = 4, input_bits: int = 8, **options: Any) -> QuantConv2d:
    torch.manual_seed(0)
    return QuantConv2d(nn.Conv2d(3, 5, 3, **options), weight_bits=weight_bits, input_bits=input_bits)


def linear(weight_bits: int = 4, input_bits: int = 8) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear(nn.Linear(6, 5), weight_bits=weight_bits, input_bits=input_bits)


def batch(layer: QuantLayer, rows: int = 8) -> torch.Tensor:
    shape = (rows, 3, 7, 7) if isinstance(layer, nn.Conv2d) else (rows, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_a_ternary_layer_by_hand() -> None:
    like = nn.Linear(4, 2)
    with torch.no_grad():
        like.weight.copy_(torch.tensor([[0.5, -0.5, 0.5, 0.0], [2.0, 2.0, -2.0, 2.0]]))
        like.bias.copy_(torch.tensor([1.0, -1.0]))
    layer = QuantLinear(like, weight_bits=2, input_bits=2)
    assert layer.weight is like.weight
    layer(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))  # no negative value: levels 0 to 3, in steps of 1
    assert layer.input_levels() == (0, 3)
    x = torch.tensor([[0.4, 0.6, 9.0, -5.0]])  # 0, 1, 3 and 0 on the grid
    assert layer(x).tolist() == [[0.5 * (-1 + 3) + 1.0, 2.0 * (1 - 3) - 1.0]]


@pytest.mark.parametrize("make", [convolution, linear])
def test_until_its_first_training_batch_it_is_the_float_layer(make: Any) -> None:
    layer = make().eval()
    x = batch(layer)
    product = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
    float_result = product(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), float_result)
    assert not layer.has_steps()
    layer.train()(x)
    assert layer.has_steps()
    assert not torch.equal(layer.eval()(x), float_result)
    torch.testing.assert_close(layer(x), float_result, rtol=0, atol=0.25)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_and_inputs_have_as_many_levels_as_bits_allow(bits: int) -> None:
    layer = convolution(bits, bits)
    x = batch(layer, 64)
    seen: list[torch.Tensor] = []
    layer._product = lambda inputs, weight: seen.extend([inputs, weight])  # type: ignore[assignment, func-returns-value, return-value]
    layer(x)
    inputs, weight = seen
    assert 2 ** (bits - 1) < len(inputs.unique()) <= 2**bits
    for channel, step in zip(weight, layer.weight_step(), strict=True):
        levels = channel / step
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert levels.abs().max().round() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize(
    ("bits", "positive", "levels"),
    [
        (8, True, (-128, 127)),
        (8, False, (-128, 127)),
        (4, True, (0, 15)),
        (4, False, (-8, 7)),
        (2, True, (0, 3)),
    ],
)
def test_inputs_of_eight_bits_are_signed_and_others_where_they_have_to_be(
    bits: int, positive: bool, levels: tuple[int, int]
) -> None:
    layer = convolution(4, bits)
    x = batch(layer)
    layer(x.relu() if positive else x)
    assert layer.input_levels() == levels
    layer(-x)  # the first batch has decided
    assert layer.input_levels() == levels


def test_a_float_state_fits_and_makes_steps_wait_for_the_next_batch() -> None:
    layer = linear()
    layer(batch(layer))
    other = nn.Linear(6, 5)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.weight, other.weight)
    assert not layer.has_steps()
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"):
        layer.load_state_dict({"weight": other.weight})
    with pytest.raises(RuntimeError, match=r"Missing key.*input_lowest"):
        layer.load_state_dict({**other.state_dict(), "input_start": torch.ones(())})


def test_its_own_state_brings_the_steps_along() -> None:
    layer, other = convolution(4, 4), convolution(4, 4)
    x = batch(layer).relu()
    layer(x)
    with torch.no_grad():
        layer.weight_growth += 0.1
        layer.input_growth -= 0.2
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), other.eval()(x))
    assert other.input_levels() == (0, 15)


@pytest.mark.parametrize("dead", [False, True])
def test_gradients_are_finite_and_reach_weights_and_steps(dead: bool) -> None:
    layer = convolution(2, 4)
    if dead:
        nn.init.zeros_(layer.weight)
    layer(batch(layer)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert dead or all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_steps_change_by_the_same_share_whatever_the_units_are() -> None:
    grown = []
    for unit in (1.0, 100.0):
        layer = linear(4, 4)
        with torch.no_grad():
            layer.weight *= unit
        x = batch(layer) / unit  # the same products
        layer(x).square().sum().backward()
        # A weight of another unit moves by 1 / unit as much, relatively 1 / unit²; so do the steps.
        grown.append((unit**2 * layer.weight_growth.grad, unit**2 * layer.input_growth.grad))
    for one, other in zip(*grown, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [convolution, linear])
@pytest.mark.parametrize("input_bits", [4, 8])
def test_it_is_exported_as_what_it_evaluates_to(make: Any, input_bits: int) -> None:
    layer = make(3, input_bits)
    model = nn.Sequential(layer).eval()
    with pytest.raises(ExportError, match="no steps yet"):
        with_exported_layers(model)
    model.train()(batch(layer))
    x = batch(layer, 3)
    exported = with_exported_layers(model.eval())
    assert not list(exported.parameters())
    assert torch.equal(exported(x), model(x))


def test_making_one_draws_no_random_numbers() -> None:
    like = nn.Conv2d(3, 4, 3)
    state = torch.get_rng_state()
    QuantConv2d(like, weight_bits=4, input_bits=8)
    assert torch.equal(torch.get_rng_state(), state)


def test_geometry_is_that_of_the_convolution() -> None:
    torch.manual_seed(0)
    like = nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2, bias=False)
    x = torch.randn(2, 4, 9, 5)
    assert torch.equal(QuantConv2d(like, weight_bits=8, input_bits=8).eval()(x), like(x))
