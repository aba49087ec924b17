from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compress.checkpoint import optimizer_tensors, restore_optimizer
from compress.kinds import Spec
from compress.optimization import (
    FUSED_FROM,
    OPTIMIZERS,
    SCHEDULES,
    AdamSpec,
    AdamWSpec,
    ConstantSpec,
    CosineSpec,
    OptimizerSpec,
    SGDSpec,
    StepSpec,
    rate_factor,
)


@pytest.mark.parametrize("table", [OPTIMIZERS, SCHEDULES])
def test_every_kind_in_the_table_has_its_own_name(table: dict[str, type[Spec]]) -> None:
    assert {name: spec.kind for name, spec in table.items()} == {name: name for name in table}


# Schedules


@pytest.mark.parametrize("epoch", [0, 3.5, 10])
def test_constant(epoch: float) -> None:
    assert ConstantSpec().factor(epoch, 10) == 1.0


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (2.99, 1.0), (3, 0.5), (4.5, 0.5), (5, 0.25), (10, 0.25)])
def test_step_falls_at_the_start_of_each_named_epoch(epoch: float, expected: float) -> None:
    assert StepSpec(at=(3, 5), gamma=0.5).factor(epoch, 10) == expected
    assert StepSpec(at=(5, 3), gamma=0.5).factor(epoch, 10) == expected


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1.0), (2, (1 + math.sqrt(0.5)) / 2), (4, 0.5), (6, (1 - math.sqrt(0.5)) / 2), (8, 0.0), (9, 0.0)],
)
def test_cosine(epoch: float, expected: float) -> None:
    assert CosineSpec().factor(epoch, 8) == pytest.approx(expected, abs=1e-12)
    assert CosineSpec(end=0.2).factor(epoch, 8) == pytest.approx(0.2 + 0.8 * expected, abs=1e-12)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.0), (0.5, 0.25), (1, 0.5), (2, 1.0), (7, 1.0)])
def test_warmup_is_linear(epoch: float, expected: float) -> None:
    assert rate_factor(ConstantSpec(), epoch=epoch, epochs=8, warmup_epochs=2) == expected


def test_warmup_is_multiplied_onto_the_schedule() -> None:
    assert rate_factor(StepSpec(at=(1,)), epoch=1.5, epochs=8, warmup_epochs=2) == pytest.approx(0.75 * 0.1)
    assert rate_factor(CosineSpec(), epoch=2, epochs=8, warmup_epochs=4) == pytest.approx((1 + math.sqrt(0.5)) / 4)


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert rate_factor(ConstantSpec(), epoch=0, epochs=8, warmup_epochs=0) == 1.0


# Optimizers: one and two steps by hand


def after_steps(spec: OptimizerSpec, start: float, gradients: list[float]) -> list[float]:
    """Return the one weight after each step."""
    parameter = nn.Parameter(torch.tensor([[start]], dtype=torch.float64))
    optimizer = spec.build([parameter])
    seen = []
    for gradient in gradients:
        parameter.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        seen.append(parameter.item())
    return seen


def test_sgd_without_momentum() -> None:
    assert after_steps(SGDSpec(lr=0.1, momentum=0.0), 1.0, [0.5, -2.0]) == pytest.approx([0.95, 1.15])


def test_sgd_with_momentum() -> None:
    # v = 0.5 v + g; w -= 0.1 v:   v = 0.5, then 0.25 - 2 = -1.75
    spec = SGDSpec(lr=0.1, momentum=0.5, nesterov=False)
    assert after_steps(spec, 1.0, [0.5, -2.0]) == pytest.approx([0.95, 0.95 + 0.175])


def test_sgd_with_nesterov_momentum() -> None:
    # w -= 0.1 (g + 0.5 v):   0.5 + 0.25 = 0.75, then -2 - 0.875 = -2.875
    assert after_steps(SGDSpec(lr=0.1, momentum=0.5), 1.0, [0.5, -2.0]) == pytest.approx([0.925, 0.925 + 0.2875])


def test_sgd_adds_the_decay_to_the_gradient() -> None:
    assert after_steps(SGDSpec(lr=0.1, momentum=0.0, weight_decay=0.2), 3.0, [0.5]) == pytest.approx([3 - 0.1 * 1.1])


def test_adam() -> None:
    # m = 0.5 m + 0.5 g, s = 0.75 s + 0.25 g², both divided by 1 - beta^t; w -= 0.1 m / (sqrt(s) + eps).
    spec = AdamSpec(lr=0.1, betas=(0.5, 0.75), eps=0.5)
    first = 1.0 - 0.1 * 2.0 / (2.0 + 0.5)
    m, s = (0.5 * 1.0 + 0.5 * -1.0) / 0.75, (0.75 * 1.0 + 0.25 * 1.0) / (1 - 0.75**2)
    second = first - 0.1 * m / (math.sqrt(s) + 0.5)
    assert after_steps(spec, 1.0, [2.0, -1.0]) == pytest.approx([first, second])


def test_adam_adds_the_decay_to_the_gradient() -> None:
    # The first step is g / (|g| + eps), g = 1 + 0.5 * 2.
    spec = AdamSpec(lr=0.1, eps=0.5, weight_decay=0.5)
    assert after_steps(spec, 2.0, [1.0]) == pytest.approx([2.0 - 0.1 * 2.0 / 2.5])


