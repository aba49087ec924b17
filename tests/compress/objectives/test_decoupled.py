"""Hinton's mix, decoupled distillation and smooth L1: values by hand, extremes, and the terms' options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.models import Output
from compress.objectives import OBJECTIVES, Heads, TermSpec, functional
from compress.objectives.dkd import DKDSpec
from compress.objectives.kd import KDSpec
from compress.objectives.smooth_l1 import SmoothL1Spec
from export.fold import fold_logits


def numbers(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % x.shape[1]


def plain_dkd(student: Tensor, teacher: Tensor, labels: Tensor, tau: float, alpha: float, beta: float) -> Tensor:
    """Sums and renormalised probabilities in float64, as the paper writes them."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t, label in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        q, p = (s / tau).softmax(0), (t / tau).softmax(0)
        others = [i for i in range(len(s)) if i != label]
        pair_p, pair_q = torch.stack([p[label], p[others].sum()]), torch.stack([q[label], q[others].sum()])
        total = total + alpha * (pair_p * (pair_p / pair_q).log()).sum()
        p_others, q_others = p[others] / p[others].sum(), q[others] / q[others].sum()
        total = total + beta * (p_others * (p_others / q_others).log()).sum()
    return tau**2 * total / len(student)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        f"dkd {alpha:g} {beta:g} tau {tau:g}": lambda s, t, tau=tau, alpha=alpha, beta=beta: functional.decoupled_kd(
            s, t, labels_of(s), tau=tau, tckd=alpha, nckd=beta
        )
        for tau in (0.1, 1.0, 4.0, 100.0)
        for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (1.0, 8.0))
    },
    "smooth_l1": functional.logit_smooth_l1,
    "smooth_l1 sum": lambda s, t: functional.logit_smooth_l1(s, t, 0.5, "sum"),
}
BATCHES = {
    "ordinary": (numbers(6, 4), numbers(6, 4, seed=1)),
    "one row": (numbers(1, 4), numbers(1, 4, seed=1)),
    "two classes": (numbers(3, 2), numbers(3, 2, seed=1)),
    "zeros": (torch.zeros(3, 4), torch.zeros(3, 4)),
    "duplicates": (numbers(1, 4).tile(5, 1), numbers(1, 4, seed=1).tile(5, 1)),
    "±200": (200 * numbers(6, 4).sign(), 200 * numbers(6, 4, seed=1).sign()),
    "opposite": (torch.tensor([[200.0, -200, -200, -200]]), torch.tensor([[-200.0, 200, 200, 200]])),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", BATCHES)
def test_loss_and_gradient_are_finite(name: str, batch: str) -> None:
    student, teacher = BATCHES[batch]
    student = student.clone().requires_grad_()
    loss = LOSSES[name](student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss >= 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
def test_equal_logits_cost_nothing(name: str, scale: float) -> None:
    x = numbers(5, 4, scale=scale).requires_grad_()
    loss = LOSSES[name](x, x.detach())
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = numbers(5, 4).to(dtype), numbers(5, 4, seed=1).to(dtype)
    half = LOSSES[name](student, teacher)
    assert half.dtype == torch.float32
    assert half == LOSSES[name](student.float(), teacher.float())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_over_the_batch(name: str) -> None:
    student, teacher = numbers(4, 4), numbers(4, 4, seed=1)
    once = LOSSES[name](student, teacher)
    torch.testing.assert_close(LOSSES[name](student.tile(3, 1), teacher.tile(3, 1)), once)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 20.0, 100.0])
def test_dkd_in_float32_agrees_with_the_definition(tau: float) -> None:
    student, teacher, labels = numbers(6, 5), numbers(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    value = functional.decoupled_kd(student, teacher, labels, tau=tau, tckd=1.0, nckd=8.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain_dkd(student, teacher, labels, tau, 1.0, 8.0).item(), rel=1e-4)


def test_dkd_by_hand() -> None:
    # Student (0.5, 0.3, 0.2), teacher (0.8, 0.05, 0.15), true class 0.
    student, teacher = (torch.tensor([row]).log() for row in ([0.5, 0.3, 0.2], [0.8, 0.05, 0.15]))
    target = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    others = 0.25 * math.log(0.25 / 0.6) + 0.75 * math.log(0.75 / 0.4)
    label = torch.tensor([0])
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (0.5, 3.0)):
        value = functional.decoupled_kd(student, teacher, label, tau=1.0, tckd=alpha, nckd=beta)
        assert value.item() == pytest.approx(alpha * target + beta * others, rel=1e-5)


def test_dkd_is_kl_where_beta_is_the_teachers_doubt() -> None:
    student, teacher = numbers(1, 5), numbers(1, 5, seed=1)
    doubt = 1 - teacher.softmax(1)[0, 2].item()
    value = functional.decoupled_kd(student, teacher, torch.tensor([2]), tau=1.0, tckd=1.0, nckd=doubt)
    torch.testing.assert_close(value, functional.kl_divergence(student, teacher, 1.0))


