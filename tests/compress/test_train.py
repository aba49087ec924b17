"""The training loop: resumes to the bit, refuses NaN, leaves the teacher alone, reports what it minimised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.checkpoint import newest_checkpoint
from compress.datasets import Dataset, DataSpec, Split
from compress.layers.watch import BinaryWatch
from compress.objectives import Heads, Objective, Preparation
from compress.plan import StagePlan
from compress.progress import Progress
from compress.recipe import StageSpec, TrainSpec
from compress.rows import epoch_order, steps_per_epoch
from compress.teacher import Teacher, frozen
from compress.train import Trained, Trainer
from export.fold import fold_logits
from export.graph import InputSignature, Normalization, Preprocess
from runtime.errors import TrainingError

CLASSES, SUBCLASSES = 3, 2


class InterruptedRunError(Exception):
    pass


def dataset(rows: int = 70) -> Dataset:
    rng = np.random.default_rng(0)

    def split(count: int, first_id: int) -> Split:
        labels = rng.integers(0, CLASSES, count)
        images = rng.integers(0, 100, (count, 8, 8, 1)) + 50 * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels, None, np.arange(first_id, first_id + count))

    scaling = Normalization(1 / 255, (0.4,), (0.3,))
    return Dataset(
        "random",
        ("a", "b", "c"),
        None,
        InputSignature((8, 8, 1)),
        scaling,
        "0",
        split(rows, 1000),
        split(30, 0),
        split(30, 0),
    )


SMALL_CNN = {"small_cnn": {"widths": (4, 8)}}
W2A4 = {"weights": 2, "activations": 4}
BINARY_CNN = {"binary_cnn": {"widths": (4, 8), "hidden": 8, "ste": "tanh"}}


def stage(
    *,
    teacher: bool = False,
    augment: tuple[Any, ...] = (),
    seed: int = 0,
    model: dict[str, Any] = SMALL_CNN,
    quantize: dict[str, Any] | None = None,
    **train: Any,
) -> StagePlan:
    spec = StageSpec.model_validate(
        {
            "model": model,
            "quantize": quantize,
            "subclasses": SUBCLASSES,
            "objective": ({"kl": {"weight": 0.5}}, "ce")
            if teacher
            else ("ce", {"subclass_auxiliary": {"weight": 0.1}}),
        }
    )
    settings = TrainSpec.model_validate({"epochs": 4, "batch_size": 16, "optimizer": {"adam": {"lr": 0.01}}, **train})
    heads = Heads(CLASSES, SUBCLASSES, SUBCLASSES if teacher else None)
    return StagePlan(
        name="stage", key="key", seed=seed, spec=spec, train=settings, heads=heads, signature=InputSignature((8, 8, 1)),
        augment=augment, teachers=("teacher",) if teacher else (), init_from=None, parameters=0, expect=None,
        resolved={},
    )  # fmt: skip


def a_teacher() -> Teacher:
    torch.manual_seed(5)
    return frozen(stage().build_model(), SUBCLASSES)


def train(
    plan: StagePlan,
    folder: Path,
    *,
    notify: Callable[[Progress | str], None] = lambda event: None,
    teacher: Teacher | None = None,
    device: str = "cpu",
) -> Trained:
    trainer = Trainer(
        plan,
        dataset(),
        teacher,
        initial=None,
        device=torch.device(device),
        folder=folder,
        notify=notify,
        checkpoint_every_s=0.0,
    )
    return trainer.run()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the process "die" in the middle of the step after `steps` of them."""
    taken = 0
    original = Trainer._step

    def counted(self: Trainer, index: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        nonlocal taken
        if taken == steps:
            raise InterruptedRunError
        taken += 1
        return original(self, index, *rest)

    monkeypatch.setattr(Trainer, "_step", counted)


def equal_weights(a: Trained, b: Trained) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


AUGMENT = {"source": "digits", "augment": ({"crop": {"padding": 1}}, "flip")}


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
@pytest.mark.parametrize("kind", ["plain", "taught", "augmented", "best", "binary", "quantized"])
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, steps: int
) -> None:
    augment = DataSpec.model_validate(AUGMENT).augment if kind == "augmented" else ()
    model = BINARY_CNN if kind == "binary" else SMALL_CNN
    plan = stage(
        teacher=kind == "taught",
        augment=augment,
        model=model,
        quantize=W2A4 if kind == "quantized" else None,
        select="best" if kind == "best" else "last",
    )
    teacher = a_teacher() if kind == "taught" else None
    whole = train(plan, tmp_path / "whole", teacher=teacher)
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        with pytest.raises(InterruptedRunError):
            train(plan, tmp_path / "cut", teacher=teacher)
    resumed = train(plan, tmp_path / "cut", teacher=teacher)
    assert resumed.resumed_at_step == steps
    assert equal_weights(whole, resumed)
    untimed = [[{**record, "seconds": 0, "rows_per_s": 0} for record in run.records] for run in (whole, resumed)]
    assert untimed[0] == untimed[1]


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    first, again = train(stage(), tmp_path / "a"), train(stage(), tmp_path / "b")
    other = train(stage(seed=1), tmp_path / "c")
    assert equal_weights(first, again)
    assert not equal_weights(first, other)


