"""How fast Criteo's click log is read, and that it takes the same memory whatever its length.

    python benchmarks/criteo_reader.py [--rows 100000 300000 1000000] [--output benchmarks/results/criteo_reader.json]

Rows are generated in the file's true form: counts, negative and missing ones among them, and 32-bit values of which
few are frequent. Each measurement is a process of its own on the first rows of the same file. `labels` is the first
reading (hash, and a bit a row), `rows` the second one, up to the finished entry of the cache with its checksum; the
rates are those of both together, by the clock and by the processor time of the one thread that works (the difference
is other work on the machine). Peaks are of resident memory, beyond what it was before the first reading; `loaded` is
the peak once the data set is loaded from there, with its labels and row ids (16 bytes a row that is kept). `pyarrow` is
the rate at which pyarrow.csv alone parses the same file in one thread, batch by batch, without making anything of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv

from compress.datasets import DataSpec, load
from compress.datasets.cache import streamed_rows
from compress.datasets.criteo import Criteo
from runtime.device import read_environment
from runtime.files import write_json

NUMBERS, CATEGORIES = 13, 26
BLOCK = 20_000


def write_log(path: Path, rows: int) -> None:
    draw = np.random.default_rng(0)
    # Some columns have few values and some millions, as in the true file.
    spread = np.geomspace(4, 4e6, CATEGORIES)
    salts = draw.integers(0, 2**32, CATEGORIES, dtype=np.uint64)
    with path.open("w", encoding="ascii") as file:
        for first in range(0, rows, BLOCK):
            count = min(BLOCK, rows - first)
            clicks = (draw.random(count) < 0.256).astype(int)
            numbers = (draw.lognormal(1.5, 2.5, (count, NUMBERS)) - 2).astype(np.int64)
            ranks = (spread ** draw.random((count, CATEGORIES))).astype(np.uint64)
            values = (ranks * np.uint64(0x9E3779B1) + salts) & np.uint64(0xFFFFFFFF)
            missing = draw.random((count, NUMBERS + CATEGORIES)) < 0.12
            for label, row, ids, gone in zip(clicks, numbers.tolist(), values.tolist(), missing.tolist(), strict=True):
                fields = [*map(str, row), *map("{:08x}".format, ids)]
                shown = ["" if none else field for field, none in zip(fields, gone, strict=True)]
                file.write("\t".join([str(label), *shown]) + "\n")


def memory_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return how long `run` takes, by the clock and by the processor."""
    started, worked = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - worked


def measure_here(root: Path, rows: int, balance: bool) -> dict[str, Any]:
    """Read the first `rows` rows in this process, which has read nothing before."""
    source = Criteo(first_rows=rows, balance=balance)
    file = source.file(root / "criteo")
    before = memory_kb("VmRSS")
    with tempfile.TemporaryDirectory(dir=root) as cache:
        labels = seconds(lambda: file.log.labels)
        shapes = {split: (count, file.columns.length) for split, count in file.rows.items()}
        reading = seconds(
            lambda: streamed_rows(
                Path(cache), file._cache_key(), shapes, np.int32, lambda append: file.log.write(append, 0)
            )
        )
        peak = memory_kb("VmHWM") - before
        spec = DataSpec.model_validate({"source": {"criteo": {"first_rows": rows, "balance": balance}}})
        load(spec, seed=0, data_root=root, cache=cache)
        loaded = memory_kb("VmHWM") - before
    return {
        "rows": file.log.labels.lines,
        "kept": sum(file.rows.values()),
        "labels_seconds": labels[0],
        "rows_seconds": reading[0],
        "rows_per_s": rows / (labels[0] + reading[0]),
        "rows_per_cpu_s": rows / (labels[1] + reading[1]),
        "peak_mb": peak / 1000,
        "loaded_peak_mb": loaded / 1000,
    }


def measure(root: Path, rows: int, balance: bool, rounds: int) -> dict[str, Any]:
    """Return the medians over `rounds` fresh processes, and every rate and peak."""
    command = [sys.executable, __file__, "--here", str(root), "--rows", str(rows), *([] if balance else ["--all"])]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(rounds)
    ]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {"balance": balance, **medians, "runs": runs}


def parse_with_pyarrow(path: Path) -> int:
    names = ["label", *(f"I{i + 1}" for i in range(NUMBERS)), *(f"C{i + 1}" for i in range(CATEGORIES))]
    types = {name: pyarrow.string() if name.startswith("C") else pyarrow.int32() for name in names}
    rows = 0
    with pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=names),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    ) as reader:
        for batch in reader:
            rows += len(batch)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.here, options.rows[0], not options.all)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / "criteo" / "train.txt"
        path.parent.mkdir()
        write_log(path, max(options.rows))
        size = path.stat().st_size
        print(f"{max(options.rows):,} rows, {size:,} bytes, {size / max(options.rows):.0f} a row", file=sys.stderr)
        print("     rows       kept     rows/s  rows/CPU s   labels s   rows s   peak MB   loaded MB")
        results = []
        for balance in (True, False):
            for rows in options.rows:
                result = measure(root, rows, balance, options.rounds)
                results.append(result)
                print(
                    f"{result['rows']:9,}  {result['kept']:9,.0f}"
                    f"  {result['rows_per_s']:9,.0f}  {result['rows_per_cpu_s']:10,.0f}"
                    f"  {result['labels_seconds']:9.2f}  {result['rows_seconds']:7.2f}"
                    f"  {result['peak_mb']:8.1f}  {result['loaded_peak_mb']:10.1f}",
                    flush=True,
                )
        times = [seconds(lambda: parse_with_pyarrow(path)) for _ in range(options.rounds)]
    parsed = {
        name: statistics.median(max(options.rows) / each[i] for each in times)
        for i, name in enumerate(("rows_per_s", "rows_per_cpu_s"))
    }
    print(f"pyarrow.csv, parsing alone: {parsed['rows_per_s']:,.0f} rows/s, {parsed['rows_per_cpu_s']:,.0f} rows/CPU s")
    if options.output:
        machine = {
            **read_environment().to_json(),
            "load_average": os.getloadavg(),
            "numpy": np.__version__,
            "pyarrow": pyarrow.__version__,
        }
        result = {
            "benchmark": "criteo_reader",
            "machine": machine,
            "file_bytes": size,
            "results": results,
            "pyarrow_csv": parsed,
        }
        write_json(options.output, json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
