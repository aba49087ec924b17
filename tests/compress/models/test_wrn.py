from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.wrn import PreActivationBlock, WideResNet, WideResNetSpec
from export.graph import InputSignature


def built(spec: WideResNetSpec, outputs: int = 10) -> WideResNet:
    torch.manual_seed(0)
    return spec.build(signature=InputSignature((8, 9, 3)), outputs=outputs)


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5))


def as_the_paper_writes_it(model: WideResNet, x: Tensor) -> Tensor:
    """The logits, with the first batch norm and ReLU in every block, and the last ones before the classifier."""
    x = F.conv2d(x, model.stem.weight, padding=1)
    following = None  # the norm behind the stage before
    for i, stage in enumerate(model.stages):
        *blocks, norm, _ = stage
        for block in blocks:
            assert isinstance(block, PreActivationBlock)
            before = normalised(x, block.norm1 if following is None else following)
            following = None
            stride = 2 if i and block is blocks[0] else 1
            inner = normalised(F.conv2d(before, block.conv1.weight, stride=stride, padding=1), block.norm2)
            residual = F.conv2d(inner, block.conv2.weight, padding=1)
            if x.shape[1] == residual.shape[1]:
                x = x + residual
            else:
                assert block.shortcut is not None
                x = F.conv2d(before, block.shortcut.weight, stride=stride) + residual
        following = norm
    assert following is not None
    embedding = normalised(x, following).mean(dim=(2, 3))
    return embedding @ model.classifier.weight.T + model.classifier.bias


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 2)])
def test_function_is_that_of_the_paper(depth: int, widen: int) -> None:
    model = built(WideResNetSpec(depth=depth, widen=widen)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    x = torch.randn(3, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, as_the_paper_writes_it(model, x), rtol=1e-4, atol=1e-5)


def test_initialised_as_the_published_code() -> None:
    model = built(WideResNetSpec(depth=10, widen=4))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            variance = 2 / (module.out_channels * module.kernel_size[0] ** 2)
            assert module.weight.var().item() == pytest.approx(variance, rel=0.2)
            assert module.weight.abs().max() > 2.5 * math.sqrt(variance)  # normal, and not uniform
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
    bound = 1 / math.sqrt(256)  # as PyTorch makes a linear layer
    assert 0.98 * bound < model.classifier.weight.abs().max() <= bound
    assert torch.equal(model.classifier.bias, torch.zeros(10))


def test_dropout_is_between_the_convolutions_and_in_training_only() -> None:
    x = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    model, plain = built(WideResNetSpec(depth=10, widen=1, dropout=0.3)), built(WideResNetSpec(depth=10, widen=1))
    assert torch.equal(model.eval()(x).logits, plain.eval()(x).logits)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.3] * 3


@pytest.mark.parametrize("depth", [11, 20, 26, 32])
def test_depths_between_the_blocks_are_refused(depth: int) -> None:
    with pytest.raises(ValidationError, match=rf"depth {depth} is not 4 \+ 6 · blocks.*10, 16, 22, 28"):
        WideResNetSpec(depth=depth)


@pytest.mark.parametrize("options", [{"depth": 4}, {"widen": 0}, {"widen": 1.5}, {"dropout": 1.0}, {"width": 2}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WideResNetSpec(**options)