def test_training_learns_what_can_be_learned(tmp_path: Path) -> None:
    trained = train(stage(epochs=30), tmp_path)
    assert trained.records[-1]["validation_accuracy"] > 0.9
    assert trained.records[-1]["losses"]["ce"] < trained.records[0]["losses"]["ce"] / 2


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"channels_last": True},
        {"clip_norm": 0.5},
        {"quantize": W2A4},
        {"quantize": W2A4, "precision": "bf16"},
    ],
    ids=str,
)
def test_training_options_still_learn(tmp_path: Path, options: dict[str, Any]) -> None:
    trained = train(stage(epochs=30, **options), tmp_path)
    assert trained.records[-1]["validation_accuracy"] > 0.9
    assert {value.dtype for value in trained.model.parameters()} == {torch.float32}


def test_clipping_bounds_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.Adam.step

    def recorded(self: torch.optim.Adam, *arguments: Any) -> Any:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    train(stage(clip_norm=0.01), tmp_path)
    assert len(norms) == 20
    assert max(norms) <= 0.01 * 1.001


def test_initial_weights_are_those_of_the_earlier_stage(tmp_path: Path) -> None:
    earlier = train(stage(), tmp_path / "earlier").model.state_dict()
    trainer = Trainer(
        stage(seed=7),
        dataset(),
        None,
        initial=earlier,
        device=torch.device("cpu"),
        folder=tmp_path,
        notify=lambda event: None,
        checkpoint_every_s=1e9,
    )
    assert all(torch.equal(value, earlier[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(InterruptedRunError):
            train(stage(epochs=30), tmp_path, device="cuda")
    trained = train(stage(epochs=30), tmp_path, device="cuda")
    assert trained.resumed_at_step == 7
    assert trained.records[-1]["validation_accuracy"] > 0.9


def test_the_recorded_loss_is_the_mean_over_rows(tmp_path: Path) -> None:
    """One batch an epoch: the first record is the objective of the untouched model on all rows."""
    plan = stage(epochs=1, batch_size=70)
    trainer = Trainer(
        plan,
        dataset(),
        None,
        initial=None,
        device=torch.device("cpu"),
        folder=tmp_path,
        notify=lambda event: None,
        checkpoint_every_s=1e9,
    )
    order = epoch_order(70, seed=0, epoch=0, device=torch.device("cpu"))
    inputs, labels = trainer.train_rows.gather(order)
    with torch.no_grad():
        expected = trainer.objective(trainer.model.train()(trainer.preprocess(inputs)), None, labels)
    record = train(plan, tmp_path / "run").records[0]
    assert record["losses"]["total"] == pytest.approx(float(expected.total), rel=1e-5)
    assert record["losses"]["ce"] == pytest.approx(float(expected.terms[0]), rel=1e-5)
    assert record["losses"]["total"] == pytest.approx(
        record["losses"]["ce"] + 0.1 * record["losses"]["subclass_auxiliary"], rel=1e-5
    )


def test_a_diverging_run_stops_with_the_rows_and_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._step
    calls = 0

    def poisoned(self: Trainer, index: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls += 1
        losses = original(self, index, *rest)
        return tuple(value * float("nan") for value in losses) if calls == 8 else losses

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(TrainingError, match="not finite in epoch 2, step 3") as caught:
        train(stage(), tmp_path)
    record = json.loads((tmp_path / "diverged.json").read_text())
    expected = epoch_order(70, seed=0, epoch=1, device=torch.device("cpu"))[32:48] + 1000
    assert record["row_ids"] == expected.tolist()
    assert "clip_norm" in caught.value.remedy
    checkpoint, damaged = newest_checkpoint(tmp_path / "checkpoint", key="key")
    assert checkpoint is not None
    assert checkpoint.step == 7
    assert not damaged


def test_a_learning_rate_that_explodes_is_caught(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        train(stage(epochs=50, optimizer={"sgd": {"lr": 1e30}}), tmp_path)


def test_the_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    teacher = a_teacher()
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    train(stage(teacher=True, augment=()), tmp_path, teacher=teacher)
    assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())
    assert not teacher.model.training


def test_best_takes_the_epoch_with_the_best_validation_accuracy(tmp_path: Path) -> None:
    trained = train(stage(select="best", epochs=8), tmp_path)
    accuracies = [record["validation_accuracy"] for record in trained.records]
    assert trained.epoch == accuracies.index(max(accuracies)) + 1


def test_the_log_has_one_line_an_epoch(tmp_path: Path) -> None:
    trained = train(stage(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines == [{"stage": "stage", **record} for record in trained.records]


def test_the_caller_keeps_its_threads_and_gets_progress(tmp_path: Path) -> None:
    events: list[Progress | str] = []
    train(stage(), tmp_path, notify=events.append)
    ended = [event for event in events if isinstance(event, Progress) and event.epoch_ended]
    assert [event.epoch for event in ended] == [1, 2, 3, 4]
    assert ended[-1].fraction == 1.0
    assert set(ended[0].losses) == {"total", "ce", "subclass_auxiliary"}


def test_batches_that_cannot_be_filled_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="70 training rows make no batch of 100"):
        train(stage(batch_size=100, drop_last=True), tmp_path)


@pytest.mark.parametrize(
    ("rows", "batch", "drop_last", "steps"),
    [(70, 16, False, 5), (70, 16, True, 4), (64, 16, False, 4), (3, 16, False, 1)],
)
def test_steps_per_epoch(rows: int, batch: int, drop_last: bool, steps: int) -> None:
    assert steps_per_epoch(rows, batch, drop_last) == steps


def test_every_epoch_visits_every_row_once_in_another_order() -> None:
    orders = [epoch_order(50, seed=3, epoch=epoch, device=torch.device("cpu")) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[2], epoch_order(50, seed=3, epoch=2, device=torch.device("cpu")))


def test_a_run_that_stops_early_has_the_learning_rates_of_the_whole_one(tmp_path: Path) -> None:
    whole = train(stage(schedule="cosine"), tmp_path / "whole")
    early = train(stage(schedule="cosine", stop_after=2), tmp_path / "early")
    assert [record["lr"] for record in early.records] == [record["lr"] for record in whole.records[:2]]
    assert [record["losses"] for record in early.records] == [record["losses"] for record in whole.records[:2]]
    assert early.epoch == 2


def test_a_test_curve_is_noted_and_changes_nothing(tmp_path: Path) -> None:
    without = train(stage(), tmp_path / "without")
    noted = train(stage(test_curve=True), tmp_path / "with")
    assert equal_weights(without, noted)
    assert [record["test_accuracy"] for record in without.records] == [None] * 4
    preprocess = Preprocess(dataset().signature, dataset().normalization)
    logits = noted.model(preprocess(torch.from_numpy(dataset().test.inputs))).logits
    correct = fold_logits(logits, SUBCLASSES).argmax(1).numpy() == dataset().test.labels
    assert noted.records[-1]["test_accuracy"] == pytest.approx(correct.mean())


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ((), "teacher outputs of 70 rows computed once"),
        (({"crop": {"padding": 1}},), None),
        (("flip",), "70 rows in 2 views"),
    ],
)
def test_teacher_outputs_are_computed_once_where_there_are_few_views_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: tuple[Any, ...], said: str | None
) -> None:
    specs = DataSpec.model_validate({"source": "digits", "augment": augment}).augment
    plan, messages = stage(teacher=True, augment=specs), []
    kept = train(plan, tmp_path / "kept", teacher=a_teacher(), notify=messages.append)
    assert [said in message for message in messages if isinstance(message, str)] == ([True] if said else [])
    monkeypatch.setattr("compress.train.MOST_VIEWS", 0)
    monkeypatch.setattr("compress.teacher.TeacherOutputs.precompute", lambda *_: False)
    asked = train(plan, tmp_path / "asked", teacher=a_teacher())
    for ours, theirs in zip(kept.records, asked.records, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "augment", "kept"),
    [({}, (), True), ({"precision": "bf16"}, (), False), ({}, ("flip",), False)],
)
def test_terms_prepare_with_kept_outputs_only_where_these_are_of_the_rows_themselves_in_full_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], augment: tuple[Any, ...], kept: bool
) -> None:
    prepared: list[Preparation] = []
    monkeypatch.setattr(Objective, "prepare", lambda self, preparation: prepared.append(preparation))
    specs = DataSpec.model_validate({"source": "digits", "augment": augment}).augment
    train(stage(teacher=True, augment=specs, epochs=1, **options), tmp_path, teacher=a_teacher())
    assert [preparation.kept is not None for preparation in prepared] == [kept]