def test_adamw_shrinks_the_weight_itself() -> None:
    spec = AdamWSpec(lr=0.1, eps=0.5, weight_decay=0.5)
    assert after_steps(spec, 2.0, [1.0]) == pytest.approx([2.0 * (1 - 0.1 * 0.5) - 0.1 * 1.0 / 1.5])


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (SGDSpec(), {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}),
        (AdamSpec(), {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        (AdamWSpec(), {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
    ],
)
def test_defaults(spec: OptimizerSpec, settings: dict[str, Any]) -> None:
    (group,) = spec.build([nn.Parameter(torch.zeros(2, 2))]).param_groups
    assert {name: group[name] for name in settings} == settings


# Groups


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_decay_of_weights_leaves_biases_and_norms_out(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    decayed, spared = OPTIMIZERS[kind](weight_decay=0.5, decay="weights").build(model.parameters()).param_groups
    assert decayed["weight_decay"] == 0.5
    assert list(map(id, decayed["params"])) == [id(model[0].weight), id(model[2].weight)]
    assert spared["weight_decay"] == 0.0
    rest = [model[0].bias, model[1].weight, model[1].bias, model[2].bias]
    assert list(map(id, spared["params"])) == list(map(id, rest))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_decay_of_all_reaches_every_parameter(kind: str) -> None:
    model = nn.Linear(4, 3)
    (group,) = OPTIMIZERS[kind](weight_decay=0.5).build(model.parameters()).param_groups
    assert group["weight_decay"] == 0.5
    assert len(group["params"]) == 2


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_spared_bias_does_not_move_without_a_gradient(kind: str) -> None:
    model = nn.Linear(4, 3)
    bias, weight = model.bias.detach().clone(), model.weight.detach().clone()
    optimizer = OPTIMIZERS[kind](weight_decay=0.5, decay="weights").build(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)


# A large table


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_large_table_takes_the_fused_step_which_gives_the_same(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(FUSED_FROM // 64, 64, generator=generator)
    table, bias = nn.Parameter(start.clone()), nn.Parameter(torch.ones(3))
    plain = [nn.Parameter(start.clone()), nn.Parameter(torch.ones(3))]
    ours = OPTIMIZERS[kind](weight_decay=0.1).build([table, bias])
    reference = (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)(plain, lr=1e-3, weight_decay=0.1)
    assert ours.param_groups[0]["fused"]
    for _ in range(2):
        for mine, theirs in zip([table, bias], plain, strict=True):
            mine.grad = theirs.grad = torch.randn(mine.shape, generator=generator)
        ours.step()
        reference.step()
    torch.testing.assert_close(table, plain[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bias, plain[1], atol=1e-6, rtol=1e-5)


def test_a_fused_step_goes_on_from_a_checkpoint_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(FUSED_FROM // 64, 64, generator=generator))
    first = AdamSpec().build([table])
    table.grad = torch.randn(table.shape, generator=generator)
    first.step()
    again = nn.Parameter(table.detach().clone())
    second = AdamSpec().build([again])
    restore_optimizer(second, {name: value.clone() for name, value in optimizer_tensors(first).items()})
    table.grad = again.grad = torch.randn(table.shape, generator=generator)
    first.step()
    second.step()
    assert torch.equal(table, again)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_smaller_models_keep_the_plain_step(kind: str) -> None:
    (group,) = OPTIMIZERS[kind]().build([nn.Parameter(torch.zeros(FUSED_FROM - 1))]).param_groups
    assert not group["fused"]


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (SGDSpec, {"lr": 0.0}),
        (SGDSpec, {"momentum": 1.0}),
        (SGDSpec, {"weight_decay": -1.0}),
        (SGDSpec, {"lr": math.inf}),
        (AdamSpec, {"betas": (0.9, 1.0)}),
        (AdamSpec, {"betas": (0.9,)}),
        (AdamSpec, {"eps": 0.0}),
        (AdamSpec, {"decay": "norms"}),
        (AdamSpec, {"lr": True}),
        (StepSpec, {}),
        (StepSpec, {"at": ()}),
        (StepSpec, {"at": (0,)}),
        (StepSpec, {"at": (1,), "gamma": 1.5}),
        (CosineSpec, {"end": 1.5}),
    ],
)
def test_options_out_of_range_are_refused(spec: type[Spec], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**options)


# Latent weights


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_decay_of_weights_spares_latent_ones(kind: str) -> None:
    latent, weight, bias = (nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (2, 3), (2,)))
    spec = OPTIMIZERS[kind](weight_decay=0.5, decay="weights")
    groups = spec.build([latent, weight, bias], [latent]).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.5), (2, 0.0)]
    assert groups[0]["params"][0] is weight
    assert not spec.decays_latent()
    everything = OPTIMIZERS[kind](weight_decay=0.5)
    assert everything.decays_latent()
    assert [len(group["params"]) for group in everything.build([latent, weight, bias], [latent]).param_groups] == [3]
    assert not OPTIMIZERS[kind](weight_decay=0.0).decays_latent()
