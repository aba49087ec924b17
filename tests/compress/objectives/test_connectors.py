"""What brings the student's features to the teacher's width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.objectives.connectors import BatchNorm, Connector


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_connector_on_a_vector_is_linear_batch_norm_and_relu() -> None:
    connector, x = Connector(3, 5, bias=True), numbers(6, 3)
    assert connector.conv.bias is not None
    linear = F.linear(x, connector.conv.weight.flatten(1), connector.conv.bias)
    expected = F.relu(F.batch_norm(linear, None, None, training=True))
    torch.testing.assert_close(connector(x), expected)


def test_a_connector_takes_half_precision() -> None:
    assert Connector(3, 5, bias=False)(numbers(2, 3, 4, 4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1)])
def test_a_connector_takes_one_value_a_channel(shape: tuple[int, ...]) -> None:
    connector, x = Connector(4, 3, bias=False), numbers(*shape).requires_grad_()
    before = {name: value.clone() for name, value in connector.state_dict().items()}
    result = connector(x)
    result.sum().backward()
    assert result.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(torch.equal(before[name], value) for name, value in connector.state_dict().items())


def test_batch_norm_is_pytorchs_otherwise() -> None:
    x = numbers(1, 3, 2, 2)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)  # type: ignore[arg-type]
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
