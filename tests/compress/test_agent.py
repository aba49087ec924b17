"""The one file that goes to a device, run as a file: by a Python that knows nothing else of edgefold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from compress.agent import agent_bytes


def run_file(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = folder / "edgefold-agent.pyz"
    path.write_bytes(agent_bytes())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_is_small_and_the_same_for_the_same_sources() -> None:
    assert agent_bytes() == agent_bytes()
    assert len(agent_bytes()) < 200_000


def test_it_measures_a_bundle_in_processes_of_its_own(tmp_path: Path, project: Any) -> None:
    options = ["--quick", "--processes", 2, "--seconds", 0.1, "--calls", 700]
    done = run_file(tmp_path, "bench", project.bundle, *options, "--output", "bench.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench.json").read_text())
    assert len(result["processes"]) == 2
    assert result["latency"]["calls"] >= 700
    assert not any(path.name == "__pycache__" for path in tmp_path.rglob("*"))


def test_what_it_refuses_ends_with_a_message(tmp_path: Path) -> None:
    done = run_file(tmp_path, "accuracy", "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere")
