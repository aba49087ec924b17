from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.models import Output
from compress.objectives import OBJECTIVES, Heads, Objective, TermSpec, term_names
from compress.objectives.ce import CrossEntropySpec
from compress.objectives.intra_subclass import IntraSubclassSpec
from compress.objectives.kl import KLSpec
from compress.objectives.mse import MSESpec
from compress.objectives.soft_ce import SoftCrossEntropySpec
from compress.objectives.subclass_auxiliary import SubclassAuxiliarySpec

LABELS = torch.tensor([0, 1])


def output(logits: Tensor | list[list[float]]) -> Output:
    logits = torch.as_tensor(logits)
    return Output(logits, torch.zeros(len(logits), 1), ())


def value(spec: TermSpec, heads: Heads, student: Any, teacher: Any = None) -> float:
    teacher = None if teacher is None else output(teacher)
    return spec.build(heads)(output(student), teacher, LABELS[: len(student)]).item()


def as_logits(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities).log()


# Two classes of two subclasses; the class probabilities are (0.6, 0.4) and (0.3, 0.7).
SUBCLASSES = as_logits([[0.5, 0.1, 0.3, 0.1], [0.1, 0.2, 0.2, 0.5]])
CLASSES = as_logits([[0.6, 0.4], [0.3, 0.7]])
TEACHER_SUBCLASSES = as_logits([[0.25, 0.25, 0.4, 0.1], [0.3, 0.1, 0.2, 0.4]])
TEACHER_CLASSES = as_logits([[0.5, 0.5], [0.4, 0.6]])


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


CLASS_KL = (kl([0.5, 0.5], [0.6, 0.4]) + kl([0.4, 0.6], [0.3, 0.7])) / 2
SUBCLASS_KL = (kl([0.25, 0.25, 0.4, 0.1], [0.5, 0.1, 0.3, 0.1]) + kl([0.3, 0.1, 0.2, 0.4], [0.1, 0.2, 0.2, 0.5])) / 2


def test_every_kind_in_the_table_has_its_own_name() -> None:
    assert {name: spec.kind for name, spec in OBJECTIVES.items()} == {name: name for name in OBJECTIVES}


def test_a_term_weighs_one_unless_it_says_otherwise() -> None:
    assert all(spec().weight == 1.0 for spec in OBJECTIVES.values())


# Objective


def test_total_is_the_weighted_sum_of_the_terms() -> None:
    specs = (KLSpec(tau=1.0, weight=0.25), CrossEntropySpec(weight=3.0), MSESpec(weight=0.5))
    student, teacher = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    losses = Objective(specs, Heads(2, 1, 1))(output(student), output(teacher), LABELS)
    at_1, at_2 = (
        1 / (1 + math.exp(2)),
        math.exp(2) / (1 + math.exp(2)),
    )  # softmax of (1, 3); of (2, 0) reversed
    expected_kl = (kl([0.5, 0.5], [at_1, at_2]) + kl([at_2, at_1], [0.5, 0.5])) / 2
    expected_ce = -(math.log(at_1) + math.log(0.5)) / 2
    expected_mse = (4 + 4) / 2
    terms = [term.item() for term in losses.terms]
    assert terms == pytest.approx([expected_kl, expected_ce, expected_mse], rel=1e-5)
    assert losses.total.item() == pytest.approx(0.25 * expected_kl + 3 * expected_ce + 0.5 * expected_mse, rel=1e-5)


def test_total_sends_the_weighted_gradient_back() -> None:
    student = torch.tensor([[1.0, 3.0]], requires_grad=True)
    objective = Objective((MSESpec(weight=0.5),), Heads(2, 1, 1))
    objective(output(student), output([[0.0, 0.0]]), LABELS[:1]).total.backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[1.0, 3.0]]


def test_a_weight_of_zero_leaves_the_value_but_not_the_gradient() -> None:
    student = SUBCLASSES.clone().requires_grad_()
    objective = Objective((CrossEntropySpec(), MSESpec(weight=0.0)), Heads(2, 2, 2))
    losses = objective(output(student), output(TEACHER_SUBCLASSES), LABELS)
    assert losses.terms[1] > 0
    assert losses.total == losses.terms[0]


