"""Several teachers as one, and outputs that are computed once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.datasets import Split
from compress.datasets.augment import Augment, Augmentation, Crop, Flip
from compress.models import Classifier
from compress.models.small_cnn import SmallCNNSpec
from compress.objectives.base import TeacherOutput
from compress.rows import Rows
from compress.teacher import Ensemble, TeacherOutputs, frozen
from export.graph import InputSignature, Normalization, Preprocess

SHAPE = (1, 6, 6)


def a_model(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return SmallCNNSpec(widths=(4, 5)).build(signature=InputSignature((6, 6, 1)), outputs=3)


def images(rows: int = 17) -> Rows:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows, 6, 6, 1)).astype(np.uint8)
    return Rows(Split(pixels, np.zeros(rows, dtype=np.int64), None, np.arange(rows)), torch.device("cpu"))


PREPROCESS = Preprocess(InputSignature((6, 6, 1)), Normalization(1 / 255, (0.4,), (0.3,)))


def inputs(rows: Rows) -> Tensor:
    x: Tensor = PREPROCESS(rows.gather(torch.arange(len(rows)))[0])
    return x


@pytest.mark.parametrize("logits", ["mean", "sum"])
def test_an_ensemble_combines_logits(logits: str) -> None:
    members = [a_model(seed).eval() for seed in (1, 2, 3)]
    x = torch.randn(4, *SHAPE)
    output = Ensemble(members, logits).eval()(x)  # type: ignore[arg-type]
    each = torch.stack([member(x).logits for member in members])
    expected = each.mean(0) if logits == "mean" else each.sum(0)
    torch.testing.assert_close(output.logits, expected)
    assert output.embedding.shape == (4, 0)
    assert output.features == ()


def test_a_frozen_ensemble_freezes_its_members() -> None:
    members = [a_model(seed).train() for seed in (1, 2)]
    teacher = frozen(Ensemble(members, "mean"), 1)
    assert not any(member.training for member in members)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_nothing_is_read_without_a_need() -> None:
    outputs = TeacherOutputs(frozen(a_model(0), 1), frozenset())
    assert not outputs.precompute([images()], PREPROCESS)
    assert outputs(torch.arange(2), torch.zeros(2, *SHAPE), None) is None


def test_features_are_never_kept() -> None:
    needs: frozenset[TeacherOutput] = frozenset({"logits", "features"})
    outputs = TeacherOutputs(frozen(a_model(0), 1), needs)
    assert not outputs.precompute([images()], PREPROCESS)
    given = outputs(torch.arange(2), torch.zeros(2, *SHAPE), None)
    assert given is not None
    assert len(given.features) == 2


def augmented(rows: Rows, augment: Augment, choice: Tensor) -> Rows:
    return rows.changed(lambda batch: augment.apply(batch, choice))


@pytest.mark.parametrize("specs", [(), (Flip(),), (Flip(), Crop(padding=1))])
def test_kept_outputs_are_those_of_each_rows_own_view(specs: tuple[Augmentation, ...]) -> None:
    rows, augment = images(), Augment(specs)
    views = [augmented(rows, augment, torch.full((len(rows),), choice)) for choice in range(augment.choices)]
    teacher = frozen(a_model(0), 1)
    outputs = TeacherOutputs(teacher, frozenset({"logits", "embedding"}))
    assert outputs.precompute(views, PREPROCESS)
    choice = augment.draw(len(rows), torch.Generator().manual_seed(1))
    x = inputs(augmented(rows, augment, choice))
    index = torch.arange(len(rows)).flip(0)
    given = outputs(index, x[index], choice[index] if specs else None)
    direct = teacher.model(x[index])
    assert given is not None
    torch.testing.assert_close(given.logits, direct.logits)
    torch.testing.assert_close(given.embedding, direct.embedding)
