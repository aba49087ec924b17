"""Attention transfer, NST, factor transfer and FSP: values by hand, hard batches, and training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.datasets import Dataset, Split
from compress.models import Output, Shapes, shapes_of
from compress.objectives import OBJECTIVES, Heads, Preparation, TermSpec, functional
from compress.objectives.ft import Factor, FactorSpec
from compress.plan import StagePlan
from compress.recipe import StageSpec, TrainSpec
from compress.teacher import Teacher, frozen
from compress.train import Trained, Trainer
from export.graph import InputSignature, Normalization

LABELS = torch.zeros(6, dtype=torch.long)
CNN = Shapes(8, ((4, 8, 8), (8, 4, 4)), ("stage1", "stage2"))
LARGE_CNN = Shapes(16, ((6, 8, 8), (12, 8, 8), (16, 2, 2)), ("stage1", "stage2", "stage3"))
MLP = Shapes(5, ((7,), (5,)), ("hidden1", "hidden2"))


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses_of(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Return every loss of this file between maps (N, channels, H, W) of one shape."""
    students, teachers = (student, student[:, :, ::2, ::2]), (teacher, teacher[:, :, ::2, ::2])
    return {
        "at": functional.attention_transfer(student, teacher),
        "at_code": functional.attention_transfer(student, teacher, "code"),
        "at_first_power": functional.attention_transfer(student, teacher, power=1),
        "nst": functional.neuron_selectivity(student, teacher),
        "ft": functional.factor_transfer(student, teacher),
        "ft_squared": functional.factor_transfer(student, teacher, p2=2),
        "ft_attention": functional.factor_transfer(student, teacher, "attention"),
        "fsp": functional.flow(students, teachers),
        "fsp_repdistiller": functional.flow(students, teachers, "repdistiller"),
        "fsp_torchdistill": functional.flow(students, teachers, "torchdistill"),
    }