def test_binary_layers_are_followed_from_epoch_to_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    begin_epoch = BinaryWatch.begin_epoch

    def noted(self: BinaryWatch, progress: float, *, resumed: bool) -> None:
        begin_epoch(self, progress, resumed=resumed)
        seen.append((progress, {layer.progress for layer in self.latent.values()}))

    monkeypatch.setattr(BinaryWatch, "begin_epoch", noted)
    trained = train(stage(model=BINARY_CNN, epochs=4, stop_after=3), tmp_path)
    # The share of the whole schedule, as for the rate of learning.
    assert seen == [(0.0, {0.0}), (0.25, {0.25}), (0.5, {0.5})]
    for record in trained.records:
        assert 0 < record["binary"]["flipped"] < 0.5
        assert record["binary"]["channels"] == 4 + 8 * 2 * 2
        assert set(record["binary"]["layers"]) == {"stages.1", "hidden"}
    assert "binary" not in train(stage(epochs=1), tmp_path / "other").records[0]


def test_latent_weights_do_not_decay(tmp_path: Path) -> None:
    decaying = {"optimizer": {"sgd": {"lr": 1e-9, "momentum": 0.0, "weight_decay": 1e6, "decay": "weights"}}}
    before = stage(model=BINARY_CNN)
    torch.manual_seed(before.seed)
    start = before.build_model().state_dict()
    end = train(stage(model=BINARY_CNN, epochs=1, **decaying), tmp_path).model.state_dict()
    assert torch.allclose(end["hidden.weight"], start["hidden.weight"], atol=1e-5)
    assert torch.allclose(end["stages.1.weight"], start["stages.1.weight"], atol=1e-5)
    # Five steps of 1 - 1e-3.
    assert torch.allclose(end["classifier.weight"], start["classifier.weight"] * 0.999**5, atol=1e-5)
