"""A recipe on streamed images, from training to report: the same bits as with the images in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from true_formats.imagenet import write as write_imagenet

from compress.datasets.stream import ImageStream
from compress.pipeline import plans_of
from compress.stages import Settings
from compress.train import Trainer
from compress.variant_run import VariantRun
from runtime.rows import read_rows

RECIPE = """\
name: streamed
data: {{source: {source}, validation: 0.25{more}}}
train: {{epochs: 2, batch_size: 8, optimizer: {{adam: {{lr: 5e-3}}}}}}
stages:
  teacher: {{model: {{small_cnn: {{widths: [4, 8]}}}}, subclasses: 2, objective: [ce, subclass_auxiliary]}}
  student: {{model: {{mlp: {{hidden: [8]}}}}, subclasses: 2, teacher: teacher, objective: [kl, ce]}}
"""
EXPORT = "export: {stage: student, batch_sizes: [1, 4]}\n"


def trained(
    recipe: Path,
    runs: Path,
    data_root: Path | None = None,
    *,
    notify: Callable[[Any], None] = lambda event: None,
    checkpoint_every_s: float = 30.0,
) -> VariantRun:
    """Return the run of a recipe's only variant, trained or taken from `runs`."""
    (plan,) = plans_of(recipe, data_root)
    run = VariantRun(plan, Settings(runs, data_root, "cpu", checkpoint_every_s), notify)
    run.train()
    return run


def weights(run: VariantRun) -> dict[str, bytes]:
    """Return the bytes of each stage's weights."""
    return {
        name: b"".join(value.numpy().tobytes() for _, value in sorted(artifact.weights().items()))
        for name, artifact in run.artifacts.items()
    }


def test_streamed_and_held_images_give_the_same_bits(
    empty_project: Any, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, runs = image_folder(tmp_path / "images"), {}
    for stream in ("no", "yes"):
        source = f"{{folder: {{path: {folder}, stream: {stream}}}}}"
        recipe = empty_project.write(RECIPE.format(source=source, more=", augment: [flip]"))
        runs[stream] = trained(recipe, tmp_path / stream)
    held, streamed = runs["no"], runs["yes"]
    assert [stage.key for stage in held.plan.stages] == [stage.key for stage in streamed.plan.stages]
    assert isinstance(streamed.dataset.train.inputs, ImageStream)
    assert weights(held) == weights(streamed)
    for name in ("teacher", "student"):
        assert held.artifacts[name].metrics == streamed.artifacts[name].metrics


CROP = "[{random_resized_crop: {scale: [0.3, 1]}}, flip]"


def interrupted(recipe: Path, runs: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run "die" in the middle of the step after `steps` of them."""
    original, taken = Trainer._step, 0

    def counted(self: Trainer, index: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        return original(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", counted)
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, runs, checkpoint_every_s=0.0)


@pytest.mark.parametrize("steps", [2, 7])
def test_random_parts_are_the_same_on_any_threads_and_after_an_interruption(
    empty_project: Any, image_folder: Callable[..., Path], tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"{{folder: {{path: {image_folder(tmp_path / 'images')}, stream: yes, size: [8, 8], mode: grey}}}}"
    recipe = empty_project.write(RECIPE.format(source=source, more=f", augment: {CROP}"))
    plain = empty_project.write(RECIPE.format(source=source, more=""), "plain.yaml")
    whole = trained(recipe, tmp_path / "whole")
    monkeypatch.setattr("compress.datasets.stream.THREADS", 1)
    interrupted(recipe, tmp_path / "cut", steps, monkeypatch)  # of 3 steps an epoch, two epochs a stage
    said: list[Any] = []
    resumed = trained(recipe, tmp_path / "cut", notify=said.append)
    assert any("continued at epoch" in event for event in said if isinstance(event, str))
    assert weights(whole) == weights(resumed)
    assert weights(whole) != weights(trained(plain, tmp_path / "plain"))
    # The teacher sees the parts that the student sees: nothing is computed once and kept.
    assert not any("computed once" in event for event in said if isinstance(event, str))


def test_imagenet_goes_all_the_way(empty_project: Any, tmp_path: Path) -> None:
    write_imagenet(tmp_path, rows=32)
    more = f", augment: {CROP}"
    recipe = empty_project.write(RECIPE.format(source="{imagenet: {size: 16}}", more=more) + EXPORT)
    outcome, _ = empty_project.run(recipe, data_root=tmp_path)
    run = trained(recipe, empty_project.runs, tmp_path)
    assert isinstance(run.dataset.test.inputs, ImageStream)
    rows = read_rows(run.folder / "test_rows.npz")
    np.testing.assert_array_equal(rows.inputs, run.dataset.test.inputs[:])
    assert run.result("accuracy.onnx.json")["total"] == 16
    assert run.result("accuracy.onnx.json")["rows_unlike_torch"] == []
    samples = run.bundle().samples()
    np.testing.assert_array_equal(samples.inputs, run.dataset.test.inputs[:])
    assert "data:image/png" in outcome.report.read_text(encoding="utf-8")  # the images that subclasses like best
