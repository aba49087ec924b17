"""FitNet hints, embeddings and SRRL: values by hand, batches where other code fails, and a training run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from compress.datasets import Dataset, Split
from compress.models import Output, Shapes, shapes_of
from compress.objectives import OBJECTIVES, Heads, Objective, Preparation, Term, TermSpec, functional
from compress.objectives.embedding import EmbeddingSpec
from compress.objectives.fitnet import FitNet, FitNetSpec
from compress.objectives.srrl import SRRL, SRRLSpec
from compress.plan import StagePlan
from compress.recipe import StageSpec, TrainSpec
from compress.teacher import Teacher, frozen
from compress.train import Trained, Trainer
from export.fold import fold_logits
from export.graph import InputSignature, Normalization

FORMS: tuple[functional.SoftmaxRegression, ...] = ("l2", "ce", "kl", "label")


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Functions


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [((2, 3, 4, 4), (2, 5, 2, 2), 2), ((2, 3, 2, 3), (2, 5, 6, 3), 3), ((2, 3, 4, 2), (2, 5, 2, 4), 2)],
)
def test_same_size_takes_the_smaller_of_each_side(student: Any, teacher: Any, expected: int) -> None:
    small, large = functional.same_size(numbers(*student), numbers(*teacher))
    assert small.shape == (2, 3, 2, expected)
    assert large.shape == (2, 5, 2, expected)


def test_same_size_leaves_what_fits_and_averages_what_does_not() -> None:
    a, b = numbers(2, 3, 2, 2), torch.arange(16.0).reshape(1, 1, 4, 4)
    assert functional.same_size(a, a)[0] is a
    assert functional.same_size(a, b)[1].flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert functional.same_size(torch.zeros(1, 7), b)[1].tolist() == [[7.5]]


def test_fitnet_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert functional.fitnet(student, teacher).item() == (4 / 2 + 16 / 2) / 2
    assert functional.fitnet(student, teacher, "repdistiller").item() == 20 / 4


def test_embedding_distance_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert functional.embedding_distance(student, teacher).item() == (25 + 1) / 2
    assert functional.embedding_distance(student, teacher, "norm").item() == (5 + 1) / 2


def test_srrl_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0.0])
    regression = lambda form, **options: functional.srrl_softmax_regression(  # noqa: E731
        student, teacher, weight, bias, form, **options
    ).item()
    assert functional.srrl_feature_matching(student, teacher).item() == 5
    assert functional.srrl_feature_matching(student, teacher, "code").item() == 2.5
    assert regression("l2") == 5
    assert regression("l2", reduction="code") == 2.5
    p = 1 / (1 + math.exp(2 - 0.5))  # the teacher's probability of the first class, of logits (0.5, 2)
    q = 1 / (1 + math.exp(-1.5))  # the student's, of logits (1.5, 0)
    assert regression("ce") == pytest.approx(-p * math.log(q) - (1 - p) * math.log(1 - q), rel=1e-5)
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert regression("kl") == pytest.approx(divergence, rel=1e-5)
    assert regression("label", labels=torch.tensor([1])) == pytest.approx(-math.log(1 - q), rel=1e-5)


def test_srrl_labels_are_of_folded_logits() -> None:
    h, weight, bias = numbers(4, 3), numbers(6, 3, seed=1), numbers(6, seed=2)
    labels = torch.tensor([0, 1, 1, 0])
    loss = functional.srrl_softmax_regression(h, h, weight, bias, "label", labels=labels, subclasses=3)
    torch.testing.assert_close(loss, F.cross_entropy(fold_logits(F.linear(h, weight, bias), 3), labels))


def test_srrl_label_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="reads labels"):
        functional.srrl_softmax_regression(numbers(1, 2), numbers(1, 2), numbers(2, 2), numbers(2), "label")


@pytest.mark.parametrize("tau", [0.1, 4.0, math.inf])
def test_srrl_ce_and_kl_differ_by_the_teachers_entropy_only(tau: float) -> None:
    student, teacher = numbers(3, 4).double().requires_grad_(), numbers(3, 4, seed=1).double()
    weight, bias = numbers(5, 4, seed=2).double(), numbers(5, seed=3).double()
    gradients = [
        torch.autograd.grad(functional.srrl_softmax_regression(student, teacher, weight, bias, form, tau=tau), student)
        for form in ("ce", "kl")
    ]
    if tau < math.inf:
        torch.testing.assert_close(gradients[0][0] * tau**2, gradients[1][0])
    else:
        assert not gradients[0][0].any()
        assert gradients[1][0].any()


def losses_of(
    student: Tensor, teacher: Tensor, tau: float = 1.0, classifier: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return every loss of this file between two (N, D), for two classes of two subclasses."""
    weight, bias = classifier or (numbers(4, student.shape[1], seed=8), numbers(4, seed=9))
    labels = torch.zeros(len(student), dtype=torch.long)
    return {
        "fitnet": functional.fitnet(student, teacher),
        "fitnet_repdistiller": functional.fitnet(student, teacher, "repdistiller"),
        "squared": functional.embedding_distance(student, teacher),
        "norm": functional.embedding_distance(student, teacher, "norm"),
        "fm": functional.srrl_feature_matching(student, teacher),
        **{
            form: functional.srrl_softmax_regression(
                student, teacher, weight, bias, form, tau=tau, labels=labels, subclasses=2
            )
            for form in FORMS
        },
    }