def test_an_objective_of_one_term_is_that_term() -> None:
    losses = Objective((CrossEntropySpec(),), Heads(2, 1))(output(CLASSES), None, LABELS)
    assert losses.total == losses.terms[0]
    assert losses.total.item() == pytest.approx(-(math.log(0.6) + math.log(0.7)) / 2)


def test_a_mean_over_the_batch_does_not_depend_on_the_batch_size() -> None:
    specs = (CrossEntropySpec(), KLSpec(), MSESpec(), IntraSubclassSpec())
    objective = Objective(specs, Heads(2, 2, 2))
    once = objective(output(SUBCLASSES), output(TEACHER_SUBCLASSES), LABELS)
    twice = objective(output(SUBCLASSES.tile(2, 1)), output(TEACHER_SUBCLASSES.tile(2, 1)), LABELS.tile(2))
    torch.testing.assert_close(twice.total, once.total)


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        ((CrossEntropySpec(), KLSpec()), ("ce", "kl")),
        ((KLSpec(), KLSpec(tau=1.0)), ("kl_1", "kl_2")),
        ((KLSpec(), CrossEntropySpec(), KLSpec(), KLSpec()), ("kl_1", "ce", "kl_2", "kl_3")),
    ],
)
def test_names_are_numbered_where_a_kind_stands_more_than_once(specs: Any, names: tuple[str, ...]) -> None:
    assert term_names(specs) == names
    assert Objective(specs, Heads(2, 1, 1)).names == names


@pytest.mark.parametrize(
    ("specs", "needs"),
    [
        ((CrossEntropySpec(), SubclassAuxiliarySpec()), set()),
        ((CrossEntropySpec(), KLSpec()), {"logits"}),
        ((MSESpec(), SoftCrossEntropySpec()), {"logits"}),
        ((IntraSubclassSpec(),), {"logits"}),
    ],
)
def test_needs_is_what_the_terms_read_of_the_teacher(specs: Any, needs: set[str]) -> None:
    assert Objective(specs, Heads(2, 2, 2)).needs == needs


def test_the_terms_here_have_nothing_to_train() -> None:
    specs = (CrossEntropySpec(), IntraSubclassSpec(), KLSpec(), MSESpec(), SubclassAuxiliarySpec())
    objective = Objective(specs, Heads(2, 2, 2))
    assert list(objective.parameters()) == []


# Heads


def test_subclass_logits_are_compared_whole_where_both_sides_have_them() -> None:
    student, teacher = Heads(2, 2, 2).comparable(SUBCLASSES, TEACHER_SUBCLASSES)
    assert student is SUBCLASSES
    assert teacher is TEACHER_SUBCLASSES


@pytest.mark.parametrize(
    ("heads", "student", "teacher"),
    [
        (Heads(2, 1, 1), CLASSES, TEACHER_CLASSES),
        (Heads(2, 2, 1), SUBCLASSES, TEACHER_CLASSES),
        (Heads(2, 1, 2), CLASSES, TEACHER_SUBCLASSES),
        (Heads(2, 2, None), SUBCLASSES, TEACHER_CLASSES),
    ],
)
def test_class_logits_are_compared_otherwise(heads: Heads, student: Tensor, teacher: Tensor) -> None:
    assert not heads.compare_subclasses
    folded = heads.comparable(student, teacher)
    torch.testing.assert_close(folded[0].softmax(1), CLASSES.exp())
    torch.testing.assert_close(folded[1].softmax(1), TEACHER_CLASSES.exp())
    assert value(KLSpec(tau=1.0), heads, student, teacher) == pytest.approx(CLASS_KL, rel=1e-4)


def test_kl_of_subclasses() -> None:
    assert value(KLSpec(tau=1.0), Heads(2, 2, 2), SUBCLASSES, TEACHER_SUBCLASSES) == pytest.approx(
        SUBCLASS_KL, rel=1e-4
    )


