"""A run killed at random moments and started again ends in the same bytes as one that was never stopped.

EDGEFOLD_KILLS sets the number of kills (3 when unset), EDGEFOLD_KILL_RECIPE the recipe (a small one when unset).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("EDGEFOLD_KILLS", "3"))

RECIPE = """\
name: killed
data: {source: digits, relabel: {modulo: 2}, augment: [{crop: {padding: 1}}]}
train: {epochs: 12, batch_size: 64}
stages:
  teacher:
    model: {small_cnn: {widths: [8, 16]}}
    subclasses: 2
    objective: [ce, subclass_auxiliary]
  student:
    model: {mlp: {hidden: [16], dropout: 0.1}}
    subclasses: 2
    teacher: teacher
    objective: [kl, ce]
export: {stage: student}
"""


def start(recipe: str, runs: Path) -> subprocess.Popen[bytes]:
    # A checkpoint at nearly every step, so that most kills fall between or into writes.
    command = [
        sys.executable,
        "-m",
        "compress",
        "export",
        recipe,
        "--runs",
        str(runs),
        "--device",
        "cpu",
        "--checkpoint-every",
        "0.05",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()


def exported(runs: Path) -> bytes:
    (model,) = runs.rglob("bundle/model.onnx")
    return model.read_bytes()


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    recipe = os.environ.get("EDGEFOLD_KILL_RECIPE", "")
    if not recipe:
        (tmp_path / "killed.yaml").write_text(RECIPE)
        recipe = str(tmp_path / "killed.yaml")
    begun = time.monotonic()
    finish(start(recipe, tmp_path / "whole"))
    duration = time.monotonic() - begun
    expected = exported(tmp_path / "whole")

    moments = random.Random(int(os.environ.get("EDGEFOLD_KILL_SEED", "0")))
    kills, lives = 0, 0
    while kills < KILLS:
        runs = tmp_path / f"cut-{lives}"
        lives += 1
        while kills < KILLS:
            process = start(recipe, runs)
            try:
                process.communicate(timeout=moments.uniform(0.2, 1.0) * duration)
                break  # it came to its end before the kill: compare, then begin anew
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
        finish(start(recipe, runs))
        assert exported(runs) == expected
        assert not list(runs.rglob("*.part"))
    print(f"{kills} kills over {lives} runs of {duration:.1f} s")
