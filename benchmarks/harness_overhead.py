"""What the measuring loop adds to a call, on a model of about 10 µs.

    python benchmarks/harness_overhead.py [--rounds 40] [--output benchmarks/results/harness_overhead.json]

Two loops over the same ONNX Runtime session and inputs, in turn:

- bare: `for batch in batches: session.run(names, {name: batch})`, a clock around ten calls at a time; the median of a
  hundred of these, as a single one that the machine interrupts says nothing about the loop.
- harness: `runtime.measure.measure`, which reads the clock before and after every call and keeps each latency.

The figure that counts is the median of the harness's latencies less the bare loop's time a call.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from compress.models import MODELS
from export.bundle import write_bundle
from export.graph import DeployableGraph, InputSignature, Normalization, Preprocess
from export.to_onnx import onnx_from_graph
from runtime.bench import rotation
from runtime.bundle import Bundle, open_bundle
from runtime.device import read_environment
from runtime.files import write_json
from runtime.measure import BenchPlan, garbage_collector_paused, measure
from runtime.runners import open_runner

CALLS, AT_A_TIME = 1000, 10
PLAN = BenchPlan(quick=True, seconds=0.0, calls=CALLS)


def tiny_bundle(folder: Path) -> Bundle:
    """Write a bundle of an MLP with 32 hidden units on 8×8 images, random weights."""
    signature = InputSignature((8, 8, 1))
    torch.manual_seed(0)
    student = MODELS["mlp"](hidden=(32,)).build(signature=signature, outputs=10).eval()
    graph = DeployableGraph(Preprocess(signature, Normalization(1 / 255, (0.0,), (1.0,))), student, 10)
    inputs = np.random.default_rng(0).integers(0, 256, (256, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        logits = graph(torch.from_numpy(inputs)).numpy()  # type: ignore[union-attr]
    write_bundle(
        folder,
        name="tiny",
        stage="student",
        recipe_key="0" * 64,
        classes=10,
        subclasses=1,
        class_names=[str(i) for i in range(10)],
        signature=signature,
        onnx=onnx_from_graph(graph, signature, metadata={}),
        inputs=inputs,
        labels=logits.argmax(1),
        row_ids=np.arange(256),
        logits=logits,
        metrics={"test_accuracy": 1.0},
        batch_sizes=(1,),
    )
    return open_bundle(folder)


def bare_ns(call: Callable[[dict[str, np.ndarray]], object], feeds: list[dict[str, np.ndarray]]) -> float:
    """Return the nanoseconds of a call, by a loop that does nothing else."""
    feed_of = itertools.cycle(feeds)
    taken = []
    for _ in range(CALLS // AT_A_TIME):
        started = time.perf_counter_ns()
        for feed in itertools.islice(feed_of, AT_A_TIME):
            call(feed)
        taken.append((time.perf_counter_ns() - started) / AT_A_TIME)
    return float(np.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle(Path(folder) / "bundle")
        with open_runner(bundle) as runner, garbage_collector_paused():
            batches = rotation(bundle.samples(), 1)
            calls = [runner.prepare(batch) for batch in batches]
            session, names = runner._session, [bundle.outputs[0].name]  # type: ignore[attr-defined]
            feeds = [{bundle.input.name: batch} for batch in batches]
            bare, harness = [], []
            for number in range(-3, options.rounds):
                for loop in ("bare", "harness") if number % 2 else ("harness", "bare"):
                    if loop == "bare":
                        taken = bare_ns(lambda feed: session.run(names, feed), feeds)
                    else:
                        taken = float(np.median(measure(calls, PLAN)[0]))
                    if number >= 0:
                        (bare if loop == "bare" else harness).append(taken / 1000)
    added = np.array(harness) - np.array(bare)
    result = {
        "rounds": options.rounds,
        "calls_a_round": CALLS,
        "bare_us": float(np.median(bare)),
        "harness_us": float(np.median(harness)),
        "added_us": float(np.median(added)),
        "added_us_p10_p90": [float(np.percentile(added, each)) for each in (10, 90)],
        "environment": read_environment().to_json(),
    }
    print(f"bare loop   {result['bare_us']:.2f} us a call")
    print(f"harness     {result['harness_us']:.2f} us, median of its latencies")
    low, high = np.percentile(added, (10, 90))
    print(f"added       {result['added_us']:+.2f} us (10th to 90th percentile of rounds {low:+.2f} to {high:+.2f})")
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