@pytest.mark.parametrize("spec", [KLSpec(), SoftCrossEntropySpec(), MSESpec(), IntraSubclassSpec()])
def test_different_numbers_of_subclasses_cannot_be_compared(spec: TermSpec) -> None:
    problem = spec.problem(Heads(10, 2, 3))
    assert problem is not None
    assert "the student has 2 subclasses per class and the teacher 3" in problem
    assert "20 logits" in problem
    assert "30" in problem


@pytest.mark.parametrize("spec", [KLSpec(), MSESpec(), CrossEntropySpec()])
@pytest.mark.parametrize("heads", [Heads(10, 2, 2), Heads(10, 1, 3), Heads(10, 3, 1), Heads(10, 1, 1), Heads(10, 3)])
def test_other_heads_can_be_compared(spec: TermSpec, heads: Heads) -> None:
    assert spec.problem(heads) is None


def test_cross_entropy_does_not_mind_the_teachers_subclasses() -> None:
    assert CrossEntropySpec().problem(Heads(10, 2, 3)) is None


@pytest.mark.parametrize("heads", [Heads(10, 1, 5), Heads(10, 5, 1), Heads(10, 1, 1), Heads(10, 5)])
def test_intra_subclass_needs_subclasses_on_both_sides(heads: Heads) -> None:
    problem = IntraSubclassSpec().problem(heads)
    assert problem is not None
    assert "need `subclasses:`" in problem


def test_subclass_auxiliary_needs_subclasses() -> None:
    problem = SubclassAuxiliarySpec().problem(Heads(10, 1))
    assert problem is not None
    assert "no subclasses" in problem
    assert SubclassAuxiliarySpec().problem(Heads(10, 2)) is None


# Terms


@pytest.mark.parametrize(("subclasses", "logits"), [(1, CLASSES), (2, SUBCLASSES)])
def test_cross_entropy_reads_folded_logits(subclasses: int, logits: Tensor) -> None:
    expected = -(math.log(0.6) + math.log(0.7)) / 2
    assert value(CrossEntropySpec(), Heads(2, subclasses), logits) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_passes_its_smoothing_on() -> None:
    smooth = -(0.8 * math.log(0.6) + 0.2 * math.log(0.4) + 0.8 * math.log(0.7) + 0.2 * math.log(0.3)) / 2
    spec = CrossEntropySpec(label_smoothing=0.2)
    assert value(spec, Heads(2, 2), SUBCLASSES) == pytest.approx(smooth, rel=1e-5)


def test_mse_passes_its_reduction_on() -> None:
    student, teacher = [[1.0, 2.0, 3.0, 4.0]], [[0.0, 0.0, 0.0, 0.0]]
    assert value(MSESpec(), Heads(2, 2, 2), student, teacher) == 30.0
    assert value(MSESpec(reduction="mean"), Heads(2, 2, 2), student, teacher) == 7.5


def test_kl_passes_temperature_and_rescale_on() -> None:
    student, teacher = 2 * CLASSES, 2 * TEACHER_CLASSES
    assert value(KLSpec(tau=2.0), Heads(2, 1, 1), student, teacher) == pytest.approx(4 * CLASS_KL, rel=1e-4)
    assert value(KLSpec(tau=2.0, rescale="none"), Heads(2, 1, 1), student, teacher) == pytest.approx(CLASS_KL, rel=1e-4)


