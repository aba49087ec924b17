from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.choice import Candidate, candidates_of, chosen, front, sentences, to_csv, to_json
from compress.figures import choice
from runtime.errors import UsageError
from runtime.latency import encode_samples


def candidate(name: str, accuracy: float, p50_ms: float, size: int = 1000, **changes: Any) -> Candidate:
    made = Candidate(
        recipe="r",
        name=name,
        variant="",
        format="onnx",
        target="local",
        accuracy=accuracy,
        low=accuracy - 0.01,
        high=accuracy + 0.01,
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.1,
        size_bytes=size,
        parity=True,
    )
    return replace(made, **changes)


A = candidate("a", 0.90, 1.0)
SLOWER = candidate("slower", 0.90, 2.0)
SMALLER = candidate("smaller", 0.80, 1.0, 500)
FASTER = candidate("faster", 0.85, 0.5, 2000)
BROKEN = candidate("broken", 0.99, 0.1, 10, parity=False)
TOO_LARGE = candidate("too large", 0.95, 0.1, 10, limits_missed=("size_kb is 9, allowed 5",))


def test_the_front_holds_what_no_other_beats() -> None:
    assert front([A, SLOWER, SMALLER, FASTER]) == [A, SMALLER, FASTER]
    assert front([A, A]) == [A, A]  # equal ones do not beat each other


def test_what_failed_beats_none_and_is_not_on_the_front() -> None:
    assert front([A, BROKEN, TOO_LARGE]) == [A]


def test_devices_are_not_compared_with_each_other() -> None:
    there = replace(SLOWER, target="pi4")
    assert front([A, there]) == [A, there]


def test_the_fastest_within_the_interval_of_the_best_is_chosen() -> None:
    nearly = candidate("nearly", 0.892, 0.7)
    assert chosen([A, nearly, FASTER]) == nearly
    assert chosen([A, candidate("below", 0.889, 0.7), FASTER]) == A
    assert chosen([BROKEN, TOO_LARGE]) is None
    assert sentences([A, nearly]) == [
        "On local: ship r: nearly, 89.20 %, 700.0 µs a call, 1.0 kB; the fastest within the interval of the most "
        "accurate one, r: a (90.00 %)."
    ]
    assert sentences([A, FASTER])[0].endswith("; the most accurate one.")
    assert sentences([A])[0].endswith("; the only one.")
    assert sentences([BROKEN, replace(A, target="pi4")]) == [
        "On local: none passed parity and the limits.",
        "On pi4: ship r: a, 90.00 %, 1.00 ms a call, 1.0 kB; the only one.",
    ]


def test_json_and_csv_carry_every_candidate() -> None:
    document = to_json([A, SLOWER, TOO_LARGE])
    assert [row["on_front"] for row in document["candidates"]] == [True, False, False]
    rows = list(csv.DictReader(io.StringIO(to_csv([A, SLOWER, TOO_LARGE]))))
    assert [row["name"] for row in rows] == ["a", "slower", "too large"]
    assert rows[2]["limits_missed"] == "size_kb is 9, allowed 5"
    assert float(rows[0]["p50_ms"]) == 1.0


def test_the_plot_has_a_panel_a_device_and_names_students_and_formats() -> None:
    svg = choice([A, replace(SLOWER, format="int8", variant="wide"), replace(A, target="pi4")])
    for text in ("local", "pi4", "r · wide", "int8", "test accuracy, %"):
        assert f">{text}<" in svg


def report(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"recipe": "tiny", "rows": rows}))
    return folder


def test_candidates_are_the_measured_exports_of_a_run(tmp_path: Path) -> None:
    row = {"name": "s · onnx", "variant": "", "format": "onnx", "mean": 0.9, "low": 0.8, "high": 0.95}
    row |= {"p50_ms": 1.0, "p90_ms": 2.0, "size_bytes": 10, "parity": "passed", "what": "export"}
    rows = [row, {**row, "what": "stage"}, {**row, "p50_ms": None}, {**row, "parity": "failed", "target": "pi4"}]
    found = candidates_of(report(tmp_path / "run", rows))
    assert [(each.recipe, each.name, each.target, each.parity) for each in found] == [
        ("tiny", "s · onnx", "local", True),
        ("tiny", "s · onnx", "pi4", False),
    ]
    with pytest.raises(UsageError, match=r"report\.json cannot be read: No such file.*\nName the folder of a finished"):
        candidates_of(tmp_path)
    (tmp_path / "run" / "report.json").write_text("[]")
    with pytest.raises(UsageError, match="not a report of edgefold"):
        candidates_of(tmp_path / "run")


def bench_file(path: Path, factor: float, **environment: Any) -> Path:
    samples = (np.random.default_rng(0).normal(1e5, 500, 2000) * factor).astype(np.uint64)
    document = {"kind": "bench", "samples": encode_samples(samples), "environment": environment}
    path.write_text(json.dumps({**document, "processes": [{"calls": 400}] * 5}))
    return path


def test_compare_says_whether_two_results_differ(tmp_path: Path, finished: Any) -> None:
    first = bench_file(tmp_path / "a.json", 1.0)
    same = bench_file(tmp_path / "b.json", 1.0)
    slower = bench_file(tmp_path / "c.json", 1.2, cpu_model="other")
    result = finished.invoke("compare", first, same, slower)
    assert result.exit_code == 0, result.stderr
    one, two = result.stdout.splitlines()
    assert one.startswith(f"no difference between {same} and {first} (ratio 1.000")
    assert two.startswith(f"{slower} is 20.0 % slower than {first} (ratio 1.2")
    assert result.stderr == "note: the two results are of different machines\n"
    documents = json.loads(finished.invoke("compare", first, slower, "--json").stdout)
    assert documents[0]["differs"] is True
    assert documents[0]["ratio"] == pytest.approx(1.2, abs=1e-3)


def test_compare_shows_runs_and_writes_files(tmp_path: Path, finished: Any) -> None:
    result = finished.invoke("compare", finished.results, "--csv", tmp_path / "c.csv", "--plot", tmp_path / "c.svg")
    assert result.exit_code == 0, result.stderr
    assert "On local: ship tiny: student · onnx" in result.stdout
    assert (tmp_path / "c.csv").read_text().startswith("recipe,name,")
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    assert "tiny: student · onnx" in finished.invoke("compare", "tiny").stdout  # below --runs, by its name


def test_what_compare_cannot_use_is_named(tmp_path: Path, finished: Any) -> None:
    first = bench_file(tmp_path / "a.json", 1.0)
    for arguments, said in (
        ([first], "one latency result is nothing to compare"),
        ([first, finished.results], "runs and .json files cannot be compared with each other"),
        ([first, tmp_path / "none.json"], "none.json cannot be read: No such file"),
        ([first, first, "--csv", tmp_path / "c.csv"], "--csv and --plot are for runs"),
        (["no-such-run"], "no recipe 'no-such-run'"),
    ):
        result = finished.invoke("compare", *arguments)
        assert result.exit_code == 2
        assert said in result.stderr
