from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.layers import BinaryConv2d, BinaryLinear, LayerForm, latent_weights
from compress.layers.watch import BinaryWatch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.binary = BinaryConv2d(3, 2, 1, form=LayerForm(ste="tanh"), norm=True)
        self.real = BinaryConv2d(2, 2, 1, form=LayerForm("real", "binary"))
        self.ternary = BinaryLinear(2, 4, form=LayerForm("ternary", "real"))
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.real(self.binary(x)).mean((2, 3))
        logits: Tensor = self.classifier(self.ternary(x))
        return logits


def test_latent_weights_are_those_of_which_signs_are_deployed() -> None:
    net = Net()
    assert latent_weights(net) == [net.binary.weight, net.ternary.weight]
    assert latent_weights(nn.Linear(2, 2)) == []


def test_flips_are_counted_from_the_beginning_of_the_epoch() -> None:
    net = Net()
    watch = BinaryWatch(net)
    watch.begin_epoch(0.5, resumed=False)
    assert (net.binary.progress, net.ternary.progress) == (0.5, 0.5)
    with torch.no_grad():
        net.binary.weight[0].neg_()  # 3 of 6
        net.ternary.weight[1, 1].neg_()  # 1 of 8
        net.real.weight.neg_()  # no latent one
    record = watch.end_epoch(None)["binary"]
    assert record["flipped"] == 4 / 14
    assert {name: layer["flipped"] for name, layer in record["layers"].items()} == {"binary": 3 / 6, "ternary": 1 / 8}
    # A run that goes on in the middle of an epoch has the signs of its checkpoint, not those that it finds.
    signs = watch.signs
    watch = BinaryWatch(net)
    watch.signs = signs
    watch.begin_epoch(0.5, resumed=True)
    assert watch.end_epoch(None)["binary"]["flipped"] == 4 / 14
    watch.begin_epoch(0.75, resumed=False)
    assert watch.end_epoch(None)["binary"]["flipped"] == 0


def test_a_channel_with_one_sign_everywhere_is_dead() -> None:
    net = Net().train()
    with torch.no_grad():
        net.binary.weight.copy_(torch.ones(2, 3, 1, 1))  # channels 1 and 2 cancel, channel 0 decides
        net.binary.norm.weight[0] = 0.0  # type: ignore[index, union-attr]
        net.binary.norm.bias[0] = 0.0  # type: ignore[index, union-attr]  # 0 everywhere: the sign is +1
    x = torch.randn(5, 3, 4, 4)
    x[:, 1] = -x[:, 1].abs() - 1e-3
    x[:, 2] = x[:, 2].abs()
    x[0, 2, 0, 0] = -1.0  # one position is enough to be alive
    net(x)
    watch = BinaryWatch(net)
    watch.begin_epoch(0.0, resumed=False)
    statistics = net.binary.norm.running_mean.clone()  # type: ignore[union-attr]
    record = watch.end_epoch(x)["binary"]
    assert (record["dead_channels"], record["channels"]) == (2, 5)
    of_each = {
        name: (layer["dead_channels"], layer["channels"])
        for name, layer in record["layers"].items()
        if "channels" in layer
    }
    assert of_each == {"binary": (1, 3), "real": (1, 2)}
    assert net.training
    assert torch.equal(net.binary.norm.running_mean, statistics)  # type: ignore[union-attr]
    assert not net.real._forward_pre_hooks


def test_a_model_without_binary_layers_has_no_record() -> None:
    watch = BinaryWatch(nn.Linear(2, 2))
    watch.begin_epoch(0.1, resumed=False)
    assert (watch.signs, watch.end_epoch(torch.zeros(1, 2))) == ({}, {})
