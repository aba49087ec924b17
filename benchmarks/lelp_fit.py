"""What LELP's fit costs, against one blocked H.T @ H of the same rows and scikit-learn's IncrementalPCA per class.

    python benchmarks/lelp_fit.py [--rows 200000] [--rounds 5] [--output benchmarks/results/lelp_fit.json]

Rows are float32, their spectrum falls as a power of the rank, their labels come in no order. The fit is everything from
the rows to the rotated projections. The product is of float32 blocks that add up in float64, by NumPy, which computes
half of a symmetric product (PyTorch computes both halves: `torch_gram`). Sides run in turn, round by round; figures are
medians of the ratios within a round. The fit comes first once, alone, for its memory. Its result is compared with that
of all rows of a class in float64 at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

from compress.embedding_sums import EmbeddingSums
from compress.lelp import Subclasses, fit, random_rotations, row_span
from runtime.files import write_json

BLOCK = 4096


def random_embeddings(rows: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings (N, D), labels (N,) and a classifier (C, D)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=generator)
    scale = torch.arange(1, width + 1).float() ** -0.5
    mixing = [
        scale[:, None] * torch.linalg.qr(torch.randn(width, width, generator=generator)).Q for _ in range(classes)
    ]
    means = torch.randn(classes, width, generator=generator)
    h = torch.empty(rows, width)
    for start in range(0, rows, BLOCK):
        block = slice(start, start + BLOCK)
        drawn = torch.randn(len(h[block]), width, generator=generator)
        for c in range(classes):
            mine = labels[block] == c
            h[block][mine] = drawn[mine] @ mixing[c] + means[c]
    return h, labels, torch.randn(classes, width, generator=generator)


def lelp_fit(h: Tensor, labels: Tensor, classifier: Tensor, subclasses: int) -> Subclasses:
    sums = EmbeddingSums.of(h, labels, len(classifier))
    return fit(sums, classifier, subclasses, rotations=random_rotations(len(classifier), subclasses, 0))


def gram(h: Tensor) -> np.ndarray:
    rows, total = h.numpy(), np.zeros((h.shape[1], h.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        total += block.T @ block
    return total


def torch_gram(h: Tensor) -> Tensor:
    total = torch.zeros(h.shape[1], h.shape[1], dtype=torch.float64)
    for block in h.split(BLOCK):
        total += block.T @ block
    return total


def incremental_pca(h: Tensor, labels: Tensor, classes: int, subclasses: int) -> list[IncrementalPCA]:
    return [IncrementalPCA(subclasses).fit(h[labels == c].numpy()) for c in range(classes)]


def projector_error(result: Subclasses, h: Tensor, labels: Tensor, classifier: Tensor) -> float:
    """Return the largest Frobenius distance over classes from the projector of the float64 rows."""
    span = row_span(classifier)
    worst = 0.0
    for c, directions in enumerate(result.directions):
        rows = h[labels == c].double()
        rows -= (rows @ span) @ span.T
        rows -= rows.mean(0)
        top = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -len(directions) :]
        worst = max(worst, float((directions.T @ directions - top @ top.T).norm()))
    return worst


def peak_above(run: Callable[[], object]) -> float | None:
    """Return by how many MB the resident set rose above where it stood, at its highest; None where Linux is not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
        before = memory_kb("VmRSS")
    except OSError:
        return None
    run()
    return (memory_kb("VmHWM") - before) / 1000


def memory_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(options: argparse.Namespace) -> dict[str, object]:
    h, labels, classifier = random_embeddings(options.rows, options.width, options.classes)
    sides: dict[str, Callable[[], object]] = {
        "fit": lambda: lelp_fit(h, labels, classifier, options.subclasses),
        "gram": lambda: gram(h),
        "torch_gram": lambda: torch_gram(h),
    }
    memory = peak_above(sides["fit"])
    error = projector_error(lelp_fit(h, labels, classifier, options.subclasses), h, labels, classifier)
    for side in sides.values():
        side()  # warm up
    sides["incremental_pca"] = lambda: incremental_pca(h, labels, options.classes, options.subclasses)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(options.rounds):
        for name in sorted(sides, reverse=bool(round_number % 2)):
            if name != "incremental_pca" or round_number < options.pca_rounds:
                times[name].append(seconds(sides[name]))
        print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    ratios = {
        "fit / gram": [a / b for a, b in zip(times["fit"], times["gram"], strict=True)],
        "fit / torch_gram": [a / b for a, b in zip(times["fit"], times["torch_gram"], strict=True)],
        "incremental_pca / fit": [a / b for a, b in zip(times["incremental_pca"], times["fit"], strict=False)],
    }
    for name, values in ratios.items():
        print(f"{name:22s} {statistics.median(values):7.2f}   {min(values):.2f} – {max(values):.2f}")
    print(f"memory beyond the rows: {'not known' if memory is None else f'{memory:.0f} MB'}")
    print(f"projector error: {error:.1e}")
    return {
        "rows": options.rows,
        "width": options.width,
        "classes": options.classes,
        "subclasses": options.subclasses,
        "seconds": times,
        "ratios": ratios,
        "median_ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "memory_mb": memory,
        "projector_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--subclasses", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pca-rounds", type=int, default=3, help="rounds that run the slow IncrementalPCA too")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": str(torch.__version__),
    }
    result = {"benchmark": "lelp_fit", "machine": machine, **measure(options)}
    if options.output:
        write_json(options.output, json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
