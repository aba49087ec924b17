"""What the device side takes beside a plain ONNX Runtime script: start, memory, size.

    python benchmarks/footprint.py BUNDLE [--rounds 15] [--output benchmarks/results/footprint.json]

Programs, each in fresh processes, all of them in turn; medians of wall time, of processor time (which a busy machine
changes little) and of peak resident memory:

- nothing: an interpreter that does nothing.
- onnxruntime: imports numpy and onnxruntime.
- plain: the same, then makes a session of the bundle's model and runs one row.
- agent: `accuracy BUNDLE --limit 1` of `edgefold-agent.pyz`, unpacked as it is for a run on a device, by a process that
  is not the first: it checks every file of the bundle, loads the model and runs one row.
- import: imports everything of the agent that the last one needs, and does nothing.
- first: unpacks the agent, then does as `agent` does; all of it is compiled.
- file: the same of `edgefold-agent.pyz` as it is, which Python compiles anew each time.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compress.agent import agent_bytes
from runtime.bundle import open_bundle
from runtime.device import read_environment
from runtime.files import write_json

PLAIN = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
session.run(None, {{"input": numpy.load({row!r})}})
"""
IMPORT = """
import sys
sys.path.insert(0, {agent!r})
import runtime.__main__, runtime.accuracy, runtime.bundle, runtime.rows, runtime.runners, runtime.display
"""

AGENT = """
import runpy, sys
sys.argv = [{agent!r}, "accuracy", {bundle!r}, "--limit", "1"]
try:
    runpy.run_path({agent!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
UNPACK = """
import zipfile
with zipfile.ZipFile({file!r}) as archive:
    archive.extractall({agent!r})
"""
# What a parent reads of a child's memory after its end holds the parent's own, from before the child was a program.
PEAK = """
with open("/proc/self/status") as status, open("peak", "w") as peak:
    peak.write(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle.resolve())
    with tempfile.TemporaryDirectory() as folder:
        file, row = Path(folder) / "edgefold-agent.pyz", Path(folder) / "row.npy"
        agent, fresh = Path(folder) / "agent", Path(folder) / "fresh"
        file.write_bytes(agent_bytes())
        exec(UNPACK.format(file=str(file), agent=str(agent)))
        np.save(row, bundle.samples().inputs[:1])
        programs = {
            "nothing": ["-c", "pass"],
            "onnxruntime": ["-c", "import numpy, onnxruntime"],
            "plain": ["-c", PLAIN.format(model=str(bundle.file_of("onnx")), row=str(row))],
            "import": ["-c", IMPORT.format(agent=str(agent))],
            "agent": ["-c", AGENT.format(agent=str(agent), bundle=str(bundle.path))],
            "first": [
                "-c",
                UNPACK.format(file=str(file), agent=str(fresh))
                + AGENT.format(agent=str(fresh), bundle=str(bundle.path)),
            ],
            "file": ["-c", AGENT.format(agent=str(file), bundle=str(bundle.path))],
        }
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in programs}
        for number in range(-1, options.rounds):
            for name in sorted(programs, reverse=bool(number % 2)):
                shutil.rmtree(fresh, ignore_errors=True)
                taken = run(programs[name], Path(folder))
                if number >= 0:
                    figures[name].append(taken)
        medians = {name: np.median(np.array(each), axis=0).tolist() for name, each in figures.items()}
        size = file.stat().st_size
    for name, (wall_ms, processor_ms, megabytes) in medians.items():
        print(f"{name:12} {wall_ms:7.1f} ms {processor_ms:7.1f} ms of a processor {megabytes:7.1f} MB")
    print(f"edgefold-agent.pyz {size:,} bytes")
    if options.output:
        result = {
            "bundle": bundle.name,
            "rounds": options.rounds,
            **{
                key: {name: each[place] for name, each in medians.items()}
                for place, key in enumerate(("wall_ms", "processor_ms", "peak_resident_mb"))
            },
            "agent_bytes": size,
            "environment": read_environment().to_json(),
        }
        write_json(options.output, result)


def run(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Run Python; return its wall time and its processor time in ms, and its peak resident memory in MB."""
    option, program = arguments
    # A container that keeps Python from writing what it compiled is no device.
    left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [sys.executable, option, f"{program}\n{PEAK}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, env=environment, check=True)
    taken = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * taken, 1000 * processor, int((folder / "peak").read_text()) / 1e3


if __name__ == "__main__":
    main()
