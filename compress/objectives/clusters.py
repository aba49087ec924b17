"""Subclasses by clusters of the teacher's embeddings, LELP's rivals: k-means, agglomerative, of a t-SNE; an oracle."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress import clustering
from compress.models.base import Output
from compress.objectives import functional
from compress.objectives.base import Heads, Preparation, Term, TermSpec
from compress.objectives.functional.logits import FLOAT64_TAU
from export.fold import fold_logits
from runtime.errors import TrainingError


class ClusterSpec(TermSpec):
    """Options that the four have in common.

    S is the stage's `subclasses`. Each class of the teacher's embeddings (training rows by class label, unaugmented) is
    split once, before training. A teacher that has subclasses itself is folded to classes.

    targets: `soft` gives each class's probability under the teacher, at temperature tau, to the row's cluster in that
    class, and is compared by tau² KL; `hard` is cross-entropy with the cluster of the row's label.
    """

    needs = frozenset({"logits", "embedding"})

    targets: Literal["soft", "hard"] = "soft"
    # Only at 1 do the subclasses of a class add up, in the fold, to the probability that was taught: a class whose
    # probability is spread over unsure subclasses loses against one whose subclass is sure at any higher tau.
    tau: float = Field(1.0, gt=0, le=FLOAT64_TAU)

    def problem(self, heads: Heads) -> str | None:
        if heads.subclasses == 1:
            return "this stage has no subclasses; set `subclasses:` to 2 or more"
        return None  # A teacher's own subclasses need not agree: it is folded.

    def build(self, heads: Heads) -> Clusters:
        return Clusters(heads, self)

    def assign(self, embeddings: clustering.Floats, preparation: Preparation, heads: Heads) -> clustering.Ints:
        """Return the subclass of each training row in each class (N, C), of the teacher's embeddings (N, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define assign")


class MethodSpec(ClusterSpec):
    """Subclasses by the method of `clustering.METHODS` that has the kind's name."""

    def assign(self, embeddings: clustering.Floats, preparation: Preparation, heads: Heads) -> clustering.Ints:
        return clustering.assign(
            embeddings,
            preparation.labels.cpu().numpy(),
            classes=heads.classes,
            subclasses=heads.subclasses,
            method=clustering.METHODS[self.kind],
            seed=preparation.seed,
        )


class KMeansSpec(MethodSpec):
    """Subclasses are k-means clusters of the teacher's embeddings of each class (a rival in Loo et al. 2024)."""

    kind = "kmeans"


class AgglomerativeSpec(MethodSpec):
    """Subclasses are Ward's clusters of the teacher's embeddings of each class (a rival in Loo et al. 2024).

    At most 5,000 rows of a class are clustered; the others join the nearest centroid.
    """

    kind = "agglomerative"


class TSNEKMeansSpec(MethodSpec):
    """Subclasses are k-means clusters of a t-SNE of each class's embeddings (a rival in Loo et al. 2024).

    At most 5,000 rows of a class take part; the others join the centroid that is nearest in the embedding.
    """

    kind = "tsne_kmeans"


class OracleSpec(ClusterSpec):
    """Subclasses are the stored classes that the recipe's `relabel` joins: the best that a clustering could find."""

    kind = "oracle"

    def assign(self, embeddings: clustering.Floats, preparation: Preparation, heads: Heads) -> clustering.Ints:
        if preparation.hidden is None:
            raise TrainingError(
                "oracle: there are no stored classes behind the recipe's classes", "Regroup them: `data.relabel`."
            )
        labels, hidden = preparation.labels.cpu().numpy(), preparation.hidden.cpu().numpy()
        members = [np.unique(hidden[labels == c]).tolist() for c in range(heads.classes)]
        if len({index for group in members for index in group}) < sum(map(len, members)):
            raise TrainingError(
                "oracle: rows of one stored class have different labels",
                "Leave out label noise and labels by the teacher.",
            )
        most = max(map(len, members))
        if most > heads.subclasses:
            raise TrainingError(
                f"oracle: a class joins {most} stored classes, and there are {heads.subclasses} subclasses",
                f"Set subclasses to {most}.",
            )
        return clustering.by_stored_class(embeddings, labels, hidden, members, heads.subclasses)


class Clusters(Term):
    """`assigned` (training rows, C) is made in `prepare`; `observe` says which of them a batch holds."""

    assigned: Tensor

    def __init__(self, heads: Heads, options: ClusterSpec) -> None:
        super().__init__()
        self.heads = heads
        self.options = options
        self.register_buffer("assigned", torch.empty(0, heads.classes, dtype=torch.long))
        self.rows: Tensor | None = None

    def prepare(self, preparation: Preparation) -> None:
        embeddings = torch.cat([part.float().cpu() for _, part in preparation.embeddings()]).numpy()
        if not np.isfinite(embeddings).all():
            raise TrainingError(f"{self.options.kind}: the teacher's embeddings hold NaN or Inf")
        assigned = self.options.assign(embeddings, preparation, self.heads)
        self.assigned = torch.from_numpy(assigned).to(preparation.labels.device)

    def observe(self, rows: Tensor) -> None:
        self.rows = rows

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        assert teacher is not None  # Objective.needs
        assert self.rows is not None  # Trainer
        assigned = self.assigned[self.rows]
        if self.options.targets == "hard":
            return functional.cluster_cross_entropy(student.logits, assigned, labels)
        classes = fold_logits(teacher.logits, self.heads.teacher_subclasses or 1)
        return functional.cluster_distillation(student.logits, classes, assigned, self.options.tau)
