"""LELP's fit: directions that split each class of a teacher's embeddings into subclasses.

Algorithm 1 of Loo et al. 2024 ("Linear projections of teacher embeddings for few-class distillation"): take the span of
the teacher's classifier out of the embeddings, find the top S principal directions of each class, mix them by a random
rotation so that none carries most of the variance, and scale them by the largest standard deviation.

As printed, the projection `H W` lacks a transpose to have matching shapes; meant is H (I - q qᵀ) with q a basis of the
classifier's span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import scipy.linalg
import torch
from torch import Tensor

from compress.embedding_sums import EmbeddingSums
from runtime.errors import TrainingError

Project = Literal["lelp", "pca", "random", "identity"]
Sigma = Literal["raw", "centred"]


@dataclass(frozen=True)
class Subclasses:
    """What tells a class's subclasses apart. All float64, on the CPU.

    means: (C, D), of the embeddings as they are. directions: (C, S, D), orthonormal rows. sigma: (C, S), standard
    deviations after the rotation. projections: (C, S, D), the directions rotated and divided by the largest sigma.
    """

    means: Tensor
    directions: Tensor
    sigma: Tensor
    projections: Tensor


def fit(
    sums: EmbeddingSums,
    classifier: Tensor,
    subclasses: int,
    *,
    rotations: Tensor,
    project: Project = "lelp",
    sigma: Sigma = "raw",
    seed: int = 0,
) -> Subclasses:
    """Fit S = `subclasses` directions for each class.

    classifier: (outputs, D), the weight of the teacher's last layer. rotations: (C, S, S), `random_rotations`.

    project: what is done, each of the last three leaving out one step of the first. lelp: all of it. pca: no rotation.
    random: random orthonormal directions in the place of principal ones, drawn from `seed`. identity: nothing is taken
    out of the embeddings. sigma: root mean square of the projected embeddings (`raw`, as printed) or their standard
    deviation (`centred`, so that the largest variance becomes 1, as the text says).

    Raises TrainingError where the embeddings have no S directions.
    """
    classes, width = len(sums.parts), sums.width
    span = torch.zeros(width, 0, dtype=torch.float64) if project == "identity" else row_span(classifier)  # (D, r)
    _check(sums, subclasses, free=width - span.shape[1])
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([sums.mean(c).cpu() for c in range(classes)])
    kept, deviations, projections = [], [], []
    for c in range(classes):
        full = sums.covariance(c).cpu()
        covariance = without_span(full, span)  # (D, D)
        if project == "random":
            directions = _random_directions(span, subclasses, generator)
        else:
            # Below this share of all variance, directions are rounding of the embeddings and of their products.
            noise = torch.finfo(sums.dtype).eps * float(full.trace())
            directions = _principal_directions(covariance, subclasses, noise, c)
        mixed = directions if project == "pca" else rotations[c].double().cpu() @ directions  # (S, D)
        second = ((mixed @ covariance) * mixed).sum(1)
        if sigma == "raw":
            second = second + (mixed @ (means[c] - span @ (span.T @ means[c]))).square()
        deviation = second.clamp_min(0).sqrt()  # (S,)
        if not float(deviation.max()) > 0:
            raise TrainingError(f"lelp: the embeddings of class {c} do not differ along any of {subclasses} directions")
        kept.append(directions)
        deviations.append(deviation)
        projections.append(mixed / deviation.max())
    return Subclasses(means, torch.stack(kept), torch.stack(deviations), torch.stack(projections))


def random_rotations(classes: int, subclasses: int, seed: int) -> Tensor:
    """Return orthogonal matrices (C, S, S), float64, uniformly distributed, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return _orthogonal(torch.randn(classes, subclasses, subclasses, dtype=torch.float64, generator=generator))


def row_span(weight: Tensor) -> Tensor:
    """Return an orthonormal basis (D, r) of the rows of `weight` (outputs, D).

    By singular values, because a QR decomposition of dependent rows (two opposite ones, or zeros) would add directions
    that are not in the span.
    """
    left, size, _ = torch.linalg.svd(weight.detach().double().cpu().T, full_matrices=False)
    tolerance = max(weight.shape) * torch.finfo(weight.dtype).eps * size.max() if len(size) else 0.0
    return left[:, size > tolerance]


def without_span(covariance: Tensor, span: Tensor) -> Tensor:
    """Return (I - q qᵀ) M (I - q qᵀ) for M (D, D) and q = `span` (D, r)."""
    if not span.shape[1]:
        return covariance
    mapped = covariance @ span  # (D, r)
    half = span @ (mapped - span @ (span.T @ mapped) / 2).T  # (D, D)
    return covariance - half - half.T


def _principal_directions(covariance: Tensor, subclasses: int, noise: float, label: int) -> Tensor:
    """Return the top S eigenvectors (S, D), largest first, each signed so that its largest component is positive."""
    width = len(covariance)
    variances, vectors = scipy.linalg.eigh(covariance.numpy(), subset_by_index=[width - subclasses, width - 1])
    if variances[0] <= noise:
        rank = int((scipy.linalg.eigvalsh(covariance.numpy()) > noise).sum())
        raise TrainingError(
            f"lelp: the embeddings of class {label} vary in {rank} directions outside the teacher's classifier, and "
            f"{subclasses} subclasses need as many",
            f"Set subclasses to {rank} or fewer." if rank else "Take a teacher whose embeddings differ within a class.",
        )
    directions = torch.from_numpy(vectors.T[::-1].copy())
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def _random_directions(span: Tensor, subclasses: int, generator: torch.Generator) -> Tensor:
    """Return orthonormal rows (S, D) outside `span` (D, r), uniformly distributed."""
    drawn = torch.randn(len(span), subclasses, dtype=torch.float64, generator=generator)
    return _orthogonal(drawn - span @ (span.T @ drawn)).T


def _orthogonal(drawn: Tensor) -> Tensor:
    q, r = torch.linalg.qr(drawn)
    # Without the signs, QR's own convention would favour some rotations.
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _check(sums: EmbeddingSums, subclasses: int, free: int) -> None:
    if subclasses < 1:
        raise ValueError(f"subclasses is {subclasses}; expected at least 1")
    if subclasses > free:
        raise TrainingError(
            f"lelp: {subclasses} subclasses need as many directions, and embeddings of width {sums.width} have {free} "
            "outside the teacher's classifier",
            f"Set subclasses to {free} or fewer." if free > 0 else "Take a teacher with wider embeddings.",
        )
    few = [f"class {c} has {count}" for c, count in enumerate(sums.counts) if count < subclasses]
    if few:
        raise TrainingError(
            f"lelp: {subclasses} subclasses need at least as many training rows of each class; {_shortened(few)}"
        )
    broken = [f"class {c}" for c in range(len(sums.parts)) if not sums.finite(c)]
    if broken:
        raise TrainingError(f"lelp: the teacher's embeddings hold NaN or Inf: {_shortened(broken)}")


def _shortened(names: Sequence[str], shown: int = 5) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
