from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.objectives import functional as losses

SCALES = [0.0, 1.0, 200.0]
TAUS = [0.1, 1.0, 4.0, 16.0, 17.0, 100.0, 1e5, 1e9, math.inf]


def logits(rows: int, width: int, scale: float = 3.0, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, width, generator=generator)).to(dtype)


def extreme(rows: int, width: int, *, seed: int = 0) -> Tensor:
    """Logits that are all +200 or -200."""
    return 200.0 * logits(rows, width, seed=seed).sign()


def gradient_of(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    return gradient


def plain_kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau² KL(teacher ‖ student), written out in float64."""
    p, q = ((z.double() / tau).softmax(1) for z in (teacher, student))
    return tau**2 * (p * (p.log() - q.log())).sum(1).mean()


# Every loss as a function of the student's logits (N, 4), for what must hold of all of them.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda z: losses.cross_entropy(z, torch.arange(len(z)) % 4),
    "cross_entropy smoothed": lambda z: losses.cross_entropy(z, torch.arange(len(z)) % 4, 0.1),
    **{
        f"kl {rescale} {tau:g}": lambda z, tau=tau, rescale=rescale: losses.kl_divergence(
            z, logits(len(z), 4, seed=9), tau, rescale
        )
        for tau in TAUS
        for rescale in ("tau2", "max", "none")
    },
    "kl extreme": lambda z: losses.kl_divergence(z, extreme(len(z), 4, seed=9), 0.1),
    "soft_cross_entropy": lambda z: losses.soft_cross_entropy(z, logits(len(z), 4, seed=9), 0.1),
    "soft_cross_entropy extreme": lambda z: losses.soft_cross_entropy(z, extreme(len(z), 4, seed=9), 0.1),
    "logit_mse": lambda z: losses.logit_mse(z, extreme(len(z), 4, seed=9)),
    "subclass_auxiliary": lambda z: losses.subclass_auxiliary(z, 0.1),
    "subclass_auxiliary literal": lambda z: losses.subclass_auxiliary(z, 0.1, "literal"),
    "intra_subclass": lambda z: losses.intra_subclass(z, extreme(len(z), 4, seed=9), 2, 0.1),
    "intra_subclass S = 1": lambda z: losses.intra_subclass(z, extreme(len(z), 4, seed=9), 1, 0.1),
}
INPUTS: dict[str, Tensor] = {
    "ordinary": logits(6, 4),
    "batch of one": logits(1, 4),
    "zeros": torch.zeros(3, 4),
    "constant rows": torch.tensor([[5.0] * 4, [-3.0] * 4]),
    "identical rows": logits(1, 4).expand(5, 4).contiguous(),
    "±200": extreme(6, 4),
    "one at 200": torch.tensor([[200.0, 0, 0, 0], [-200.0, 0, 0, 0]]),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", INPUTS)
def test_value_and_gradient_are_finite(name: str, rows: str) -> None:
    value = LOSSES[name](INPUTS[rows])
    assert value.ndim == 0
    assert torch.isfinite(value)
    assert torch.isfinite(gradient_of(LOSSES[name], INPUTS[rows])).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    half = logits(6, 4).to(dtype)
    value = LOSSES[name](half)
    assert value.dtype == torch.float32
    assert value == LOSSES[name](half.float())
    assert gradient_of(LOSSES[name], half).dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_float64_stays_float64(name: str) -> None:
    single = logits(6, 4)
    value = LOSSES[name](single.double())
    assert value.dtype == torch.float64
    torch.testing.assert_close(LOSSES[name](single).double(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_adding_a_constant_to_a_row_changes_nothing(name: str) -> None:
    if name == "logit_mse":
        pytest.skip("squared distance of logits sees the shift, on purpose")
    z = logits(6, 4, dtype=torch.float64)
    shift = torch.tensor([[-50.0], [0.0], [3.0], [7.0], [20.0], [50.0]], dtype=torch.float64)
    torch.testing.assert_close(LOSSES[name](z + shift), LOSSES[name](z), rtol=1e-6, atol=1e-9)


# cross_entropy


def test_cross_entropy_of_known_probabilities() -> None:
    z = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]).log()
    expected = -(math.log(0.7) + math.log(0.5)) / 2
    assert losses.cross_entropy(z, torch.tensor([0, 2])).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_smoothing_leaves_the_true_class_out() -> None:
    z = torch.tensor([[0.7, 0.2, 0.1]]).log()
    expected = -(0.9 * math.log(0.7) + 0.05 * math.log(0.2) + 0.05 * math.log(0.1))
    assert losses.cross_entropy(z, torch.tensor([0]), 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_smoothing_with_two_classes() -> None:
    z = torch.tensor([[0.8, 0.2]]).log()
    expected = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2))
    assert losses.cross_entropy(z, torch.tensor([0]), 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_one_class_is_zero() -> None:
    assert losses.cross_entropy(torch.tensor([[3.0]]), torch.tensor([0]), 0.1) == 0


def test_cross_entropy_without_smoothing_agrees_with_torch() -> None:
    z, labels = logits(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(losses.cross_entropy(z, labels), torch.nn.functional.cross_entropy(z, labels))


# kl_divergence


def test_kl_of_known_probabilities() -> None:
    teacher, student = (torch.tensor([row]).log() for row in ([0.5, 0.5], [0.9, 0.1]))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert losses.kl_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_kl_is_the_mean_over_the_batch() -> None:
    student, teacher = logits(5, 4), logits(5, 4, seed=1)
    rows = [losses.kl_divergence(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(5)]
    torch.testing.assert_close(losses.kl_divergence(student, teacher, 2.0), torch.stack(rows).mean())


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_of_equal_logits_is_zero(tau: float, scale: float, dtype: torch.dtype) -> None:
    z = logits(6, 10, scale, dtype=dtype)
    assert losses.kl_divergence(z, z.clone(), tau) == 0
    assert gradient_of(lambda x: losses.kl_divergence(x, z, tau), z).abs().max() <= 1e-6 * max(1, min(tau, 16))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("distance", [1e-5, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_not_negative_however_close_the_logits(tau: float, distance: float, dtype: torch.dtype) -> None:
    for seed in range(8):
        teacher = logits(1, 10, seed=seed, dtype=dtype)
        student = teacher + distance * logits(1, 10, 1.0, seed=seed + 100, dtype=dtype)
        assert losses.kl_divergence(student, teacher, tau) >= 0


@pytest.mark.parametrize("tau", [1.0, 4.0, 16.0, 100.0, 1e3])
def test_kl_of_nearly_equal_logits_is_half_their_weighted_variance(tau: float) -> None:
    # To second order in the difference d: tau² KL = ½ (Σ p d² - (Σ p d)²), p = softmax(teacher / tau).
    teacher = logits(6, 10)
    student = teacher + 1e-3 * logits(6, 10, 1.0, seed=1)
    p = (teacher.double() / tau).softmax(1)
    d = student.double() - teacher.double()
    expected = 0.5 * ((p * d.square()).sum(1) - (p * d).sum(1).square()).mean()
    for dtype in (torch.float32, torch.float64):
        value = losses.kl_divergence(student.to(dtype), teacher.to(dtype), tau)
        assert value.item() == pytest.approx(expected.item(), rel=5e-3)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 4.0, 16.0, 16.5, 20.0, 150.0, 1e3, 1e4])
@pytest.mark.parametrize("scale", [3.0, 60.0])
def test_kl_in_float32_agrees_with_the_definition_in_float64(tau: float, scale: float) -> None:
    student, teacher = logits(6, 10, scale), logits(6, 10, scale, seed=1)
    if tau == 0.1:  # The definition itself runs into log 0 further out.
        student, teacher = student / scale, teacher / scale
    value = losses.kl_divergence(student, teacher, tau)
    expected = plain_kl(student, teacher, tau)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(
        gradient_of(lambda x: losses.kl_divergence(x, teacher, tau), student).double(),
        gradient_of(lambda x: plain_kl(x, teacher, tau), student.double()),
        rtol=1e-3,
        atol=1e-5 * scale,
    )


@pytest.mark.parametrize("tau", [1e5, 9e5, 1.1e6, 1e8, 1e12, 1e200, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
def test_kl_at_high_temperature_is_half_the_variance_of_the_difference(
    tau: float, dtype: torch.dtype, scale: float
) -> None:
    student, teacher = logits(6, 10, scale, dtype=dtype), logits(6, 10, scale, seed=1, dtype=dtype)
    difference = student.double() - teacher.double()
    centred = difference - difference.mean(1, keepdim=True)
    # The relative distance from the limit shrinks as the softened logits do.
    allowed = 1e-5 + 2 * scale / tau
    value = losses.kl_divergence(student, teacher, tau)
    assert value.item() == pytest.approx(0.5 * centred.square().mean(1).mean().item(), rel=allowed)
    gradient = gradient_of(lambda x: losses.kl_divergence(x, teacher, tau), student)
    torch.testing.assert_close(gradient.double(), centred / (10 * 6), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("threshold", [losses.FLOAT32_TAU, losses.FLOAT64_TAU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_continuous_where_the_computation_changes(threshold: float, dtype: torch.dtype) -> None:
    student, teacher = logits(6, 10, dtype=dtype), logits(6, 10, seed=1, dtype=dtype)
    below = losses.kl_divergence(student, teacher, threshold)
    above = losses.kl_divergence(student, teacher, threshold * (1 + 1e-9))
    torch.testing.assert_close(above, below, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 3.0, 20.0])
def test_kl_rescale_factors(tau: float) -> None:
    student, teacher = logits(6, 4), logits(6, 4, seed=1)
    plain = losses.kl_divergence(student, teacher, tau, "none")
    torch.testing.assert_close(losses.kl_divergence(student, teacher, tau, "tau2"), tau**2 * plain)
    torch.testing.assert_close(losses.kl_divergence(student, teacher, tau, "max"), max(tau, tau**2) * plain)


def test_kl_without_rescale_vanishes_at_infinity() -> None:
    assert losses.kl_divergence(logits(6, 4), logits(6, 4, seed=1), math.inf, "none") == 0


def test_kl_of_opposite_extremes() -> None:
    # One-hot in all but name: KL is the gap of the scaled logits.
    student, teacher = torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]])
    assert losses.kl_divergence(student, teacher, 0.1).item() == pytest.approx(0.01 * 4000, rel=1e-6)
    gradient = gradient_of(lambda x: losses.kl_divergence(x, teacher, 0.1), student)
    torch.testing.assert_close(gradient, torch.tensor([[0.1, -0.1]]))


def test_kl_gradient_is_the_difference_of_softened_probabilities() -> None:
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    tau = 4.0
    expected = tau * ((student / tau).softmax(1) - (teacher / tau).softmax(1)) / 6
    gradient = gradient_of(lambda x: losses.kl_divergence(x, teacher, tau), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_kl_takes_a_half_precision_teacher_beside_a_float32_student() -> None:
    student, teacher = logits(6, 4), logits(6, 4, seed=1).half()
    value = losses.kl_divergence(student, teacher, 4.0)
    torch.testing.assert_close(value, losses.kl_divergence(student, teacher.float(), 4.0))


# soft_cross_entropy


@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0, 20.0])
def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy(tau: float) -> None:
    student, teacher = logits(6, 10, dtype=torch.float64), logits(6, 10, seed=1, dtype=torch.float64)
    p = (teacher / tau).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    expected = losses.kl_divergence(student, teacher, tau) + tau**2 * entropy
    torch.testing.assert_close(losses.soft_cross_entropy(student, teacher, tau), expected)
    torch.testing.assert_close(
        gradient_of(lambda x: losses.soft_cross_entropy(x, teacher, tau), student),
        gradient_of(lambda x: losses.kl_divergence(x, teacher, tau), student),
    )


def test_soft_cross_entropy_with_a_certain_teacher_is_cross_entropy() -> None:
    student, labels = logits(4, 4), torch.arange(4)
    teacher = 200.0 * torch.eye(4)
    torch.testing.assert_close(losses.soft_cross_entropy(student, teacher, 1.0), losses.cross_entropy(student, labels))


# logit_mse


def test_logit_mse_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [3.0, 0.0]])
    assert losses.logit_mse(student, teacher) == (1 + 4 + 9) / 2
    assert losses.logit_mse(student, teacher, "mean") == (1 + 4 + 9) / 4


def test_logit_mse_of_half_precision_does_not_overflow() -> None:
    student, teacher = torch.full((2, 4), 200.0).half(), torch.full((2, 4), -200.0).half()
    assert losses.logit_mse(student, teacher) == 4 * 400**2


# subclass_auxiliary


@pytest.mark.parametrize("form", ["unitnorm", "literal"])
@pytest.mark.parametrize("tau", [0.1, 1.0, 2.0])
def test_auxiliary_by_its_definition(form: str, tau: float) -> None:
    z = logits(8, 10, dtype=torch.float64)
    v = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
    width = 1 if form == "literal" else 10
    self_similarity = 10 / width
    sums = [sum(math.exp((v[i] @ v[j] / width / tau).item()) for j in range(8)) / 8 for i in range(8)]
    expected = sum(map(math.log, sums)) / 8 - self_similarity / tau
    assert losses.subclass_auxiliary(z, tau, form).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["unitnorm", "literal"])
@pytest.mark.parametrize("rows", [1, 5])
def test_auxiliary_of_identical_rows_is_zero(form: str, rows: int) -> None:
    # All rows alike is the collapse that the loss is there to prevent: its maximum.
    z = logits(1, 10).expand(rows, 10)
    assert losses.subclass_auxiliary(z, 1.0, form).item() == pytest.approx(0.0, abs=1e-5)
    assert losses.subclass_auxiliary(logits(5, 10), 1.0, form) < -0.1


def test_auxiliary_of_zero_rows_has_no_similarity() -> None:
    # Variance 0 normalises to 0 and not to NaN, so every similarity is 0: log(1) - 1/tau.
    assert losses.subclass_auxiliary(torch.zeros(4, 10), 2.0).item() == pytest.approx(-0.5)
    assert gradient_of(lambda z: losses.subclass_auxiliary(z, 2.0), torch.zeros(4, 10)).abs().max() == 0


def test_auxiliary_with_one_zero_row_has_a_finite_gradient() -> None:
    z = logits(4, 10)
    z[2] = 0
    gradient = gradient_of(lambda x: losses.subclass_auxiliary(x, 1.0), z)
    assert torch.isfinite(gradient).all()
    assert gradient[0].abs().max() > 0


def test_auxiliary_does_not_see_the_scale_of_a_row() -> None:
    z = logits(8, 10, dtype=torch.float64)
    scaled = z * torch.linspace(0.5, 40, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        losses.subclass_auxiliary(scaled, 1.0), losses.subclass_auxiliary(z, 1.0), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("form", ["unitnorm", "literal"])
def test_auxiliary_in_float32_agrees_with_float64(form: str) -> None:
    z = logits(64, 40)
    value = losses.subclass_auxiliary(z, 0.1, form)
    assert value.item() == pytest.approx(losses.subclass_auxiliary(z.double(), 0.1, form).item(), rel=1e-4)


# intra_subclass


@pytest.mark.parametrize(("rescale", "factor"), [("none", 1.0), ("tau2", 16.0)])
def test_intra_subclass_sums_cross_entropies_of_the_groups(rescale: str, factor: float) -> None:
    student, teacher = logits(6, 6), logits(6, 6, seed=1)
    groups = [losses.soft_cross_entropy(student[:, c : c + 3], teacher[:, c : c + 3], 4.0, "none") for c in (0, 3)]
    value = losses.intra_subclass(student, teacher, 3, 4.0, rescale)
    torch.testing.assert_close(value, factor * (groups[0] + groups[1]))


def test_intra_subclass_does_not_see_class_logits() -> None:
    student, teacher = logits(6, 6, dtype=torch.float64), logits(6, 6, seed=1, dtype=torch.float64)
    shifted = student + torch.tensor([5.0] * 3 + [-7.0] * 3, dtype=torch.float64)
    torch.testing.assert_close(
        losses.intra_subclass(shifted, teacher, 3, 1.0), losses.intra_subclass(student, teacher, 3, 1.0)
    )


def test_intra_subclass_with_one_subclass_is_zero() -> None:
    assert losses.intra_subclass(logits(6, 4), logits(6, 4, seed=1), 1, 4.0) == 0


def test_intra_subclass_refuses_a_width_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="7 subclass logits"):
        losses.intra_subclass(logits(2, 7), logits(2, 7), 3, 1.0)


@pytest.mark.parametrize("loss", [losses.soft_cross_entropy, losses.kl_divergence])
def test_unscaled_loss_takes_any_temperature(loss: Callable[..., Tensor]) -> None:
    assert torch.isfinite(loss(logits(2, 4), logits(2, 4, seed=1), 1e200, "none"))
