"""Contrastive representation distillation: values by hand, the draw of negatives, and what the memories keep."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.models import Output, Shapes
from compress.objectives import Heads, Preparation, functional
from compress.objectives.crd import CRD, CRDSpec
from runtime.errors import TrainingError


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([2, 0, 0, 1, 2, 0, 1, 2, 2, 0])  # of ten training rows


# Functions


def test_unit_rows_have_length_one_and_a_row_of_zeros_stays() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]], requires_grad=True)
    unit = functional.unit_rows(x)
    assert unit.tolist() == [[0.6000000238418579, 0.800000011920929], [0.0, 0.0], [1.0, 0.0]]
    (gradient,) = torch.autograd.grad(unit.sum(), x)
    assert gradient.isfinite().all()


def test_noise_contrast_by_hand() -> None:
    # n = 4 rows, K = 2 negatives, so K/n = 1/2; p = 1, 1/4 and 3/2 at Z = 2.
    scores = torch.tensor([[2.0, 0.5, 3.0]]).log()
    expected = -math.log(1 / 1.5) - math.log(0.5 / 0.75) - math.log(0.5 / 2)
    assert functional.noise_contrast(scores, torch.tensor(2.0).log(), 4).item() == pytest.approx(expected, rel=1e-5)


def test_log_partition_is_the_mean_score_times_the_rows() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).log()
    assert functional.log_partition(scores, 10).exp().item() == pytest.approx(30, rel=1e-5)


@pytest.mark.parametrize("tau", [1e-3, 0.01, 0.07, 1.0])
@pytest.mark.parametrize("z", [-200.0, 0.0, 200.0])
def test_scores_that_overflow_as_probabilities_are_finite(tau: float, z: float) -> None:
    scores = (torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0]]) / tau).requires_grad_()
    loss = functional.noise_contrast(scores, torch.tensor(z), 10)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_memory_scores_are_products_with_the_named_rows() -> None:
    anchors, memory, index = numbers(2, 3), numbers(5, 3, seed=1), torch.tensor([[4, 0], [1, 1]])
    expected = torch.stack([memory[rows] @ anchor for rows, anchor in zip(index, anchors, strict=True)]) / 0.5
    torch.testing.assert_close(functional.memory_scores(anchors, memory, index, 0.5), expected)


def test_a_moved_memory_is_a_new_one_with_rows_of_length_one() -> None:
    memory, anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    moved = functional.moved_memory(memory, torch.tensor([2]), anchors, 0.5)
    torch.testing.assert_close(moved, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]]))
    assert memory[2].tolist() == [1.0, 0.0]


def by_class(labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    count = labels.bincount(minlength=classes)
    return labels.argsort(stable=True), count.cumsum(0) - count, count


@pytest.mark.parametrize("classes", [3, 5])
def test_negatives_are_all_rows_of_other_classes_alike(classes: int) -> None:
    anchors = torch.tensor([0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    drawn = functional.other_class_rows(anchors, *by_class(LABELS, classes), 6000, generator)
    for label, rows in zip(anchors.tolist(), drawn, strict=True):
        others = (label != LABELS).nonzero().flatten().tolist()
        assert sorted(set(rows.tolist())) == others
        share = rows.bincount(minlength=10)[others] / 6000
        torch.testing.assert_close(share, torch.full_like(share, 1 / len(others)), rtol=0.15, atol=0)


# The term


def term(spec: CRDSpec, *, seed: int = 3, prepared: bool = True) -> CRD:
    torch.manual_seed(0)
    built = spec.build(Heads(3, 1, 1, Shapes(4, (), ()), Shapes(6, (), ())))
    assert isinstance(built, CRD)
    if prepared:
        teacher: Any = None
        built.prepare(Preparation(teacher, lambda rows: rows, LABELS, seed))
    return built


SPEC = CRDSpec(negatives=5, width=8)
ROWS = torch.tensor([7, 1, 3, 0])


def outputs(rows: Tensor, scale: float = 1.0) -> tuple[Output, Output]:
    """Embeddings of ten rows; the teacher's tell something of the student's."""
    student, noise = numbers(10, 4, scale=scale), numbers(10, 2, seed=1, scale=scale)
    teacher = torch.cat([student, noise], dim=1)
    return Output(student[rows, :3], student[rows], ()), Output(student[rows, :3], teacher[rows], ())


def step(built: CRD, rows: Tensor = ROWS, scale: float = 1.0) -> Tensor:
    built.observe(rows)
    loss: Tensor = built(*outputs(rows, scale), LABELS[rows])
    return loss


def test_the_spec_reads_embeddings_of_any_heads() -> None:
    assert CRDSpec.needs == {"embedding"}
    assert SPEC.problem(Heads(3, 2, 4)) is None
    assert "one class" in (SPEC.problem(Heads(1, 1, 1)) or "")
    with pytest.raises(ValueError, match="shapes of the student's outputs are not known"):
        SPEC.build(Heads(3, 1, 1))


@pytest.mark.parametrize("options", [{"negatives": 0}, {"tau": 0.0}, {"momentum": 1.0}, {"width": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CRDSpec(**options)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["batch", "one_row"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("tau", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradient_are_finite(rows: Tensor, scale: float, tau: float, bias: bool) -> None:
    built = term(CRDSpec(negatives=5, width=8, tau=tau))
    if not bias:  # A row of zeros then has no direction.
        for layer in (built.embed_student, built.embed_teacher):
            torch.nn.init.zeros_(layer.bias)
    for _ in range(2):
        loss = step(built, rows, scale)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())
    assert built.memory_student.isfinite().all()


def test_the_first_batch_fixes_z_and_each_batch_moves_its_rows() -> None:
    built = term(SPEC)
    assert built.log_z.isnan().all()
    before = built.memory_student.clone(), built.memory_teacher.clone()
    step(built)
    first = built.log_z.clone()
    assert first.isfinite().all()
    for old, new in zip(before, (built.memory_student, built.memory_teacher), strict=True):
        changed = (old != new).any(1)
        assert changed.nonzero().flatten().tolist() == sorted(ROWS.tolist())
        torch.testing.assert_close(new[ROWS].norm(dim=1), torch.ones(4))
        assert not new.requires_grad
    step(built, torch.tensor([2, 4]))
    assert torch.equal(built.log_z, first)


def test_looking_without_training_changes_nothing() -> None:
    built = term(SPEC)
    step(built)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    values = [step(built.eval()), step(built.eval())]
    assert values[0] == values[1]
    assert all(torch.equal(before[name], value) for name, value in built.state_dict().items())


def test_negatives_differ_from_batch_to_batch_and_from_seed_to_seed() -> None:
    built, other = term(SPEC), term(SPEC, seed=4)
    draws = [built._negatives(LABELS[ROWS]), built._negatives(LABELS[ROWS]), other._negatives(LABELS[ROWS])]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert all((LABELS[draw] != LABELS[ROWS][:, None]).all() for draw in draws)


def test_drawing_leaves_the_global_random_state_alone() -> None:
    built = term(SPEC)
    before = torch.get_rng_state()
    step(built)
    built.prepare(Preparation(None, lambda rows: rows, LABELS, 0))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_state_goes_on_with_the_same_bits() -> None:
    whole = term(SPEC)
    step(whole)
    resumed = term(SPEC)
    resumed.load_state_dict(whole.state_dict())
    assert step(whole) == step(resumed)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_training_brings_the_two_embeddings_of_a_row_together() -> None:
    built, everything = term(CRDSpec(negatives=5, width=8, tau=0.5)), torch.arange(10)
    optimizer = torch.optim.Adam(built.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = step(built, everything)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_term_that_is_not_ready_says_what_is_missing() -> None:
    built = term(SPEC, prepared=False)
    with pytest.raises(RuntimeError, match="no memories yet"):
        step(built)
    built = term(SPEC)
    with pytest.raises(RuntimeError, match="does not know the rows of this batch of 4"):
        built(*outputs(ROWS), LABELS[ROWS])


def test_rows_of_one_class_cannot_be_contrasted() -> None:
    built = term(SPEC, prepared=False)
    with pytest.raises(TrainingError, match="all training rows are of one class"):
        built.prepare(Preparation(None, lambda rows: rows, torch.ones(5, dtype=torch.long), 0))  # type: ignore[arg-type]


def test_classes_that_are_not_known_yet_are_no_problem() -> None:
    assert SPEC.problem(Heads(0, 1, 1)) is None