@pytest.mark.parametrize("tau", ["inf", math.inf])
def test_kl_at_infinity_is_half_the_variance_of_the_difference(tau: Any) -> None:
    spec = KLSpec(tau=tau)
    assert spec.tau == "inf"
    assert value(spec, Heads(3, 1, 1), [[3.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]) == pytest.approx(0.5 * 2.0)


@pytest.mark.parametrize("tau", [0.5, 4.0, 1e3])
@pytest.mark.parametrize("rescale", ["tau2", "max", "none"])
def test_soft_ce_is_kl_and_the_teachers_entropy(tau: float, rescale: Any) -> None:
    heads, teacher = Heads(2, 2, 2), TEACHER_SUBCLASSES.double()
    outputs = [Output(x, x, ()) for x in (SUBCLASSES.double().requires_grad_(), teacher)]
    losses = [spec(tau=tau, rescale=rescale).build(heads)(*outputs, LABELS) for spec in (SoftCrossEntropySpec, KLSpec)]
    gradients = [torch.autograd.grad(loss, outputs[0].logits)[0] for loss in losses]
    p = (teacher / tau).softmax(1)
    factor = {"tau2": tau**2, "max": max(tau, tau**2), "none": 1.0}[rescale]
    torch.testing.assert_close(losses[0] - losses[1], -factor * (p * p.log()).sum(1).mean())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_soft_ce_reads_class_logits_where_one_side_has_no_subclasses() -> None:
    log = math.log
    expected = -(0.5 * log(0.6) + 0.5 * log(0.4) + 0.4 * log(0.3) + 0.6 * log(0.7)) / 2
    assert value(SoftCrossEntropySpec(tau=1.0), Heads(2, 2, 1), SUBCLASSES, TEACHER_CLASSES) == pytest.approx(expected)


@pytest.mark.parametrize("tau", ["inf", 1e8])
def test_soft_ce_has_no_limit_and_says_what_has(tau: Any) -> None:
    problem = SoftCrossEntropySpec(tau=tau).problem(Heads(2, 1, 1)) or ""
    assert f"tau is {tau}" in problem
    assert "write kl" in problem
    assert SoftCrossEntropySpec(tau=1e7).problem(Heads(2, 1, 1)) is None


def test_intra_subclass_passes_its_options_on() -> None:
    # Shares within the classes: teacher (1/2, 1/2) and (4/5, 1/5), student (5/6, 1/6) and (3/4, 1/4).
    expected = -(0.5 * math.log(5 / 6) + 0.5 * math.log(1 / 6)) - (0.8 * math.log(3 / 4) + 0.2 * math.log(1 / 4))
    student, teacher = 2 * SUBCLASSES[:1], 2 * TEACHER_SUBCLASSES[:1]
    heads = Heads(2, 2, 2)
    assert value(IntraSubclassSpec(tau=2.0), heads, student, teacher) == pytest.approx(expected, rel=1e-5)
    scaled = value(IntraSubclassSpec(tau=2.0, rescale="tau2"), heads, student, teacher)
    assert scaled == pytest.approx(4 * expected, rel=1e-5)


def test_subclass_auxiliary_passes_its_options_on() -> None:
    # Opposite rows: similarities 1 and -1 (times C*S = 4 in the literal form), over tau = 2.
    rows = [[3.0, -3.0, 3.0, -3.0], [-1.0, 1.0, -1.0, 1.0]]
    for form, similarity in (("unitnorm", 0.5), ("literal", 2.0)):
        expected = math.log((math.exp(similarity) + math.exp(-similarity)) / 2) - similarity
        spec = SubclassAuxiliarySpec(tau=2.0, form=form)
        assert value(spec, Heads(2, 2), rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (KLSpec, {"tau": 0.0}),
        (KLSpec, {"tau": -1.0}),
        (KLSpec, {"tau": "infinite"}),
        (KLSpec, {"tau": math.nan}),
        (KLSpec, {"weight": -1.0}),
        (KLSpec, {"weight": math.inf}),
        (KLSpec, {"rescale": "tau"}),
        (SoftCrossEntropySpec, {"tau": 0.0}),
        (MSESpec, {"reduction": "batchmean"}),
        (IntraSubclassSpec, {"tau": 0.0}),
        (IntraSubclassSpec, {"tau": math.inf}),
        (SubclassAuxiliarySpec, {"tau": 0.0}),
        (CrossEntropySpec, {"label_smoothing": 1.0}),
        (CrossEntropySpec, {"label_smoothing": -0.1}),
        (CrossEntropySpec, {"alpha": 0.5}),
    ],
)
def test_options_out_of_range_are_refused(spec: type[TermSpec], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**options)