SHAPE = (3, 4, 4)
NAMES = tuple(losses_of(numbers(2, *SHAPE), numbers(2, *SHAPE)))
DEAD_CHANNEL = numbers(4, *SHAPE).index_fill(1, torch.tensor(1), 0.0)
DEAD_ROW = numbers(4, *SHAPE).index_fill(0, torch.tensor(1), 0.0)
TEACHERS = numbers(4, *SHAPE, seed=1)
BATCHES = {
    "one_row": (numbers(1, *SHAPE), numbers(1, *SHAPE, seed=1)),
    "zeros": (torch.zeros(4, *SHAPE), TEACHERS),
    "teacher_of_zeros": (TEACHERS, torch.zeros(4, *SHAPE)),
    "dead_row": (DEAD_ROW, TEACHERS),
    "dead_channel": (DEAD_CHANNEL, TEACHERS),
    "equal": (TEACHERS, TEACHERS),
    "duplicates": (numbers(1, *SHAPE).tile(4, 1, 1, 1), TEACHERS),
    "large": (200 * numbers(4, *SHAPE).sign(), -200 * TEACHERS.sign()),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", BATCHES)
def test_loss_and_gradient_are_finite_and_moderate(name: str, batch: str) -> None:
    student, teacher = BATCHES[batch]
    student = student.clone().requires_grad_()
    loss = losses_of(student, teacher)[name]
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if batch != "large" and name != "at_first_power":
        assert gradient.abs().max() < 100


@pytest.mark.parametrize("name", NAMES)
def test_equal_inputs_are_at_distance_zero_with_no_gradient(name: str) -> None:
    x = numbers(5, *SHAPE).requires_grad_()
    loss = losses_of(x, x.detach())[name]
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (numbers(5, *SHAPE, seed=seed, scale=300).to(dtype) for seed in (0, 1))
    half, full = losses_of(student, teacher)[name], losses_of(student.float(), teacher.float())[name]
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert torch.equal(half, full)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_means_over_the_batch(name: str) -> None:
    student, teacher, order = numbers(4, *SHAPE), TEACHERS, torch.tensor([2, 0, 3, 1])
    once = losses_of(student, teacher)[name]
    torch.testing.assert_close(losses_of(student.tile(3, 1, 1, 1), teacher.tile(3, 1, 1, 1))[name], once)
    torch.testing.assert_close(losses_of(student[order], teacher[order])[name], once)


@pytest.mark.parametrize("name", ["at", "at_code", "ft", "ft_attention", "nst"])
def test_a_scale_does_not_matter(name: str) -> None:
    student = numbers(4, *SHAPE)
    torch.testing.assert_close(losses_of(9 * student, TEACHERS)[name], losses_of(student, TEACHERS)[name])


@pytest.mark.parametrize("name", ["at", "at_code", "ft_attention", "nst"])
def test_the_order_of_channels_does_not_matter(name: str) -> None:
    student = numbers(4, *SHAPE)
    torch.testing.assert_close(losses_of(student.flip(1), TEACHERS)[name], losses_of(student, TEACHERS)[name])


def test_attention_transfer_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
    assert functional.attention_transfer(student, teacher).item() == pytest.approx(2**0.5)
    assert functional.attention_transfer(student, teacher, "code").item() == 1.0
    # |activation| is (3, 4), of norm 5.
    even = torch.tensor([[[[3.0, -4.0]]]])
    assert functional.attention_transfer(even, teacher, "code", power=1).item() == pytest.approx((0.36 + 0.04) / 2)


def test_neuron_selectivity_by_hand() -> None:
    student, teacher = torch.tensor([[[[2.0, 0.0]], [[0.0, 3.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
    # Kernel means: 1 of the teacher, 1/2 of the student, (0.36 + 0.64) / 2 between them.
    assert functional.neuron_selectivity(student, teacher).item() == pytest.approx(1 + 0.5 - 2 * 0.5)


def test_factor_transfer_by_hand() -> None:
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert functional.factor_transfer(student, teacher).item() == pytest.approx((0.6 + 0.2) / 2)
    assert functional.factor_transfer(student, teacher, p2=2).item() == pytest.approx((0.36 + 0.04) / 2)
    attention = functional.factor_transfer(student, teacher, "attention").item()
    norm = (9**2 + 16**2) ** 0.5
    assert attention == pytest.approx((9 / norm + 1 - 16 / norm) / 2)


def test_flow_by_hand() -> None:
    first, second = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]]), torch.tensor([[[[2.0]]]])
    zeros = torch.zeros_like(first), torch.zeros_like(second)
    # Pooled to one position: maxima (3, 2), averages (2, 1); times 2.
    assert functional.flow((first, second), zeros).item() == 6**2 + 4**2
    assert functional.flow((first, second), zeros, "repdistiller").item() == (4**2 + 2**2) / 2
    assert functional.flow((first, second), zeros, "torchdistill").item() == pytest.approx(52**0.5)


def test_flow_ignores_the_size_of_the_other_side() -> None:
    students = numbers(2, 3, 4, 4), numbers(2, 5, 4, 4, seed=1)
    larger = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in students]
    assert functional.flow(students, larger).item() == pytest.approx(0, abs=1e-9)


# Terms


def outputs(shapes: Shapes, rows: int = 6, seed: int = 0) -> Output:
    features = tuple(numbers(rows, *shape, seed=seed + i) for i, shape in enumerate(shapes.features))
    return Output(numbers(rows, 3, seed=seed + 9), numbers(rows, shapes.embedding, seed=seed + 8), features)


def heads(student: Shapes = CNN, teacher: Shapes = LARGE_CNN) -> Heads:
    return Heads(3, 1, 1, student, teacher)


def spec(kind: str, **options: Any) -> TermSpec:
    return OBJECTIVES[kind](**options)


@pytest.mark.parametrize("kind", ["at", "nst", "ft", "fsp"])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_term_works_between_maps_of_different_shape(kind: str, rows: int) -> None:
    assert spec(kind).needs == {"features"}
    assert spec(kind).problem(Heads(3, 2, 5)) is None
    assert spec(kind).problem(heads()) is None
    student = outputs(CNN, rows)
    for feature in student.features:
        feature.requires_grad_()
    loss = spec(kind).build(heads())(student, outputs(LARGE_CNN, rows, seed=50), LABELS[:rows])
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert any(feature.grad is not None and feature.grad.any() for feature in student.features)


@pytest.mark.parametrize("kind", ["ft", "fsp"])
@pytest.mark.parametrize(("student", "teacher"), [(MLP, MLP), (CNN, MLP), (MLP, LARGE_CNN)])
@pytest.mark.parametrize("rows", [1, 6])
def test_factors_and_flows_also_work_on_vectors(kind: str, student: Shapes, teacher: Shapes, rows: int) -> None:
    between = heads(student, teacher)
    assert spec(kind).problem(between) is None
    assert spec(kind).build(between)(outputs(student, rows), outputs(teacher, rows, seed=50), LABELS[:rows]).isfinite()


@pytest.mark.parametrize("kind", ["at", "nst"])
def test_maps_of_one_position_are_refused(kind: str) -> None:
    message = spec(kind, layers="last").problem(heads(CNN, MLP)) or ""
    assert "the student's 'stage2' and the teacher's 'hidden2' have one position in common" in message


@pytest.mark.parametrize("kind", ["at", "nst", "ft", "fsp"])
def test_an_unknown_map_is_named(kind: str) -> None:
    message = spec(kind, layers=(("stage3", "stage1"),)).problem(heads()) or ""
    assert "the student has no feature map 'stage3'; it has stage1, stage2" in message


def test_one_pair_of_maps_makes_no_flow() -> None:
    assert "two pairs of maps or more" in (spec("fsp", layers="last").problem(heads()) or "")


def test_attention_is_summed_over_the_layers() -> None:
    student, teacher = outputs(CNN), outputs(LARGE_CNN, seed=50)
    values = [
        spec("at", layers=layers).build(heads())(student, teacher, LABELS)
        for layers in ("all", (("stage1", "stage2"),), "last")
    ]
    torch.testing.assert_close(values[0], values[1] + values[2])


def test_flows_have_connectors_only_where_channels_differ() -> None:
    shapes = [
        [tuple(parameter.shape) for parameter in spec("fsp").build(heads(student)).parameters()]
        for student in (LARGE_CNN, CNN)
    ]
    assert shapes == [[], [(12, 4, 1, 1), (16, 8, 1, 1)]]


def prepared(options: FactorSpec) -> tuple[Factor, Teacher, Tensor]:
    term, teacher = options.build(plan(("ce",)).heads), a_teacher()
    x = numbers(12, 1, 8, 8, seed=3)
    term.prepare(Preparation(teacher.model, lambda rows: x[rows], torch.zeros(12, dtype=torch.long), 0))
    return term, teacher, x


def test_the_paraphraser_is_trained_before_and_then_frozen() -> None:
    torch.manual_seed(0)
    fresh = FactorSpec(epochs=3).build(plan(("ce",)).heads)
    torch.manual_seed(0)
    term, teacher, x = prepared(FactorSpec(epochs=3))
    before, after = fresh.paraphrasers.state_dict(), term.paraphrasers.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    again, weights = {name: value.clone() for name, value in after.items()}, fresh.translators.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in term.translators.state_dict().items())
    term.train()
    student = plan(("ce",)).build_model()(x)
    term(student, teacher.model(x), LABELS).backward()
    assert all(parameter.grad is None for parameter in term.paraphrasers.parameters())
    assert all(parameter.grad is not None for parameter in term.translators.parameters())
    assert all(torch.equal(value, again[name]) for name, value in term.paraphrasers.state_dict().items())


def test_preparing_leaves_the_random_numbers_alone() -> None:
    term, teacher, x = FactorSpec(epochs=1).build(plan(("ce",)).heads), a_teacher(), numbers(12, 1, 8, 8)
    state = torch.get_rng_state()
    term.prepare(Preparation(teacher.model, lambda rows: x[rows], torch.zeros(12, dtype=torch.long), 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_paraphraser_tells_the_rows_apart() -> None:
    term, teacher, x = prepared(FactorSpec(epochs=5, rate=1.0))
    factors = term.paraphrasers[0](teacher.model(x).features[-1]).flatten(1)
    assert torch.pdist(factors).min() > 0


# Training


def dataset() -> Dataset:
    rng = np.random.default_rng(0)

    def split(rows: int, first_id: int) -> Split:
        images = rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8)
        return Split(images, rng.integers(0, 3, rows), None, np.arange(first_id, first_id + rows))

    splits = split(17, 0), split(8, 100), split(8, 200)
    scaling = Normalization(1 / 255, (0.4,), (0.3,))
    return Dataset("random", ("a", "b", "c"), None, InputSignature((8, 8, 1)), scaling, "0", *splits)


TEACHER_MODEL = StageSpec.model_validate({"model": {"small_cnn": {"widths": (4, 6, 12)}}, "objective": ("ce",)}).model


def plan(objective: tuple[Any, ...]) -> StagePlan:
    stage = StageSpec.model_validate({"model": {"small_cnn": {"widths": (4, 8)}}, "objective": objective})
    shapes = [
        shapes_of(model, signature=InputSignature((8, 8, 1)), outputs=6) for model in (stage.model, TEACHER_MODEL)
    ]
    settings = {"epochs": 2, "batch_size": 8, "optimizer": {"adam": {"lr": 0.01}}}
    return StagePlan(
        name="student", key="key", seed=0, spec=stage, train=TrainSpec.model_validate(settings),
        heads=Heads(3, 1, 2, *shapes), signature=InputSignature((8, 8, 1)), augment=(), teacher="teacher",
        init_from=None, parameters=0, expect=None, resolved={},
    )  # fmt: skip


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
        "at",
        {"at": {"variant": "code", "layers": "last"}},
        "nst",
        {"ft": {"epochs": 2, "batch_size": 8}},
        {"ft": {"epochs": 1, "variant": "attention", "layers": "all"}},
        {"fsp": {"weight": 0.1}},
        {"sp": {"weight": 10.0}},
        {"rkd": {"distance": 1.0, "angle": 2.0}},
        {"pkt": {"weight": 100.0}},
        "cc",
        {"cc": {"variant": "repdistiller", "width": 6}},
    ],
    ids=str,
)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: Any) -> None:
    whole = trainer(("ce", term), tmp_path / "whole")
    trained = whole.run()
    name = term if isinstance(term, str) else next(iter(term))
    assert trained.records[1]["losses"][name] < trained.records[0]["losses"][name]
    assert trained.model.state_dict().keys() == plan(("ce",)).build_model().state_dict().keys()

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
