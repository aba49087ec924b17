from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from compress.layers import FixedPointConv2d
from compress.layers.fixed_point import EXACT, fitting_weight_bits


def layer(*, step: float | None = None, inputs: int = 3, kernel: int = 3, stride: int = 1) -> FixedPointConv2d:
    torch.manual_seed(0)
    if step is None:
        return FixedPointConv2d(inputs, 4, kernel, stride=stride)
    return FixedPointConv2d.of_pixels(inputs, 4, kernel, stride=stride)


def test_weights_are_multiples_of_a_power_of_two_a_channel_and_fill_their_bits() -> None:
    for weight, snapped in zip(layer().weight, layer().snapped_weight(), strict=True):
        step = 2.0 ** torch.ceil(torch.log2(weight.abs().max() / 127))
        levels = snapped / step
        assert torch.equal(levels, levels.round())
        assert 63 <= levels.abs().max() <= 127
        assert (snapped - weight).abs().max() <= step / 2


def test_a_largest_weight_that_is_a_power_of_two_of_levels_needs_no_larger_step() -> None:
    conv = layer()
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = 127 * 2.0**-9
        conv.weight[1, 0, 0, 0] = 128 * 2.0**-9  # beyond 127 levels of that step
    snapped = conv.snapped_weight()
    assert torch.equal(snapped, conv.weight)  # 64 levels of 2^-8; channels without weights stay 0
    assert snapped[2:].abs().max() == 0


def test_pixels_are_snapped_to_sixty_fourths_and_clamped() -> None:
    conv = layer(step=1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, 0, 1, 1] = 1.0
    x = torch.zeros(1, 3, 1, 6)
    x[0, 0, 0] = torch.tensor([0.0, 1 / 64 + 0.001, 3.5 / 64, 4.5 / 64, 10.0, -4.0])
    assert conv.eval()(x)[0, 0, 0].tolist() == [0.0, 1 / 64, 4 / 64, 4 / 64, 255 / 64, -255 / 64]


def test_every_sum_is_exact_in_any_order() -> None:
    torch.manual_seed(1)
    conv = layer(step=1, kernel=7).eval()
    x = 3 * torch.randn(2, 3, 9, 9)
    exact = F.conv2d((x * 64).round().clamp(-255, 255).double() / 64, conv.snapped_weight().double(), padding=3)
    assert torch.equal(conv(x).double(), exact)
    flipped = F.conv2d(
        ((x * 64).round().clamp(-255, 255) / 64).flip(1), conv.snapped_weight().flip(1).detach(), padding=3
    )
    assert torch.equal(conv(x), flipped)


def test_the_input_grid_follows_a_running_maximum_by_powers_of_two() -> None:
    conv = layer(kernel=1).train()
    x = torch.zeros(2, 3, 2, 2)
    x[0, 0, 0, 0] = -100.0
    conv(x)
    assert float(conv.maximum) == 100.0  # the first batch
    assert conv.input_step() == 1.0  # 100 of 127 levels
    x[0, 0, 0, 0] = 200.0
    conv(x)
    assert float(conv.maximum) == pytest.approx(110.0)
    conv.eval()(1000 * x)
    assert float(conv.maximum) == pytest.approx(110.0)
    with torch.no_grad():
        conv.maximum.fill_(128.0)
    assert conv.input_step() == 2.0
    with torch.no_grad():
        conv.maximum.fill_(127.0 / 4)
    assert conv.input_step() == 0.25


def test_gradients_go_through_the_rounding_and_stop_at_the_clamp() -> None:
    conv = layer(step=1, kernel=1)
    x = torch.tensor([0.3, 5.0, -3.9]).reshape(1, 3, 1, 1).requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is not None
    through = conv.snapped_weight().detach().sum((0, 2, 3))
    assert x.grad.flatten().tolist() == pytest.approx([float(through[0]), 0.0, float(through[2])])
    snapped = torch.tensor([19 / 64, 255 / 64, -250 / 64])
    assert torch.allclose(conv.weight.grad[0].flatten(), snapped)


def test_weights_get_fewer_bits_where_eight_would_not_be_exact() -> None:
    assert fitting_weight_bits(7 * 7 * 3, 255) == 8
    assert fitting_weight_bits(1040, 127) == 8
    assert 127 * 127 * 1040 <= EXACT < 127 * 127 * 1041
    assert fitting_weight_bits(1041, 127) == 7
    assert FixedPointConv2d(2048, 1, 1).weight_bits == 7
    with pytest.raises(ValueError, match="not exact in float32"):
        fitting_weight_bits(EXACT, 127)


def test_the_exported_layer_is_constant_and_equal() -> None:
    conv = layer(stride=2)
    x = torch.randn(2, 3, 6, 5)
    conv.train()(x)
    exported = conv.eval().for_export()
    assert not list(exported.parameters())
    assert torch.equal(exported(x), conv(x))
    with torch.no_grad():
        conv.weight.zero_()
    assert exported(x).abs().max() > 0
