"""LELP's fit: one pass of sums gives what an all-in-memory float64 PCA gives, in any order and any number of parts."""

from __future__ import annotations

import pickle
from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import embedding_sums
from compress.embedding_sums import EmbeddingSums
from compress.lelp import Subclasses, fit, random_rotations, row_span, without_span
from runtime.errors import TrainingError

CLASSES, S, D = 3, 4, 12


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeddings(rows: int = 300, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return rows (N, D) whose spread falls from direction to direction, and labels (N,) in no order."""
    labels = torch.arange(rows) * 7 % CLASSES
    scale = torch.diag(0.8 ** torch.arange(D, dtype=torch.float64))
    mixing = torch.linalg.qr(draws(CLASSES, D, D, seed=1)).Q
    h = torch.einsum("nd,nde->ne", draws(rows, D) @ scale, mixing[labels])
    return h + draws(CLASSES, D, seed=2)[labels] + offset, labels


WEIGHT = draws(CLASSES, D, seed=3)


def fitted(h: Tensor, labels: Tensor, weight: Tensor = WEIGHT, s: int = S, **options: Any) -> Subclasses:
    sums = EmbeddingSums.of(h, labels, CLASSES)
    return fit(sums, weight, s, rotations=random_rotations(CLASSES, s, 0), **options)


def in_memory(h: Tensor, labels: Tensor) -> Tensor:
    """Return subspace projectors (C, D, D) by singular values of the rows themselves."""
    q = torch.linalg.qr(WEIGHT.T).Q
    projectors = []
    for c in range(CLASSES):
        rows = h[labels == c].double()
        rows = rows - rows @ q @ q.T
        v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:S]
        projectors.append(v.T @ v)
    return torch.stack(projectors)


def projector(result: Subclasses) -> Tensor:
    return result.directions.mT @ result.directions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_sums_give_the_subspaces_of_the_rows(dtype: torch.dtype, offset: float) -> None:
    """With a mean a thousand times the spread too, which plain sums of squares in float32 would not survive."""
    h, labels = embeddings(offset=offset)
    h = h.to(dtype)
    error = (projector(fitted(h, labels)) - in_memory(h, labels)).abs().max()
    assert error < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("rows", [1, 5, 63, 64, 65, 700])
def test_means_and_covariances_are_the_rows_own(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_sums, "PIECE_NUMBERS", 10 * D)  # Several pieces and several products.
    h, labels = embeddings(rows)
    sums = EmbeddingSums.of(h, labels, CLASSES)
    assert sums.counts == labels.bincount(minlength=CLASSES).tolist()
    for c, count in enumerate(sums.counts):
        own = h[labels == c]
        expected = torch.cov(own.T, correction=0) if count else torch.zeros(D, D, dtype=torch.float64)
        torch.testing.assert_close(sums.covariance(c), expected)
        torch.testing.assert_close(sums.mean(c), own.mean(0) if count else torch.zeros(D, dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 7, 299, 300])
def test_parts_add_up(size: int) -> None:
    h, labels = embeddings()
    whole = EmbeddingSums.of(h, labels, CLASSES)
    parts = [EmbeddingSums.of(a, b, CLASSES) for a, b in zip(h.split(size), labels.split(size), strict=True)]
    together = reduce(add, parts)
    batches = EmbeddingSums(CLASSES, D, dtype=torch.float64)
    for a, b in zip(h.split(size), labels.split(size), strict=True):
        batches.add(a, b)
    for sums in (together, batches):
        assert sums.counts == whole.counts
        for c in range(CLASSES):
            torch.testing.assert_close(sums.mean(c), whole.mean(c))
            torch.testing.assert_close(sums.covariance(c), whole.covariance(c))


def test_adding_leaves_the_parts_as_they_were() -> None:
    h, labels = embeddings()
    a, b = EmbeddingSums.of(h[:100], labels[:100], CLASSES), EmbeddingSums.of(h[100:], labels[100:], CLASSES)
    before = a.covariance(0).clone()
    first, second = a + b, a + b
    torch.testing.assert_close(a.covariance(0), before, rtol=0, atol=0)
    torch.testing.assert_close(first.covariance(0), second.covariance(0), rtol=0, atol=0)


def test_sums_travel_between_processes_without_their_buffers() -> None:
    h, labels = embeddings()
    sums = EmbeddingSums.of(h, labels, CLASSES)
    sent = pickle.dumps(sums)
    assert len(sent) < 2 * CLASSES * D * D * 8 + 10_000
    torch.testing.assert_close(pickle.loads(sent).covariance(1), sums.covariance(1))


def test_memory_does_not_grow_with_the_rows() -> None:
    sums = EmbeddingSums(CLASSES, D, dtype=torch.float64)
    for _ in range(20):
        sums.add(*embeddings())
    held = [tensor for part in sums.parts for tensor in vars(part).values() if isinstance(tensor, Tensor)]
    assert sum(tensor.numel() for tensor in held) < CLASSES * (64 * D + 3 * D * D + 2 * D)


def test_half_precision_is_summed_in_float32() -> None:
    h, labels = embeddings(offset=200.0)  # Squares are beyond float16.
    half = h.half()
    sums, expected = EmbeddingSums.of(half, labels, CLASSES), EmbeddingSums.of(half.float(), labels, CLASSES)
    torch.testing.assert_close(sums.covariance(0), expected.covariance(0))


@pytest.mark.parametrize(
    ("h", "labels", "message"),
    [
        (torch.zeros(4, D + 1), torch.zeros(4, dtype=torch.long), "expected"),
        (torch.zeros(4, D), torch.zeros(3, dtype=torch.long), "expected"),
        (torch.zeros(2, D), torch.tensor([0, CLASSES]), "labels are 0 to 3; expected 0 to 2"),
        (torch.zeros(2, D), torch.tensor([-1, 0]), "labels are -1 to 0"),
    ],
)
def test_rows_that_do_not_fit_are_refused(h: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingSums(CLASSES, D).add(h, labels)


def test_sums_of_other_shapes_do_not_add() -> None:
    with pytest.raises(ValueError, match="same classes and width"):
        EmbeddingSums(2, 3) + EmbeddingSums(2, 4)


def test_no_rows_are_nothing() -> None:
    sums = EmbeddingSums(CLASSES, D)
    sums.add(torch.zeros(0, D), torch.zeros(0, dtype=torch.long))
    assert (sums + sums).counts == [0] * CLASSES


# The fit


def test_directions_are_orthonormal_and_outside_the_classifier() -> None:
    directions = fitted(*embeddings()).directions
    eye = torch.eye(S, dtype=torch.float64).expand(CLASSES, S, S)
    torch.testing.assert_close(directions @ directions.mT, eye)
    assert (directions @ WEIGHT.T).abs().max() < 1e-10


def test_projections_that_do_not_matter_to_the_class_logits_are_all_that_is_seen() -> None:
    h, labels = embeddings()
    moved = h + draws(len(h), CLASSES, seed=9) @ WEIGHT
    torch.testing.assert_close(fitted(moved, labels).projections, fitted(h, labels).projections)


@pytest.mark.parametrize("sigma", ["raw", "centred"])
@pytest.mark.parametrize("project", ["lelp", "pca", "random", "identity"])
def test_the_largest_sigma_becomes_one(project: Any, sigma: Any) -> None:
    h, labels = embeddings()
    result = fitted(h, labels, project=project, sigma=sigma)
    q = row_span(WEIGHT)
    for c in range(CLASSES):
        rows = h[labels == c]
        if project != "identity":
            rows = rows - rows @ q @ q.T
        if sigma == "centred":
            rows = rows - rows.mean(0)
        deviations = (rows @ result.projections[c].T).square().mean(0).sqrt()
        assert float(deviations.max()) == pytest.approx(1.0)
        torch.testing.assert_close(deviations, result.sigma[c] / result.sigma[c].max())


def test_each_ablation_leaves_one_step_out() -> None:
    h, labels = embeddings()
    whole, pca, chance, identity = (fitted(h, labels, project=p) for p in ("lelp", "pca", "random", "identity"))
    torch.testing.assert_close(pca.directions, whole.directions)
    unit = pca.projections / pca.projections.norm(dim=2, keepdim=True)
    torch.testing.assert_close(unit, pca.directions)  # not rotated
    assert (projector(chance) - projector(whole)).abs().max() > 0.1
    assert (chance.directions @ WEIGHT.T).abs().max() < 1e-10
    assert (identity.directions @ WEIGHT.T).abs().max() > 0.1
    torch.testing.assert_close(
        fitted(h, labels, project="random", seed=4).directions, fitted(h, labels, project="random", seed=4).directions
    )
    assert not torch.equal(fitted(h, labels, project="random", seed=5).directions, chance.directions)


def test_rotations_are_orthogonal_and_come_from_the_seed() -> None:
    rotations = random_rotations(CLASSES, S, 7)
    eye = torch.eye(S, dtype=torch.float64).expand(CLASSES, S, S)
    torch.testing.assert_close(rotations @ rotations.mT, eye)
    assert torch.equal(rotations, random_rotations(CLASSES, S, 7))
    assert not torch.equal(rotations, random_rotations(CLASSES, S, 8))
    assert not torch.equal(rotations[0], rotations[1])


def test_one_subclass_is_possible() -> None:
    result = fitted(*embeddings(), s=1)
    assert result.projections.shape == (CLASSES, 1, D)
    assert result.projections.isfinite().all()


def test_dependent_rows_of_the_classifier_span_no_more_than_they_do() -> None:
    opposite = torch.stack([WEIGHT[0], -WEIGHT[0], 0 * WEIGHT[0]])
    assert row_span(opposite).shape == (D, 1)
    assert row_span(0 * WEIGHT).shape == (D, 0)
    span = row_span(opposite)
    covariance = draws(D, D, seed=4)
    covariance = covariance @ covariance.T
    keep = torch.eye(D, dtype=torch.float64) - span @ span.T
    torch.testing.assert_close(without_span(covariance, span), keep @ covariance @ keep)


def test_more_subclasses_than_directions_are_refused() -> None:
    with pytest.raises(TrainingError, match="10 subclasses need as many directions, and embeddings of width 12 have 9"):
        fitted(*embeddings(), s=10)
    assert fitted(*embeddings(), s=9).directions.shape == (CLASSES, 9, D)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_more_subclasses_than_the_rank_are_refused(dtype: torch.dtype) -> None:
    h, labels = embeddings()
    flat = ((h @ draws(D, 5, seed=5)) @ draws(5, D, seed=6)).to(dtype)  # rank 5; the classifier takes nothing from it
    weight = 0 * WEIGHT
    assert fitted(flat, labels, weight, s=5).projections.isfinite().all()
    with pytest.raises(TrainingError, match="class 0 vary in 5 directions") as caught:
        fitted(flat, labels, weight, s=6)
    assert "5 or fewer" in caught.value.remedy


def test_a_class_with_too_few_rows_is_refused() -> None:
    h, labels = embeddings()
    kept = torch.cat([(labels != 1).nonzero()[:, 0], (labels == 1).nonzero()[:3, 0]])
    with pytest.raises(TrainingError, match="class 1 has 3"):
        fitted(h[kept], labels[kept])
    with pytest.raises(TrainingError, match="class 2 has 0"):
        fitted(h[labels < 2], labels[labels < 2])


def test_duplicate_rows_are_refused_with_the_reason() -> None:
    h, labels = embeddings(12)
    with pytest.raises(TrainingError, match="vary in 0 directions"):
        fitted(h[:3].repeat(4, 1), labels[:3].repeat(4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(value: float) -> None:
    h, labels = embeddings()
    h[4, 2] = value
    with pytest.raises(TrainingError, match=f"NaN or Inf: class {labels[4]}"):
        fitted(h, labels)
