"""The terms that distil clusters: their losses, and a run of each through the recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.models import Classifier, Output
from compress.models.base import Shapes
from compress.models.mlp import MLPSpec
from compress.objectives import OBJECTIVES, Heads, Preparation, functional
from compress.objectives.clusters import Clusters, ClusterSpec, KMeansSpec, OracleSpec
from export.graph import InputSignature
from runtime.errors import TrainingError

C, S = 3, 2
ASSIGNED = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1]])
LABELS = torch.tensor([0, 2, 1, 1])


def draws(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the loss from the whole target distribution over C*S subclasses, in float64."""
    p = torch.zeros(len(student), C * S, dtype=torch.float64)
    classes = (teacher.double() / tau).softmax(1)
    for n in range(len(student)):
        for c in range(C):
            p[n, c * S + ASSIGNED[n, c]] = classes[n, c]
    log_q = (student.double() / tau).log_softmax(1)
    return tau**2 * (torch.special.xlogy(p, p) - p * log_q).sum(1).mean()


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 50.0])
def test_the_soft_loss_is_the_divergence_of_the_whole_distribution(tau: float) -> None:
    student, teacher = draws(4, C * S), draws(4, C, seed=1)
    came = functional.cluster_distillation(student, teacher, ASSIGNED, tau)
    torch.testing.assert_close(came.double(), plain(student, teacher, tau), rtol=2e-5, atol=1e-6)


def test_the_soft_losss_gradient_is_that_of_the_whole_distribution() -> None:
    student = draws(4, C * S).double().requires_grad_()
    teacher = draws(4, C, seed=1).double()
    (came,) = torch.autograd.grad(functional.cluster_distillation(student, teacher, ASSIGNED, 4.0), student)
    (expected,) = torch.autograd.grad(plain(student, teacher, 4.0), student)
    torch.testing.assert_close(came, expected)


def test_the_loss_is_zero_only_where_the_student_follows() -> None:
    teacher = draws(4, C, seed=1)
    student = torch.full((4, C * S), -80.0)
    for n in range(4):
        for c in range(C):
            student[n, c * S + ASSIGNED[n, c]] = teacher[n, c]
    assert float(functional.cluster_distillation(student, teacher, ASSIGNED, 1.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(functional.cluster_distillation(student.flip(1), teacher, ASSIGNED, 1.0)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_hard_logits_stay_finite(dtype: torch.dtype) -> None:
    student = draws(4, C * S, scale=200).to(dtype).requires_grad_()
    loss = functional.cluster_distillation(student, draws(4, C, seed=1, scale=200).to(dtype), ASSIGNED, 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_an_infinite_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most"):
        functional.cluster_distillation(draws(4, C * S), draws(4, C), ASSIGNED, float("inf"))


def test_the_hard_loss_is_cross_entropy_with_the_rows_own_subclass() -> None:
    student = draws(4, C * S)
    targets = torch.tensor([0 * S + 0, 2 * S + 0, 1 * S + 1, 1 * S + 0])
    expected = torch.nn.functional.cross_entropy(student, targets)
    torch.testing.assert_close(functional.cluster_cross_entropy(student, ASSIGNED, LABELS), expected)


# In a stage


def a_teacher(outputs: int = C) -> Classifier:
    torch.manual_seed(0)
    return MLPSpec(hidden=(6,)).build(signature=InputSignature((4, 4, 1)), outputs=outputs).eval()


def prepared(spec: ClusterSpec, hidden: Tensor | None = None, labels: Tensor | None = None) -> tuple[Clusters, Tensor]:
    x = draws(60, 1, 4, 4, seed=3)
    labels = torch.arange(60) % C if labels is None else labels
    teacher = a_teacher()
    shapes = Shapes(6, (), ())
    term = spec.build(Heads(C, S, 1, shapes, shapes))
    term.prepare(Preparation(teacher, lambda rows: x[rows], labels, 0, hidden))
    return term, x


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_a_batch_reads_the_clusters_of_its_own_rows(targets: Any) -> None:
    term, x = prepared(KMeansSpec(targets=targets))
    rows = torch.tensor([41, 7, 20])
    taught = a_teacher()(x[rows])
    student = Output(draws(3, C * S), draws(3, 6), ())
    term.observe(rows)
    came = term(student, taught, rows % C)
    if targets == "hard":
        expected = functional.cluster_cross_entropy(student.logits, term.assigned[rows], rows % C)
    else:
        expected = functional.cluster_distillation(student.logits, taught.logits, term.assigned[rows], 1.0)
    torch.testing.assert_close(came, expected)


def test_outputs_that_were_kept_are_not_computed_again() -> None:
    first, x = prepared(KMeansSpec())
    with torch.no_grad():
        kept = a_teacher()(x)

    def refuse(rows: Tensor) -> Tensor:
        raise AssertionError("the teacher was run again")

    shapes = Shapes(6, (), ())
    second = KMeansSpec().build(Heads(C, S, 1, shapes, shapes))
    second.prepare(Preparation(a_teacher(), refuse, torch.arange(60) % C, 0, None, kept))
    assert torch.equal(first.assigned, second.assigned)


def test_the_clusters_are_in_the_checkpoint() -> None:
    term, _ = prepared(KMeansSpec())
    assert torch.equal(term.state_dict()["assigned"], term.assigned)


def test_an_oracle_takes_the_stored_classes() -> None:
    hidden = torch.arange(60) % (C * S)
    term, _ = prepared(OracleSpec(), hidden, hidden // S)
    own = term.assigned.gather(1, (hidden // S)[:, None]).squeeze(1)
    assert torch.equal(own, hidden % S)


@pytest.mark.parametrize(
    ("hidden", "labels", "message"),
    [
        (None, None, "no stored classes behind"),
        (torch.arange(60) % 9, torch.arange(60) % 9 // 3, "a class joins 3 stored classes, and there are 2 subclasses"),
        (torch.arange(60) % 3, torch.arange(60) % 4 % 3, "rows of one stored class have different labels"),
    ],
)
def test_an_oracle_without_an_answer_says_so(hidden: Any, labels: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        prepared(OracleSpec(), hidden, labels)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    term = KMeansSpec().build(Heads(C, S, 1, Shapes(6, (), ()), Shapes(6, (), ())))
    x = torch.full((60, 1, 4, 4), float("nan"))
    with pytest.raises(TrainingError, match="kmeans: the teacher's embeddings hold NaN or Inf"):
        term.prepare(Preparation(a_teacher(), lambda rows: x[rows], torch.arange(60) % C, 0))


@pytest.mark.parametrize("kind", ["kmeans", "agglomerative", "tsne_kmeans", "oracle"])
def test_a_stage_without_subclasses_is_told(kind: str) -> None:
    assert "set `subclasses:` to 2 or more" in (OBJECTIVES[kind]().problem(Heads(C, 1, 1)) or "")