NAMES = tuple(losses_of(torch.zeros(1, 2), torch.zeros(1, 2)))
BATCHES = {
    "one_row": (numbers(1, 2), numbers(1, 2, seed=1)),
    "zeros": (torch.zeros(3, 2), torch.zeros(3, 2)),
    "equal": (numbers(3, 2), numbers(3, 2)),
    "duplicates": (numbers(1, 2).tile(4, 1), numbers(1, 2, seed=1).tile(4, 1)),
    "large": (numbers(3, 2).sign() * 200, -numbers(3, 2).sign() * 200),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_loss_and_gradient_are_finite(name: str, batch: str, tau: float) -> None:
    student, teacher = BATCHES[batch]
    student = student.clone().requires_grad_()
    loss = losses_of(student, teacher, tau)[name]
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["fitnet", "fitnet_repdistiller", "squared", "norm", "fm", "l2", "kl"])
def test_equal_inputs_are_at_distance_zero_with_no_gradient(name: str) -> None:
    x = numbers(5, 3).requires_grad_()
    loss = losses_of(x, x.detach())[name]
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = numbers(3, 4, scale=300).to(dtype), numbers(3, 4, seed=1, scale=300).to(dtype)
    classifier = numbers(4, 4, seed=8).to(dtype), numbers(4, seed=9).to(dtype)
    half = losses_of(student, teacher, classifier=classifier)[name]
    full = losses_of(student.float(), teacher.float(), classifier=(classifier[0].float(), classifier[1].float()))[name]
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert torch.equal(half, full)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_means_over_the_batch(name: str) -> None:
    student, teacher = numbers(4, 3), numbers(4, 3, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    once = losses_of(student, teacher)[name]
    torch.testing.assert_close(losses_of(student.tile(3, 1), teacher.tile(3, 1))[name], once)
    torch.testing.assert_close(losses_of(student[order], teacher[order])[name], once)


# Terms

CNN = Shapes(8, ((4, 8, 8), (8, 4, 4)), ("stage1", "stage2"))
LARGE_CNN = Shapes(16, ((6, 8, 8), (12, 8, 8), (16, 2, 2)), ("stage1", "stage2", "stage3"))
MLP = Shapes(5, ((7,), (5,)), ("hidden1", "hidden2"))
NO_MAPS = Shapes(64, (), ())
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def outputs(shapes: Shapes, logits: int = 3, rows: int = 6, seed: int = 0) -> Output:
    features = tuple(numbers(rows, *shape, seed=seed + i) for i, shape in enumerate(shapes.features))
    embedding = numbers(rows, shapes.embedding, seed=seed + 20)
    return Output(numbers(rows, logits, seed=seed + 21), embedding, features)


def heads(student: Shapes = CNN, teacher: Shapes = LARGE_CNN, subclasses: int = 1) -> Heads:
    return Heads(3, 1, subclasses, student, teacher)


def prepared(term: Term, shapes: Shapes, logits: int = 3, *, bias: bool = True) -> torch.nn.Linear:
    """Show the term a teacher; return the teacher's classifier."""
    teacher: Any = torch.nn.Module()
    teacher.classifier = torch.nn.Linear(shapes.embedding, logits, bias=bias)
    term.prepare(Preparation(teacher, lambda rows: rows, LABELS, 0))
    return teacher.classifier


ALL = (
    EmbeddingSpec(),
    EmbeddingSpec(variant="norm"),
    FitNetSpec(),
    FitNetSpec(variant="repdistiller", layers="all"),
    *(SRRLSpec(sr=form) for form in FORMS),
    SRRLSpec(reduction="code"),
)


@pytest.mark.parametrize("spec", ALL, ids=str)
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("student", [CNN, MLP, LARGE_CNN])
@pytest.mark.parametrize("teacher", [CNN, MLP])
def test_a_term_works_between_any_two_models(spec: TermSpec, rows: int, student: Shapes, teacher: Shapes) -> None:
    between = heads(student, teacher, subclasses=2)
    assert spec.problem(between) is None
    term = spec.build(between)
    prepared(term, teacher, 6)
    ours = outputs(student, rows=rows)
    ours.embedding.requires_grad_()  # what is left to train where no connector is
    loss = term(ours, outputs(teacher, logits=6, rows=rows, seed=50), LABELS[:rows])
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in term.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_subclasses_of_student_and_teacher_need_not_agree(spec: TermSpec) -> None:
    assert spec.problem(Heads(3, 2, 5, CNN, LARGE_CNN)) is None
    assert spec.problem(Heads(3, 1, 1)) is None


@pytest.mark.parametrize(
    ("kind", "needs"), [("embedding", {"embedding"}), ("fitnet", {"features"}), ("srrl", {"embedding"})]
)
def test_a_term_says_what_it_reads_of_the_teacher(kind: str, needs: set[str]) -> None:
    assert OBJECTIVES[kind].needs == needs


@pytest.mark.parametrize("kind", ["embedding", "fitnet", "srrl"])
def test_building_without_shapes_says_so(kind: str) -> None:
    with pytest.raises(ValueError, match="shapes of the student's outputs are not known"):
        OBJECTIVES[kind]().build(Heads(3, 1, 1))


def test_the_embedding_has_a_connector_only_where_widths_differ() -> None:
    same = EmbeddingSpec().build(heads(CNN, CNN))
    other = EmbeddingSpec().build(heads())
    assert [tuple(parameter.shape) for parameter in same.parameters()] == []
    assert [tuple(parameter.shape) for parameter in other.parameters()] == [(16, 8)]
    student = outputs(CNN)
    assert same(student, student, LABELS).item() == 0


def test_fitnet_takes_the_middle_unless_layers_say_otherwise() -> None:
    def pairs(**options: Any) -> list[tuple[int, int]]:
        term = FitNetSpec(**options).build(heads())
        assert isinstance(term, FitNet)
        return term.pairs

    assert pairs() == [(0, 1)]
    assert pairs(layers="last") == [(1, 2)]
    assert pairs(layers="all") == [(0, 1), (1, 2)]
    assert pairs(layers=(("stage2", "stage1"),)) == [(1, 0)]


def test_fitnet_sums_over_its_pairs() -> None:
    torch.manual_seed(0)
    both = FitNetSpec(layers="all").build(heads())
    student, teacher = outputs(CNN), outputs(LARGE_CNN, seed=50)
    single = []
    for layers, connector in zip(((("stage1", "stage2"),), "last"), both.connectors, strict=True):
        term = FitNetSpec(layers=layers).build(heads())
        term.connectors[0].load_state_dict(connector.state_dict())
        single.append(term(student, teacher, LABELS))
    torch.testing.assert_close(both(student, teacher, LABELS), single[0] + single[1])


def test_the_papers_regressor_has_no_batch_norm() -> None:
    names = {variant: dict(FitNetSpec(variant=variant).build(heads()).named_parameters()) for variant in VARIANTS}
    assert set(names["paper"]) == {"connectors.0.conv.weight", "connectors.0.conv.bias"}
    assert set(names["repdistiller"]) - set(names["paper"]) == {
        "connectors.0.norm.weight",
        "connectors.0.norm.bias",
    }


VARIANTS: tuple[functional.FitNetVariant, ...] = ("paper", "repdistiller")


@pytest.mark.parametrize(
    ("layers", "student", "message"),
    [
        ((("stage3", "stage1"),), CNN, "the student has no feature map 'stage3'; it has stage1, stage2."),
        ((("stage1", "stem"),), CNN, "the teacher has no feature map 'stem'; it has stage1, stage2, stage3."),
        ("last", NO_MAPS, "the student gives no feature maps"),
        ((), CNN, "no pair is named"),
    ],
)
def test_fitnet_names_the_map_that_is_missing(layers: Any, student: Shapes, message: str) -> None:
    assert message in (FitNetSpec(layers=layers).problem(heads(student)) or "")


def srrl(spec: SRRLSpec, between: Heads) -> SRRL:
    term = spec.build(between)
    assert isinstance(term, SRRL)
    return term


@pytest.mark.parametrize(("student", "reads_map"), [(CNN, True), (MLP, False), (NO_MAPS, False)])
def test_srrl_connects_the_last_map_where_the_embedding_is_its_average(student: Shapes, reads_map: bool) -> None:
    term = srrl(SRRLSpec(), heads(student))
    assert term.reads_map == reads_map
    assert term.connector.conv.bias is None
    prepared(term, LARGE_CNN)
    assert term(outputs(student), outputs(LARGE_CNN, seed=50), LABELS).isfinite()


@pytest.mark.parametrize("reduction", ["paper", "code"])
def test_srrl_is_the_weighted_sum_of_its_functions(reduction: functional.SRRLReduction) -> None:
    term = srrl(SRRLSpec(feature_matching=0.5, softmax_regression=3.0, reduction=reduction), heads())
    classifier = prepared(term, LARGE_CNN)
    student, teacher = outputs(CNN), outputs(LARGE_CNN, seed=50)
    h = term.connector(student.features[-1]).mean((2, 3))
    difference = h - teacher.embedding
    shares = [difference.square(), F.linear(difference, classifier.weight).square()]
    fm, sr = (x.mean() if reduction == "code" else x.sum(1).mean() for x in shares)
    torch.testing.assert_close(term(student, teacher, LABELS), 0.5 * fm + 3.0 * sr)


def test_srrl_keeps_the_teachers_classifier_frozen_and_in_the_checkpoint() -> None:
    term = srrl(SRRLSpec(), heads(subclasses=2))
    classifier = prepared(term, LARGE_CNN, 6)
    assert torch.equal(term.state_dict()["weight"], classifier.weight)
    assert torch.equal(term.state_dict()["bias"], classifier.bias)
    assert {"weight", "bias"}.isdisjoint(dict(term.named_parameters()))
    with torch.no_grad():
        classifier.weight.zero_()
    assert term.weight.any()


def test_srrl_takes_a_classifier_without_bias() -> None:
    term = srrl(SRRLSpec(), heads())
    prepared(term, LARGE_CNN, bias=False)
    assert not term.bias.any()


def test_srrl_that_was_not_prepared_cannot_pass_for_good() -> None:
    assert srrl(SRRLSpec(), heads())(outputs(CNN), outputs(LARGE_CNN), LABELS).isnan()


def test_srrl_through_the_teachers_eyes_ignores_what_its_classifier_cannot_see() -> None:
    weight, bias = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.zeros(2)
    teacher = numbers(4, 3)
    student = teacher + torch.tensor([0.0, 0.0, 5.0])
    for form in ("l2", "kl"):
        assert functional.srrl_softmax_regression(student, teacher, weight, bias, form).item() == 0
    assert functional.srrl_feature_matching(student, teacher).item() == pytest.approx(25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_matching": 0.0, "softmax_regression": 0.0}, "are both 0"),
        ({"sr": "ce", "tau": "inf"}, "no gradient at an infinite tau"),
    ],
)
def test_srrl_options_that_train_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    assert message in (SRRLSpec(**options).problem(heads()) or "")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("srrl", {"sr": "mse"}),
        ("srrl", {"softmax_regression": -1.0}),
        ("srrl", {"reduction": "mean"}),
        ("fitnet", {"layers": "first"}),
        ("fitnet", {"layers": (("a", "b", "c"),)}),
        ("embedding", {"variant": "l1"}),
    ],
)
def test_unknown_options_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OBJECTIVES[kind](**options)


