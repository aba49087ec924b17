"""What streaming images costs: peak memory and rows per second of an epoch, decoded from JPEG files to 224×224.

    python benchmarks/streaming.py [--rows 5000 20000] [--threads 1 2] [--output benchmarks/results/streaming.json]

Each case is a process of its own, which opens generated 64×64 JPEGs as `imagenet` and visits every training row once,
in random batches of 256 as training does. "held" is what the decoded rows would take, "before" the peak of the process
when the data is open and every image is checked; torch alone is most of it. Rows per CPU second tell more than rows per
second where other work shares the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.datasets import DataSpec, load, stream
from compress.datasets.augment import in_decoding
from compress.rows import Rows, epoch_order
from runtime.device import read_environment
from runtime.files import write_json

BATCH = 256
CLASSES = 10
DATA: dict[str, Any] = {"source": "imagenet", "validation": 0.0, "augment": ("random_resized_crop",)}


def write_images(root: Path, rows: int) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", rows), ("val", CLASSES)):
        for row in range(count):
            path = root / "imagenet" / split / f"n{row % CLASSES:08d}" / f"{row}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path, quality=90)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def epoch(root: Path, threads: int, crop: bool) -> dict[str, Any]:
    """Visit every row once, and say what it took."""
    stream.THREADS = threads
    spec = DataSpec.model_validate(DATA)
    started = time.perf_counter()
    train = load(spec, seed=0, data_root=root).train
    opened_s = time.perf_counter() - started
    rows = Rows(train, torch.device("cpu"))
    before, spec_crop = peak_mb(), in_decoding(spec.augment)
    cut = spec_crop.in_epoch(seed=0, epoch=0) if spec_crop is not None and crop else None
    started, seen = time.perf_counter(), 0
    cpu = time.process_time()
    for inputs, labels in rows.batches(epoch_order(len(rows), seed=0, epoch=0, device=rows.device).split(BATCH), cut):
        assert inputs.shape[1:] == (224, 224, 3)
        seen += len(labels)
    assert seen == len(rows)
    seconds = time.perf_counter() - started
    return {
        "rows": seen,
        "threads": threads,
        "crop": "random" if cut is not None else "centre",
        "held_mb": train.inputs.nbytes / 2**20,
        "before_mb": before,
        "peak_mb": peak_mb(),
        "opened_and_checked_s": opened_s,
        "seconds": seconds,
        "rows_per_s": seen / seconds,
        "rows_per_cpu_s": seen / (time.process_time() - cpu),
    }


def measure(rows: Sequence[int], threads: Sequence[int]) -> list[dict[str, Any]]:
    cases = []
    for count in rows:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), count)
            for number in threads:
                for crop in ("centre", "random"):
                    command = [sys.executable, __file__, "--case", folder, str(number), crop]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    cases.append(json.loads(done.stdout))
                    print(line(cases[-1]), flush=True)
    return cases


def line(case: dict[str, Any]) -> str:
    return (
        f"{case['rows']:7,} rows  {case['threads']} thread(s)  {case['crop']:6s}  held {case['held_mb']:6,.0f} MB   "
        f"before {case['before_mb']:4,.0f} MB   peak {case['peak_mb']:4,.0f} MB   {case['rows_per_s']:6,.0f} rows/s   "
        f"{case['rows_per_cpu_s']:6,.0f} rows/CPU second"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        folder, threads, crop = options.case
        print(json.dumps(epoch(Path(folder), int(threads), crop == "random")))
        return
    cases = measure(options.rows, options.threads)
    machine = {**read_environment().to_json(), "torch": str(torch.__version__), "pillow": Image.__version__}
    if options.output:
        write_json(options.output, {"benchmark": "streaming", "machine": machine, "batch": BATCH, "cases": cases})


if __name__ == "__main__":
    main()
