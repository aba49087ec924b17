"""What stands around the layers: norms, pooling, PReLU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.layers import ChannelPReLU, HalvingPool, TwoStepNorm1d, TwoStepNorm2d


@pytest.mark.parametrize(("kind", "plain", "shape"), [
    (TwoStepNorm2d, nn.BatchNorm2d, (6, 3, 2, 5)),
    (TwoStepNorm1d, nn.BatchNorm1d, (6, 3)),
])  # fmt: skip
def test_a_norm_trains_as_pytorchs_and_evaluates_in_two_steps(
    kind: type[TwoStepNorm2d], plain: type[nn.BatchNorm2d], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    ours, theirs = kind(3), plain(3)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    x = 3 * torch.randn(shape) + 1
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    ours.eval()
    theirs.eval()
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    a = ours.weight * torch.rsqrt(ours.running_var + ours.eps)
    b = ours.bias - ours.running_mean * a
    by_hand = x * a.reshape(3, *[1] * (len(shape) - 2)) + b.reshape(3, *[1] * (len(shape) - 2))
    assert torch.equal(ours(x), by_hand)
    exported = ours.for_export()
    assert not list(exported.parameters())
    assert torch.equal(exported(x), by_hand)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 3), (1, 1), (3, 7)])
def test_the_pool_is_the_mean_of_the_positions_there_are(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    expected = F.avg_pool2d(x.double(), 2, ceil_mode=True, count_include_pad=False).float()
    pool = HalvingPool()
    assert torch.allclose(pool(x), expected)
    assert torch.allclose(pool.eval()(x), expected, atol=1e-6)


def test_the_pool_adds_in_reading_order() -> None:
    # In float32 1e8 + 1 is 1e8: only this order leaves nothing of the two ones.
    x = torch.tensor([[1e8, 1.0], [-1e8, 1.0]]).reshape(1, 1, 2, 2)
    assert HalvingPool().eval()(x).item() == 0.25


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 5)])
def test_prelu_is_pytorchs_with_the_same_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = ChannelPReLU(3), nn.PReLU(3)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    x.view(-1)[0] = 0.0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    gradient = torch.randn(shape)
    for module, each in zip((ours, theirs), inputs, strict=True):
        module(each).backward(gradient)
    assert torch.equal(ours(x), theirs(x))
    assert torch.allclose(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-6)  # type: ignore[arg-type]
    assert torch.equal(ours.eval()(x), theirs(x))


def test_prelu_keeps_bfloat16() -> None:
    module = ChannelPReLU(2)
    x = torch.randn(3, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