def test_dkd_has_nothing_to_say_about_the_others_where_there_is_one() -> None:
    student, teacher = numbers(4, 2), numbers(4, 2, seed=1)
    assert functional.decoupled_kd(student, teacher, labels_of(student), tau=4.0, tckd=0.0, nckd=8.0) == 0


def test_dkd_of_opposite_extremes_is_the_gap_of_the_logits() -> None:
    student, teacher = BATCHES["opposite"]
    value = functional.decoupled_kd(student, teacher, torch.tensor([0]), tau=1.0, tckd=1.0, nckd=0.0)
    assert value.item() == pytest.approx(400 + math.log(1 / 3), rel=1e-5)


def test_smooth_l1_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert functional.logit_smooth_l1(student, teacher).item() == (0.125 + 2.5) / 2
    assert functional.logit_smooth_l1(student, teacher, reduction="sum").item() == 0.125 + 2.5
    assert functional.logit_smooth_l1(student, teacher, 4.0, "sum").item() == (0.25 + 9) / 8


# Terms


def value(spec: TermSpec, heads: Heads, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    assert spec.problem(heads) is None
    outputs = (Output(logits, torch.zeros(len(logits), 1), ()) for logits in (student, teacher))
    return spec.build(heads)(*outputs, labels)


@pytest.mark.parametrize(
    ("options", "kl_weight", "ce_weight"),
    [
        ({}, 0.9, 0.1),
        ({"kl_weight": 0.3, "ce_weight": 0.7}, 0.3, 0.7),
        ({"kl_weight": 3.0, "ce_weight": 0.5}, 3.0, 0.5),
        ({"kl_weight": 1.0, "ce_weight": 0.0}, 1.0, 0.0),
        ({"kl_weight": 0.3, "ce_weight": 0.7, "tau": "inf"}, 0.3, 0.7),
        ({"kl_weight": 0.3, "ce_weight": 0.7, "rescale": "none"}, 0.3, 0.7),
    ],
)
@pytest.mark.parametrize("subclasses", [1, 2])
def test_kd_mixes_kl_and_ce(options: dict[str, Any], kl_weight: float, ce_weight: float, subclasses: int) -> None:
    student, teacher, labels = numbers(5, 6), numbers(5, 6, seed=1), torch.tensor([0, 1, 2, 0, 1])
    spec = KDSpec(**options)
    kl = functional.kl_divergence(student, teacher, float(spec.tau), spec.rescale)
    ce = functional.cross_entropy(fold_logits(student, subclasses), labels)
    heads = Heads(6 // subclasses, subclasses, subclasses)
    torch.testing.assert_close(value(spec, heads, student, teacher, labels), kl_weight * kl + ce_weight * ce)


@pytest.mark.parametrize("spec", [KDSpec(), SmoothL1Spec()])
def test_different_numbers_of_subclasses_cannot_be_compared(spec: TermSpec) -> None:
    assert "cannot be compared" in (spec.problem(Heads(3, 2, 4)) or "")


@pytest.mark.parametrize(("subclasses", "teacher_subclasses"), [(1, 2), (2, 1), (2, 4), (2, 2)])
def test_dkd_reads_folded_logits(subclasses: int, teacher_subclasses: int) -> None:
    student, teacher = numbers(5, 3 * subclasses), numbers(5, 3 * teacher_subclasses, seed=1)
    labels = torch.tensor([0, 1, 2, 0, 1])
    heads = Heads(3, subclasses, teacher_subclasses)
    folded = fold_logits(student, subclasses), fold_logits(teacher, teacher_subclasses)
    expected = functional.decoupled_kd(*folded, labels, tau=2.0, tckd=0.5, nckd=2.0)
    spec = DKDSpec(tau=2.0, tckd=0.5, nckd=2.0)
    torch.testing.assert_close(value(spec, heads, student, teacher, labels), expected)


def test_dkd_needs_two_classes() -> None:
    assert "one class" in (DKDSpec().problem(Heads(1, 1, 1)) or "")


def test_smooth_l1_passes_its_options_on() -> None:
    student, teacher = torch.tensor([[0.5, 3.0]]), torch.tensor([[0.0, 0.0]])
    labels = torch.tensor([0])
    assert value(SmoothL1Spec(), Heads(2, 1, 1), student, teacher, labels) == (0.125 + 2.5) / 2
    assert (
        value(SmoothL1Spec(threshold=4.0, reduction="sum"), Heads(2, 1, 1), student, teacher, labels) == (0.25 + 9) / 8
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kd", {"tau": 0.0}),
        ("kd", {"kl_weight": -0.1}),
        ("kd", {"alpha": 0.9}),
        ("dkd", {"tau": math.inf}),
        ("dkd", {"nckd": -1.0}),
        ("smooth_l1", {"threshold": 0.0}),
    ],
)
def test_unknown_options_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OBJECTIVES[kind](**options)
