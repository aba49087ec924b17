"""The lelp term: its loss on hard inputs, its fit inside a run, and runs that were interrupted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.datasets import Dataset, Split
from compress.embedding_sums import EmbeddingSums
from compress.lelp import fit, random_rotations
from compress.models import Output
from compress.models.base import Shapes, shapes_of
from compress.objectives import Heads, Preparation, functional
from compress.objectives.lelp import LELP, LELPSpec
from compress.plan import StagePlan
from compress.recipe import StageSpec, TrainSpec
from compress.teacher import Teacher, frozen
from compress.train import Trained, Trainer
from export.graph import InputSignature, Normalization
from runtime.errors import TrainingError

CLASSES, S, D = 3, 2, 6


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MEANS, PROJECTIONS = draws(CLASSES, D, seed=1), draws(CLASSES, S, D, seed=2)


def loss(student: Tensor, logits: Tensor, embedding: Tensor, *, tau: float = 4.0, beta: float = 1.0) -> Tensor:
    return functional.lelp(student, logits, embedding, MEANS, PROJECTIONS, tau=tau, beta=beta)


def plain(student: Tensor, logits: Tensor, embedding: Tensor, *, tau: float, beta: float) -> Tensor:
    """Return the loss as printed, in float64, one class at a time."""
    student, logits, embedding = student.double(), logits.double(), embedding.double()
    p = torch.cat(
        [
            (logits / tau).softmax(1)[:, [c]]
            * ((embedding - MEANS[c].double()) @ PROJECTIONS[c].double().T / beta).softmax(1)
            for c in range(CLASSES)
        ],
        dim=1,
    )
    q = (student / tau).softmax(1)
    return tau**2 * (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize(("tau", "beta"), [(1.0, 1.0), (4.0, 0.25), (0.5, 2.0), (100.0, 1.0)])
def test_the_loss_is_the_printed_one(tau: float, beta: float) -> None:
    inputs = draws(5, CLASSES * S), draws(5, CLASSES, seed=3), draws(5, D, seed=4)
    expected = plain(*inputs, tau=tau, beta=beta)
    torch.testing.assert_close(loss(*inputs, tau=tau, beta=beta), expected.float(), rtol=1e-5, atol=1e-7)


def test_a_student_that_gives_the_targets_has_nothing_to_learn() -> None:
    logits, embedding = draws(5, CLASSES, seed=3), draws(5, D, seed=4)
    log_p = functional.lelp_log_targets(logits, embedding, MEANS, PROJECTIONS, tau=4.0, beta=0.5)
    student = (4.0 * log_p + 3.0).requires_grad_()
    value = loss(student, logits, embedding, beta=0.5)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_targets_sum_to_the_teachers_softened_classes() -> None:
    logits, embedding = draws(5, CLASSES, seed=3), draws(5, D, seed=4)
    p = functional.lelp_log_targets(logits, embedding, MEANS, PROJECTIONS, tau=2.0, beta=0.5).exp()
    torch.testing.assert_close(p.unflatten(1, (CLASSES, S)).sum(2), (logits / 2).softmax(1))


@pytest.mark.parametrize("tau", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("beta", [0.01, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_extreme_inputs_stay_finite(tau: float, beta: float, scale: float, rows: int) -> None:
    signs = torch.tensor([1.0, -1, 1, -1, -1, 1]).expand(rows, 6)  # equal rows
    student = (scale * signs).clone().requires_grad_()
    value = loss(student, -scale * signs[:, :CLASSES], scale * signs, tau=tau, beta=beta)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in (draws(5, CLASSES * S), draws(5, CLASSES, seed=3), draws(5, D, seed=4))]
    value = loss(*inputs)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*(x.float() for x in inputs)))


def test_one_subclass_is_plain_distillation() -> None:
    student, logits = draws(5, CLASSES), draws(5, CLASSES, seed=3)
    value = functional.lelp(student, logits, draws(5, D), MEANS, PROJECTIONS[:, :1], tau=4.0, beta=1.0)
    torch.testing.assert_close(value, functional.kl_divergence(student, logits, 4.0))


def test_coordinates_keep_their_digits_far_from_the_origin() -> None:
    embedding = draws(5, D, seed=4)
    expected = functional.lelp_coordinates(embedding, MEANS, PROJECTIONS)
    moved = functional.lelp_coordinates(embedding + 4096.0, MEANS + 4096.0, PROJECTIONS)
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-2)  # what float32 keeps of numbers near 4096: 5e-4


def test_an_infinite_temperature_has_no_value() -> None:
    with pytest.raises(ValueError, match="tau is inf"):
        loss(draws(5, CLASSES * S), draws(5, CLASSES), draws(5, D), tau=math.inf)


# The term


def a_dataset(rows: int = 70) -> Dataset:
    rng = np.random.default_rng(0)

    def split(count: int, first_id: int) -> Split:
        labels = rng.integers(0, CLASSES, count)
        images = rng.integers(0, 100, (count, 8, 8, 1)) + 50 * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels, None, np.arange(first_id, first_id + count))

    scaling = Normalization(1 / 255, (0.4,), (0.3,))
    signature = InputSignature((8, 8, 1))
    return Dataset(
        "random", ("a", "b", "c"), None, signature, scaling, "0", split(rows, 1000), split(30, 0), split(30, 0)
    )


def stage(model: str = "small_cnn", *, subclasses: int = S, teacher_subclasses: int = 1, **options: Any) -> StagePlan:
    form = {"small_cnn": {"widths": (4, 8)}, "mlp": {"hidden": (10,)}}[model]
    spec = StageSpec.model_validate(
        {"model": {model: form}, "subclasses": subclasses, "objective": ({"lelp": options}, {"ce": {"weight": 0.1}})}
    )
    settings = TrainSpec.model_validate({"epochs": 2, "batch_size": 16, "optimizer": {"adam": {"lr": 0.01}}})

    def shapes(count: int) -> Shapes:
        return shapes_of(spec.model, signature=InputSignature((8, 8, 1)), outputs=CLASSES * count)

    heads = Heads(CLASSES, subclasses, teacher_subclasses, shapes(subclasses), shapes(teacher_subclasses))
    return StagePlan(
        name="stage", key="key", seed=0, spec=spec, train=settings, heads=heads, signature=InputSignature((8, 8, 1)),
        augment=(), teachers=("teacher",), init_from=None, parameters=0, expect=None, resolved={},
    )  # fmt: skip


def a_teacher(plan: StagePlan) -> Teacher:
    torch.manual_seed(5)
    subclasses = plan.heads.teacher_subclasses or 1
    return frozen(plan.spec.model.build(signature=InputSignature((8, 8, 1)), outputs=CLASSES * subclasses), subclasses)


def trainer(plan: StagePlan, folder: Path, rows: int = 70) -> Trainer:
    return Trainer(
        plan, a_dataset(rows), a_teacher(plan), initial=None, device=torch.device("cpu"), folder=folder,
        notify=lambda event: None, checkpoint_every_s=0.0,
    )  # fmt: skip


def weights_are_equal(a: Trained, b: Trained) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("steps", [2, 6])
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    plan = stage()
    whole = trainer(plan, tmp_path / "whole").run()
    original, taken = Trainer._step, 0

    def counted(self: Trainer, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        return original(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", counted)
        with pytest.raises(KeyboardInterrupt):
            trainer(plan, tmp_path / "cut").run()
    resumed = trainer(plan, tmp_path / "cut").run()
    assert resumed.resumed_at_step == steps
    assert weights_are_equal(whole, resumed)


@pytest.mark.parametrize("project", ["lelp", "pca", "random", "identity"])
@pytest.mark.parametrize(("model", "teacher_subclasses"), [("mlp", 1), ("small_cnn", 1), ("mlp", 2)])
def test_a_run_fits_the_teacher_it_was_given(tmp_path: Path, project: str, model: str, teacher_subclasses: int) -> None:
    plan = stage(model, teacher_subclasses=teacher_subclasses, project=project)
    run = trainer(plan, tmp_path)
    result = run.run()
    assert result.records[-1]["losses"]["lelp"] < result.records[0]["losses"]["lelp"]
    term = run.objective.in_order[0]
    assert isinstance(term, LELP)
    labels = run.train_rows.labels
    with torch.no_grad():
        inputs = run.preprocess(run.train_rows.gather(torch.arange(len(labels)))[0])
        teacher = a_teacher(plan).model
        sums = EmbeddingSums.of(teacher(inputs).embedding, labels, CLASSES)
    rotations = random_rotations(CLASSES, S, 0)
    expected = fit(sums, teacher.classifier.weight, S, rotations=rotations, project=project)  # type: ignore[arg-type]
    torch.testing.assert_close(term.means, expected.means.float())
    torch.testing.assert_close(term.projections, expected.projections.float(), rtol=1e-3, atol=1e-3)


def test_nothing_of_the_term_trains_or_is_exported(tmp_path: Path) -> None:
    run = trainer(stage(), tmp_path)
    assert list(run.objective.parameters()) == []
    assert not any("projections" in name for name in run.run().model.state_dict())


def test_a_class_with_too_few_rows_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least as many training rows"):
        trainer(stage("mlp", subclasses=6), tmp_path, rows=16).run()


def test_a_term_that_was_never_fitted_gives_nan_and_not_a_number() -> None:
    term = LELPSpec().build(stage().heads)
    output = Output(draws(2, CLASSES * S), draws(2, 8), ())
    teacher = Output(draws(2, CLASSES), draws(2, 8), ())
    assert term(output, teacher, torch.tensor([0, 1])).isnan()


def test_the_seed_decides_the_rotation() -> None:
    plan = stage()
    teacher = a_teacher(plan).model
    labels, x = torch.arange(60) % CLASSES, draws(60, 1, 8, 8)
    terms = []
    for seed in (0, 0, 1):
        term = LELPSpec().build(plan.heads)
        term.prepare(Preparation(teacher, lambda rows: x[rows], labels, seed))
        terms.append(term)
    assert torch.equal(terms[0].projections, terms[1].projections)
    assert not torch.equal(terms[0].projections, terms[2].projections)


@pytest.mark.parametrize(
    ("subclasses", "project", "refused"),
    [(5, "lelp", False), (6, "lelp", True), (8, "identity", False), (9, "identity", True), (6, "random", True)],
)
def test_more_subclasses_than_directions_are_known_before_the_run(subclasses: int, project: Any, refused: bool) -> None:
    heads = Heads(CLASSES, subclasses, 1, Shapes(4, (), ()), Shapes(8, (), ()))
    problem = LELPSpec(project=project).problem(heads)
    assert (problem is not None) == refused
    if problem:
        assert f"{subclasses} subclasses per class" in problem
        assert "8" in problem


def test_unknown_shapes_and_other_subclasses_are_no_problem() -> None:
    assert LELPSpec().problem(Heads(CLASSES, 50, 1)) is None
    assert LELPSpec().problem(Heads(CLASSES, 50)) is None
    assert LELPSpec().problem(replace(stage(teacher_subclasses=2).heads, subclasses=1)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": math.inf},
        {"tau": 1e8},
        {"beta": 0.0},
        {"beta": -1.0},
        {"project": "svd"},
        {"variant": "x"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LELPSpec(**options)
