"""VID, overhaul and activation boundaries: values by hand, edge cases, margins, and training runs that resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from compress.datasets import Dataset, Split
from compress.models import Classifier, Output, Shapes, shapes_of
from compress.objectives import OBJECTIVES, Heads, Preparation, TermSpec, functional
from compress.objectives.ab import ABSpec
from compress.objectives.margins import batch_norm_margins, measured_margins
from compress.objectives.ofd import OFD, OFDSpec
from compress.objectives.vid import VIDSpec
from compress.plan import StagePlan
from compress.recipe import StageSpec, TrainSpec
from compress.teacher import Teacher, frozen
from compress.train import Trained, Trainer
from export.graph import InputSignature, Normalization
from runtime.errors import TrainingError


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MARGIN = torch.tensor([-0.5, -1.0, 0.0])
# Every loss as a function of a regressed student map and a teacher map, (N, 3, H, W) or (N, 3).
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vid": lambda s, t: functional.variational_information(s, torch.tensor([0.0, 5.0, -200.0]).to(s.dtype), t),
    "vid mean": lambda s, t: functional.variational_information(s, torch.ones(3).to(s.dtype), t, "repdistiller"),
    "ofd": lambda s, t: functional.overhaul(s, functional.margin_relu(t, MARGIN)),
    "ofd rectified": lambda s, t: functional.overhaul(s, functional.margin_relu(t.relu(), MARGIN, rectified=True)),
    "ab": lambda s, t: functional.activation_boundaries([(s, t), (s, t)]),
    "ab repdistiller": lambda s, t: functional.activation_boundaries([(s, t), (s, t)], 2.0, "repdistiller"),
}
MAPS = {
    "ordinary": (numbers(4, 3, 2, 2), numbers(4, 3, 2, 2, seed=1)),
    "vectors": (numbers(4, 3), numbers(4, 3, seed=1)),
    "one row": (numbers(1, 3), numbers(1, 3, seed=1)),
    "zeros": (torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)),
    "duplicates": (numbers(1, 3).tile(4, 1), numbers(1, 3, seed=1).tile(4, 1)),
    "±200": (200 * numbers(4, 3).sign(), 200 * numbers(4, 3, seed=1).sign()),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("maps", MAPS)
def test_loss_and_gradient_are_finite(name: str, maps: str) -> None:
    student, teacher = MAPS[maps]
    student = student.clone().requires_grad_()
    loss = LOSSES[name](student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.shape == ()
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = numbers(4, 3, scale=300).to(dtype), numbers(4, 3, seed=1, scale=300).to(dtype)
    half = LOSSES[name](student, teacher)
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert half == LOSSES[name](student.float(), teacher.float())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_over_the_batch(name: str) -> None:
    student, teacher = numbers(4, 3, 2, 2), numbers(4, 3, 2, 2, seed=1)
    once = LOSSES[name](student, teacher)
    torch.testing.assert_close(LOSSES[name](student.repeat(3, 1, 1, 1), teacher.repeat(3, 1, 1, 1)), once)


# VID


def test_vid_by_hand() -> None:
    mean, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])
    log_scale = torch.tensor([functional.log_scale_of(2.0), functional.log_scale_of(math.e)])
    expected = 0.5 * (4 / 2 + math.log(2)) + 0.5 * 1
    assert functional.variational_information(mean, log_scale, teacher).item() == pytest.approx(expected, rel=1e-5)
    value = functional.variational_information(mean, log_scale, teacher, "repdistiller")
    assert value.item() == pytest.approx(expected / 2, rel=1e-5)


def test_vid_is_lowest_at_the_variance_of_the_error() -> None:
    teacher = numbers(500, 1)
    error = teacher.square().mean().item()
    at = lambda variance: functional.variational_information(  # noqa: E731
        torch.zeros(500, 1), torch.tensor([functional.log_scale_of(variance)]), teacher
    ).item()
    assert at(error) < min(at(0.9 * error), at(1.1 * error))


# OFD


def test_overhaul_by_hand() -> None:
    # Inactive units of the teacher at margin -1: a student below costs nothing, one above its squared distance.
    target = functional.margin_relu(torch.tensor([[-5.0, -5.0, -0.5, -0.5, 2.0, 2.0]]), torch.full((6,), -1.0))
    assert target.tolist() == [[-1.0, -1.0, -0.5, -0.5, 2.0, 2.0]]
    student = torch.tensor([[-3.0, 1.0, -0.75, 0.5, 0.0, 3.0]])
    assert functional.overhaul(student, target).item() == 4 + 1 + 4 + 1


def test_a_zero_behind_the_relu_takes_the_margin() -> None:
    margin = torch.tensor([-1.0, -2.0])
    behind = torch.tensor([[0.0, 0.0], [3.0, 0.5]])
    assert functional.margin_relu(behind, margin, rectified=True).tolist() == [[-1.0, -2.0], [3.0, 0.5]]
    assert functional.margin_relu(behind, margin).tolist() == behind.tolist()


def test_normal_margin_is_the_mean_of_negative_responses() -> None:
    weight, bias = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -1.0])
    drawn = numbers(200_000, 3).double() * weight + bias
    expected = torch.stack([column[column < 0].mean() for column in drawn.unbind(1)])
    torch.testing.assert_close(functional.normal_margin(weight, bias).double(), expected, rtol=0.01, atol=0)
    measured = functional.measured_margin(functional.response_sums(drawn[:, :, None, None]))
    torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize(
    ("weight", "bias", "expected"),
    [
        (1.0, 4.0, -3.0),  # rarely negative
        (-2.0, 100.0, -6.0),
        (0.0, -1.5, -1.5),  # always the bias
        (0.0, 1.5, 0.0),
        (0.0, 0.0, 0.0),
        (1.0, -200.0, -200.0),
    ],
)
def test_normal_margin_at_its_limits(weight: float, bias: float, expected: float) -> None:
    margin = functional.normal_margin(torch.tensor([weight]), torch.tensor([bias]))
    assert margin.item() == pytest.approx(expected)


def test_measured_margin_of_responses_that_are_never_negative() -> None:
    responses = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert functional.measured_margin(functional.response_sums(responses)).tolist() == [-3.0, 0.0]


class TwoMaps(Classifier):
    """A map behind batch norm and ReLU in place, and a vector behind Linear and ReLU."""

    feature_names = ("map", "vector")

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.hidden = nn.Linear(12, 5)
        self.classifier = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Output:
        maps = self.block(x)
        hidden = F.relu(self.hidden(maps.flatten(1)))
        return Output(self.classifier(hidden), hidden, (maps, hidden))


def two_maps() -> TwoMaps:
    torch.manual_seed(0)
    model = TwoMaps().eval().requires_grad_(False)
    model.block[1].weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
    model.block[1].bias.copy_(torch.tensor([0.1, -0.3, 0.0]))
    return model


def test_batch_norm_margins_read_the_norm_behind_which_the_map_stands() -> None:
    model = two_maps()
    (margin,) = batch_norm_margins(model, numbers(4, 1, 2, 2), [0])
    assert torch.equal(margin, functional.normal_margin(model.block[1].weight, model.block[1].bias))
    assert not model.block[1]._forward_hooks


def test_measured_margins_are_means_over_all_batches() -> None:
    model, x = two_maps(), numbers(23, 1, 2, 2)
    before_map = model.block[1](model.block[0](x))
    before_vector = model.hidden(before_map.relu().flatten(1))
    margins = measured_margins(model, x.split(5), [0, 1])
    for margin, responses in zip(margins, (before_map.movedim(1, -1).flatten(0, -2), before_vector), strict=True):
        expected = functional.measured_margin(functional.response_sums(responses))
        torch.testing.assert_close(margin, expected)


class PooledMap(Classifier):
    feature_names = ("pooled",)

    def forward(self, x: Tensor) -> Output:
        pooled = F.max_pool2d(F.relu(x), 2)
        return Output(pooled.flatten(1), pooled.flatten(1), (pooled,))


def test_margins_that_cannot_be_known_are_refused_with_a_way_out() -> None:
    with pytest.raises(TrainingError, match="no batch norm before its map 'vector'") as caught:
        batch_norm_margins(two_maps(), numbers(4, 1, 2, 2), [1])
    assert "margin: measured" in caught.value.remedy
    with pytest.raises(TrainingError, match="no layer of the teacher gives map 'pooled' before its ReLU"):
        measured_margins(PooledMap(), [numbers(4, 1, 2, 2)], [0])


# AB


def test_activation_boundary_by_hand() -> None:
    student, teacher = torch.tensor([[2.0, 0.5, -1.0, 0.5, -3.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0, -1.0]])
    assert functional.activation_boundary(student, teacher).item() == 0 + 0.25 + 4 + 2.25 + 0


def test_layers_of_activation_boundaries() -> None:
    pairs = [(numbers(2, 3, seed=i), numbers(2, 3, seed=i + 10)) for i in range(3)]
    a, b, c = (functional.activation_boundary(*pair, 2.0) for pair in pairs)
    torch.testing.assert_close(functional.activation_boundaries(pairs, 2.0), a + b + c)
    expected = 0.003 * (a / 4 + b / 2 + c)
    torch.testing.assert_close(functional.activation_boundaries(pairs, 2.0, "repdistiller"), expected)


def test_activation_boundaries_see_signs_only() -> None:
    student, teacher = numbers(4, 3), numbers(4, 3, seed=1)
    expected = functional.activation_boundary(student, teacher)
    assert functional.activation_boundary(student, teacher.relu() * 7) == expected


# Terms

CNN = Shapes(8, ((4, 8, 8), (8, 4, 4)), ("stage1", "stage2"))
LARGE_CNN = Shapes(16, ((6, 8, 8), (12, 8, 8), (16, 2, 2)), ("stage1", "stage2", "stage3"))
MLP = Shapes(5, ((7,), (5,)), ("hidden1", "hidden2"))
NO_MAPS = Shapes(64, (), ())
SPECS = (VIDSpec(), VIDSpec(variant="repdistiller", layers="last"), ABSpec(), ABSpec(variant="repdistiller"), OFDSpec())


def outputs(shapes: Shapes, rows: int, seed: int) -> Output:
    features = tuple(numbers(rows, *shape, seed=seed + i).relu() for i, shape in enumerate(shapes.features))
    return Output(numbers(rows, 3), numbers(rows, shapes.embedding), features)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("student", [CNN, MLP, LARGE_CNN])
@pytest.mark.parametrize("teacher", [CNN, MLP])
def test_a_term_works_between_any_two_models(spec: TermSpec, rows: int, student: Shapes, teacher: Shapes) -> None:
    heads = Heads(3, 2, 5, student, teacher)
    assert spec.problem(heads) is None
    term = spec.build(heads)
    if isinstance(term, OFD):
        assert term(outputs(student, rows, 0), outputs(teacher, rows, 50), torch.zeros(rows)).isnan()
        for margin in term.margins:
            margin.fill_(-0.5)
        term.rectified.fill_(True)
    loss = term(outputs(student, rows, 0), outputs(teacher, rows, 50), torch.zeros(rows))
    loss.backward()
    assert loss.isfinite()
    assert list(term.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize("kind", ["vid", "ofd", "ab"])
def test_the_map_that_is_missing_is_named(kind: str) -> None:
    spec = OBJECTIVES[kind]
    assert spec.needs == {"features"}
    assert spec().problem(Heads(3, 1, 1)) is None
    assert spec().problem(Heads(3, 1, 1, NO_MAPS, CNN)) == "the student gives no feature maps"
    named: Any = {"layers": (("stage3", "stage1"),)}
    assert "no feature map 'stage3'; it has stage1, stage2" in (spec(**named).problem(Heads(3, 1, 1, CNN, CNN)) or "")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vid", {"init_variance": 0.0}),
        ("vid", {"variant": "code"}),
        ("ofd", {"margin": "zero"}),
        ("ab", {"margin": 0.0}),
    ],
)
def test_unknown_options_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OBJECTIVES[kind](**options)


def test_ofd_looks_up_margins_of_the_teachers_maps() -> None:
    model, shapes = two_maps(), Shapes(5, ((3, 2, 2), (5,)), TwoMaps.feature_names)
    x = numbers(23, 1, 2, 2)
    term = OFDSpec(margin="measured").build(Heads(2, 1, 1, shapes, shapes))
    assert isinstance(term, OFD)
    term.prepare(Preparation(model, lambda rows: x[rows], torch.zeros(23), 0))
    for margin, expected in zip(term.margins, measured_margins(model, [x], [0, 1]), strict=True):
        torch.testing.assert_close(margin.double(), expected)
    assert term.rectified.all()


# Training


def dataset() -> Dataset:
    rng = np.random.default_rng(0)

    def split(rows: int, first_id: int) -> Split:
        images = rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8)
        return Split(images, rng.integers(0, 3, rows), None, np.arange(first_id, first_id + rows))

    splits = split(17, 0), split(8, 100), split(8, 200)
    signature, scaling = InputSignature((8, 8, 1)), Normalization(1 / 255, (0.4,), (0.3,))
    return Dataset("random", ("a", "b", "c"), None, signature, scaling, "0", *splits)


def model_spec(widths: tuple[int, ...]) -> Any:
    return StageSpec.model_validate({"model": {"small_cnn": {"widths": widths}}, "objective": ("ce",)}).model


TEACHER_MODEL = model_spec((4, 6, 12))


def a_teacher() -> Teacher:
    torch.manual_seed(1)
    return frozen(TEACHER_MODEL.build(signature=InputSignature((8, 8, 1)), outputs=3), 1)


def trainer(term: Any, folder: Path, checkpoint_every_s: float = 1e9, **train: Any) -> Trainer:
    spec = StageSpec.model_validate({"model": {"small_cnn": {"widths": (4, 8)}}, "objective": ("ce", term)})
    shapes = [shapes_of(model, signature=InputSignature((8, 8, 1)), outputs=3) for model in (spec.model, TEACHER_MODEL)]
    settings = TrainSpec.model_validate({"epochs": 2, "batch_size": 8, "optimizer": {"adam": {"lr": 0.01}}, **train})
    plan = StagePlan(
        name="student", key="key", seed=0, spec=spec, train=settings, heads=Heads(3, 1, 1, *shapes),
        signature=InputSignature((8, 8, 1)), augment=(), teacher="teacher", init_from=None, parameters=0,
        expect=None, resolved={},
    )  # fmt: skip
    return Trainer(
        plan, dataset(), a_teacher(), initial=None, device=torch.device("cpu"), folder=folder,
        notify=lambda event: None, checkpoint_every_s=checkpoint_every_s,
    )  # fmt: skip


def state(run: Trainer, trained: Trained) -> dict[str, Tensor]:
    return {**trained.model.state_dict(), **{f"term.{k}": v for k, v in run.objective.state_dict().items()}}


TERMS: tuple[Any, ...] = (
    {"vid": {"weight": 0.01}},
    {"ofd": {"weight": 1e-3}},
    {"ofd": {"weight": 1e-3, "margin": "measured", "layers": "last"}},
    {"ab": {"weight": 1e-3}},
    {"crd": {"negatives": 7, "width": 4}},
    {"kd": {"kl_weight": 0.5}},
    {"dkd": {"nckd": 2.0}},
    "smooth_l1",
)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_run_in_bfloat16_stays_finite(tmp_path: Path, term: Any) -> None:
    trained = trainer(term, tmp_path, precision="bf16").run()
    assert math.isfinite(trained.records[-1]["losses"]["total"])


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_run_learns_and_an_interrupted_one_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: Any
) -> None:
    whole = trainer(term, tmp_path / "whole")
    initial = {name: value.clone() for name, value in whole.objective.named_parameters()}
    trained = whole.run()
    assert all(not torch.equal(initial[key], value) for key, value in whole.objective.named_parameters())
    if "crd" not in term:  # Its Z is fixed by the first batch, while the memories still change.
        assert trained.records[1]["losses"]["total"] < trained.records[0]["losses"]["total"]

    cut = trainer(term, tmp_path / "cut", 0.0)
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
    again = trainer(term, tmp_path / "cut")
    resumed = again.run()
    assert resumed.resumed_at_step == 4
    assert 1 in taken
    expected, got = state(whole, trained), state(again, resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
