"""What the training loop costs over a bare PyTorch loop doing the same steps.

    python benchmarks/train_overhead.py [--rounds 15] [--output benchmarks/results/train_overhead.json]

Both sides train the same model on the same random 28×28 images, in turn, round by round; the figure is the ratio of the
median times. The bare loop is what one would write by hand: gather, scale, forward, loss, backward, step, with the
epoch's mean loss as its only bookkeeping, and the teacher's logits computed beforehand where there is a teacher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.datasets import Dataset, Split
from compress.kinds import as_recipe_value
from compress.models import MODELS
from compress.objectives import OBJECTIVES, Heads
from compress.optimization import AdamSpec
from compress.plan import StagePlan
from compress.recipe import StageSpec, TrainSpec
from compress.teacher import Teacher, frozen
from compress.train import Trainer
from export.graph import InputSignature, Normalization
from runtime.device import read_environment
from runtime.files import write_json

CLASSES, SUBCLASSES = 2, 5
CASES = {
    "subclass teacher (mnist_cnn)": ("mnist_cnn", {}, 6_000, 256),
    "subclass student (mlp 784-784)": ("mlp", {"hidden": (784, 784), "init": "glorot"}, 30_000, 256),
    "tiny student (mlp 32, batch 64)": ("mlp", {"hidden": (32,), "init": "glorot"}, 30_000, 64),
}


def random_dataset(rows: int) -> Dataset:
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        return Split(images, rng.integers(0, CLASSES, count), None, np.arange(count))

    signature, scaling = InputSignature((28, 28, 1)), Normalization(1 / 255, (0.0,), (1.0,))
    return Dataset("random", ("a", "b"), None, signature, scaling, "0", split(rows), split(0), split(10))


def stage_plan(model: str, options: dict[str, object], batch: int, with_teacher: bool) -> StagePlan:
    terms = (
        (OBJECTIVES["kl"](weight=0.5), OBJECTIVES["ce"](weight=0.5))
        if with_teacher
        else (OBJECTIVES["ce"](), OBJECTIVES["subclass_auxiliary"]())
    )
    train = TrainSpec(epochs=1, batch_size=batch, drop_last=True, optimizer=AdamSpec(lr=1e-3))
    spec = StageSpec(
        model={model: options},
        subclasses=SUBCLASSES,
        objective=tuple(map(as_recipe_value, terms)),
        train=train,
    )
    return StagePlan(
        name="stage",
        key="benchmark",
        seed=0,
        spec=spec,
        train=train,
        heads=Heads(CLASSES, SUBCLASSES, SUBCLASSES if with_teacher else None),
        signature=InputSignature((28, 28, 1)),
        augment=(),
        teachers=("teacher",) if with_teacher else (),
        init_from=None,
        parameters=0,
        expect=None,
        resolved={},
    )


def run_trainer(stage: StagePlan, dataset: Dataset, teacher: Teacher | None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            stage,
            dataset,
            teacher,
            initial=None,
            device=torch.device("cpu"),
            folder=Path(folder),
            notify=lambda event: None,
            checkpoint_every_s=1e9,
        )
        started = time.perf_counter()
        trainer.run()
        return time.perf_counter() - started


def run_bare(stage: StagePlan, dataset: Dataset, teacher: Teacher | None) -> float:
    torch.manual_seed(0)
    inputs, labels = torch.from_numpy(dataset.train.inputs), torch.from_numpy(dataset.train.labels)
    model = stage.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = stage.train.batch_size
    started = time.perf_counter()
    taught = bare_logits(teacher, inputs) if teacher else None
    order = torch.randperm(len(labels))
    total, steps = 0.0, len(labels) // batch
    model.train()
    for step in range(steps):
        index = order[step * batch : (step + 1) * batch]
        x = inputs[index].permute(0, 3, 1, 2).float() / 255
        loss = bare_loss(model(x).logits, None if taught is None else taught[index], labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item()
    assert np.isfinite(total / steps)
    return time.perf_counter() - started


@torch.no_grad()
def bare_logits(teacher: Teacher, inputs: Tensor) -> Tensor:
    return torch.cat([teacher.model(x.permute(0, 3, 1, 2).float() / 255).logits for x in inputs.split(1000)])


def bare_loss(z: Tensor, taught: Tensor | None, labels: Tensor) -> Tensor:
    cross_entropy = F.cross_entropy(z.view(-1, CLASSES, SUBCLASSES).logsumexp(2), labels)
    if taught is not None:
        divergence = F.kl_div(
            (z / 4).log_softmax(1), (taught / 4).log_softmax(1), log_target=True, reduction="batchmean"
        )
        return 0.5 * 16 * divergence + 0.5 * cross_entropy
    v = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-9).sqrt()
    similarity = v @ v.T / z.shape[1]
    return cross_entropy + similarity.logsumexp(1).mean() - 1 - float(np.log(len(z)))


def measure(rounds: int) -> list[dict[str, object]]:
    results = []
    for name, (model, options, rows, batch) in CASES.items():
        dataset = random_dataset(rows)
        stage = stage_plan(model, options, batch, with_teacher=model != "mnist_cnn")
        teacher = (
            frozen(MODELS["mlp"]().build(signature=InputSignature((28, 28, 1)), outputs=10), SUBCLASSES)
            if stage.teacher
            else None
        )
        sides: dict[str, Callable[..., float]] = {"trainer": run_trainer, "bare": run_bare}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for round_number in range(rounds + 1):
            for side in sorted(sides, reverse=bool(round_number % 2)):
                seconds = sides[side](stage, dataset, teacher)
                if round_number:  # the first round warms up
                    times[side].append(seconds)
        pairs = [a / b for a, b in zip(times["trainer"], times["bare"], strict=True)]
        ratio = statistics.median(times["trainer"]) / statistics.median(times["bare"])
        results.append(
            {
                "case": name,
                "ratio_of_medians": ratio,
                "pair_ratios": pairs,
                "seconds": times,
                "steps": rows // batch,
            }
        )
        print(
            f"{name:34s} ratio {ratio:.3f}   pairs {min(pairs):.3f} – {max(pairs):.3f}   {rounds} rounds",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    machine = {**read_environment().to_json(), "torch": str(torch.__version__)}
    result = {"benchmark": "train_overhead", "machine": machine, "cases": measure(options.rounds)}
    if options.output:
        write_json(options.output, json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