# Training


def dataset() -> Dataset:
    rng = np.random.default_rng(0)

    def split(rows: int, first_id: int) -> Split:
        labels = rng.integers(0, 3, rows)
        images = rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8)
        return Split(images, labels, None, np.arange(first_id, first_id + rows))

    splits = split(17, 0), split(8, 100), split(8, 200)
    return Dataset(
        "random", ("a", "b", "c"), None, InputSignature((8, 8, 1)), Normalization(1 / 255, (0.4,), (0.3,)), "0", *splits
    )


def plan(objective: tuple[Any, ...]) -> StagePlan:
    spec = StageSpec.model_validate({"model": {"small_cnn": {"widths": (4, 8)}}, "objective": objective})
    shapes = [shapes_of(model, signature=InputSignature((8, 8, 1)), outputs=6) for model in (spec.model, TEACHER_MODEL)]
    settings = {"epochs": 2, "batch_size": 8, "optimizer": {"adam": {"lr": 0.01}}}
    return StagePlan(
        name="student", key="key", seed=0, spec=spec, train=TrainSpec.model_validate(settings),
        heads=Heads(3, 1, 2, *shapes), signature=InputSignature((8, 8, 1)), augment=(), teacher="teacher",
        init_from=None, parameters=0, expect=None, resolved={},
    )  # fmt: skip


TEACHER_MODEL = StageSpec.model_validate({"model": {"small_cnn": {"widths": (4, 6, 12)}}, "objective": ("ce",)}).model


def a_teacher() -> Teacher:
    torch.manual_seed(1)
    return frozen(TEACHER_MODEL.build(signature=InputSignature((8, 8, 1)), outputs=6), 2)


def trainer(objective: tuple[Any, ...], folder: Path, checkpoint_every_s: float = 1e9) -> Trainer:
    return Trainer(
        plan(objective), dataset(), a_teacher(), initial=None, device=torch.device("cpu"), folder=folder,
        notify=lambda event: None, checkpoint_every_s=checkpoint_every_s,
    )  # fmt: skip


def state(run: Trainer, trained: Trained) -> dict[str, Tensor]:
    return {**trained.model.state_dict(), **{f"term.{k}": v for k, v in run.objective.state_dict().items()}}


@pytest.mark.parametrize(
    "term",
    [
        {"embedding": {"weight": 0.1}},
        {"fitnet": {"weight": 0.01}},
        {"fitnet": {"variant": "repdistiller", "layers": "all"}},
        {"srrl": {"reduction": "code"}},
        {"srrl": {"sr": "kl", "tau": 4.0}},
    ],
    ids=str,
)
def test_a_run_learns_and_an_interrupted_one_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: dict[str, Any]
) -> None:
    whole = trainer(("ce", term), tmp_path / "whole")
    initial = {name: value.clone() for name, value in whole.objective.named_parameters()}
    trained = whole.run()
    (name,) = term
    assert initial
    assert all(not torch.equal(initial[key], value) for key, value in whole.objective.named_parameters())
    assert trained.records[1]["losses"][name] < trained.records[0]["losses"][name]

    cut = trainer(("ce", term), tmp_path / "cut", 0.0)
    original = cut._step
    taken: list[int] = []

    def failing(index: Tensor, epoch: float) -> tuple[Tensor, ...]:
        if len(taken) == 4:  # of three steps an epoch, the last of which has one row
            raise KeyboardInterrupt
        taken.append(len(index))
        return original(index, epoch)

    monkeypatch.setattr(cut, "_step", failing)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = trainer(("ce", term), tmp_path / "cut")
    resumed = again.run()
    assert resumed.resumed_at_step == 4
    assert 1 in taken
    expected, got = state(whole, trained), state(again, resumed)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_connectors_are_not_in_the_trained_model(tmp_path: Path) -> None:
    run = trainer(("ce", "srrl", {"fitnet": {"weight": 0.01}}), tmp_path)
    assert run.objective.needs == {"embedding", "features"}
    plain = plan(("ce",)).build_model().state_dict()
    assert run.run().model.state_dict().keys() == plain.keys()


def test_several_terms_train_side_by_side() -> None:
    specs = (SRRLSpec(), FitNetSpec(weight=0.1), EmbeddingSpec())
    objective = Objective(specs, heads())
    for term in objective.in_order:
        prepared(term, LARGE_CNN)
    losses = objective(outputs(CNN), outputs(LARGE_CNN, seed=50), LABELS)
    expected = losses.terms[0] + 0.1 * losses.terms[1] + losses.terms[2]
    torch.testing.assert_close(losses.total, expected)
