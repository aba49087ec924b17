from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.choice import (
    Candidate,
    candidates_of,
    chosen,
    energy_counter,
    front,
    labels,
    sentences,
    to_csv,
    to_json,
)
from compress.choice_plot import choice_plot, front_line
from runtime.errors import UsageError
from runtime.latency import encode_samples


def candidate(name: str, accuracy: float, p50_ms: float, size: int = 1000, **changes: Any) -> Candidate:
    made = Candidate(
        recipe="r",
        stage="student",
        variant=name,
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
        "On local: ship nearly · onnx, 89.20 %, 700.0 µs a call, 1.0 kB; the fastest within the interval of the most "
        "accurate one, a · onnx (90.00 %)."
    ]
    assert sentences([A, FASTER])[0].endswith("; the most accurate one.")
    assert sentences([A])[0].endswith("; the only one.")
    unstable = replace(A, latency_note=" (quick) UNSTABLE")
    assert sentences([unstable])[0].endswith("; the only one. Its latency is UNSTABLE: measure again.")
    assert sentences([BROKEN, replace(A, target="pi4")]) == [
        "On local: none passed parity and the limits.",
        "On pi4: ship a · onnx, 90.00 %, 1.00 ms a call, 1.0 kB; the only one.",
    ]


def test_of_equally_fast_ones_the_smallest_is_chosen() -> None:
    small, large = candidate("small", 0.895, 1.04, 500), candidate("large", 0.895, 1.0, 900)
    best = candidate("best", 0.90, 1.2, 400)
    assert chosen([best, large, small]) == small
    assert sentences([best, large, small])[0].endswith(
        "; the smallest of the fastest (5 %) within the interval of the most accurate one, best · onnx (90.00 %)."
    )
    assert chosen([best, large, replace(small, p50_ms=1.06)]) == large
    assert chosen([best, large, candidate("poor", 0.85, 1.0, 10)]) == large


def test_json_and_csv_carry_every_candidate() -> None:
    document = to_json([A, SLOWER, TOO_LARGE])
    assert [row["on_front"] for row in document["candidates"]] == [True, False, False]
    rows = list(csv.DictReader(io.StringIO(to_csv([A, SLOWER, TOO_LARGE]))))
    assert [row["name"] for row in rows] == ["a · onnx", "slower · onnx", "too large · onnx"]
    assert rows[2]["limits_missed"] == "size_kb is 9, allowed 5"
    assert float(rows[0]["p50_ms"]) == 1.0


def test_a_name_says_only_what_tells_students_apart() -> None:
    other = replace(A, recipe="q")
    assert set(labels([A, SLOWER]).values()) == {"a · onnx", "slower · onnx"}
    assert set(labels([A, other]).values()) == {"r · a · onnx", "q · a · onnx"}
    alone = replace(A, variant="", format="int8@openvino")
    assert list(labels([alone]).values()) == ["student · int8@openvino"]
    assert set(labels([alone, replace(alone, stage="tiny")]).values()) == {
        "student · int8@openvino",
        "tiny · int8@openvino",
    }


FRUGAL = replace(SLOWER, energy_mj={"RAPL core": 1.0, "RAPL package-0": 2.0})
HUNGRY = replace(A, energy_mj={"RAPL package-0": 3.0})


def test_energy_counts_where_one_counter_counted_for_all() -> None:
    assert energy_counter([FRUGAL, HUNGRY]) == "RAPL package-0"
    assert energy_counter([FRUGAL, A]) is None
    assert energy_counter([]) is None
    assert front([FRUGAL, HUNGRY]) == [FRUGAL, HUNGRY]  # slower, and needs less
    assert front([replace(FRUGAL, energy_mj={"RAPL package-0": 3.0}), HUNGRY]) == [HUNGRY]
    assert front([FRUGAL, A]) == [A]
    # Another device's counter, or what failed, takes nothing away.
    assert front([FRUGAL, HUNGRY, replace(A, target="pi4"), BROKEN])[:2] == [FRUGAL, HUNGRY]
    assert sentences([HUNGRY]) == [
        "On local: ship a · onnx, 90.00 %, 1.00 ms and 3.00 mJ a call, 1.0 kB; the only one."
    ]
    row = next(csv.DictReader(io.StringIO(to_csv([FRUGAL]))))
    assert row["energy_mj"] == "RAPL core: 1; RAPL package-0: 2"


def test_the_plot_has_a_column_a_device_and_a_row_a_cost() -> None:
    svg = choice_plot([A, replace(SLOWER, format="int8", variant="wide"), replace(A, target="pi4")])
    for text in ("local", "pi4", "a", "wide", "int8", "test accuracy, %", "size, kB"):
        assert f">{text}<" in svg
    assert "energy" not in svg
    svg = choice_plot([FRUGAL, HUNGRY, replace(A, target="pi4")])
    for text in ("energy of a call, mJ", "RAPL package-0", "energy was not counted"):
        assert f">{text}<" in svg


def test_a_limit_is_drawn_where_it_is_near_and_named_where_it_is_far() -> None:
    near = choice_plot([replace(A, limits={"p90_ms": 2.0, "size_kb": 50.0, "accuracy_drop_points": 1.0})])
    assert "> p90 <" in near
    assert ">size ≤ 50 kB →<" in near
    assert ">p90 ≤ 9 ms →<" in choice_plot([replace(A, limits={"p90_ms": 9.0})])


def test_the_line_goes_through_what_nothing_cheaper_reaches() -> None:
    files = [candidate("a", 0.9, 1.0), candidate("b", 0.8, 2.0), candidate("c", 0.95, 3.0), candidate("d", 0.7, 0.5)]
    assert front_line(files, [1.0, 2.0, 3.0, 0.5]) == [(0.5, 0.7), (1.0, 0.9), (3.0, 0.95)]
    assert front_line([A, BROKEN], [1.0, 0.1]) == [(1.0, 0.9)]


def report(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"recipe": "tiny", "rows": rows}))
    return folder


def test_candidates_are_the_measured_exports_of_a_run(tmp_path: Path) -> None:
    row = {"name": "s · onnx", "variant": "", "format": "onnx", "mean": 0.9, "low": 0.8, "high": 0.95}
    row |= {"p50_ms": 1.0, "p90_ms": 2.0, "size_bytes": 10, "parity": "passed", "what": "export"}
    rows = [
        {**row, "energy_mj": {"RAPL core": 0.5}},
        {**row, "what": "stage"},
        {**row, "p50_ms": None},
        {**row, "parity": "failed", "target": "pi4"},
    ]
    found = candidates_of(report(tmp_path / "run", rows))
    assert [(each.recipe, each.stage, each.format, each.target, each.parity) for each in found] == [
        ("tiny", "s", "onnx", "local", True),
        ("tiny", "s", "onnx", "pi4", False),
    ]
    assert [each.energy_mj for each in found] == [{"RAPL core": 0.5}, {}]
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
    assert result.stderr == "note: results of different machines are compared\n"
    documents = json.loads(finished.invoke("compare", first, slower, "--json").stdout)
    assert documents[0]["differs"] is True
    assert documents[0]["ratio"] == pytest.approx(1.2, abs=1e-3)


def test_compare_takes_files_of_several_results(tmp_path: Path, finished: Any) -> None:
    def result(factor: float, form: str, **more: Any) -> dict[str, Any]:
        document = json.loads(bench_file(tmp_path / "one.json", factor).read_text())
        return {**document, "format": form, **more}

    def file(name: str, document: Any) -> Path:
        (tmp_path / name).write_text(json.dumps(document))
        return tmp_path / name

    on_pi = {"target": {"name": "pi4"}}
    several = file("several.json", {"kind": "benches", "results": [result(1.0, "onnx"), result(1.5, "int8")]})
    devices = file(
        "devices.json", {"pi4": {"onnx": result(1.0, "onnx", **on_pi), "int8": result(0.5, "int8", **on_pi)}}
    )
    assert finished.invoke("compare", several).stdout.startswith("int8 is 50.0 % slower than onnx (ratio 1.500")
    assert finished.invoke("compare", devices).stdout.startswith("pi4 int8 is 2.00 times as fast as pi4 onnx (ratio")
    later = file("later.json", {"kind": "benches", "results": [result(3.0, "int8"), result(1.0, "packed")]})
    compared = finished.invoke("compare", several, later)
    (said,) = compared.stdout.splitlines()
    assert said.startswith(f"int8 of {later} is 2.00 times as slow as int8 of {several} (")
    result_of_both = finished.invoke("compare", several, devices)
    assert result_of_both.exit_code == 2
    assert f"{several} has onnx, int8, and {devices} has pi4 onnx, pi4 int8: none is in both" in result_of_both.stderr


def test_compare_shows_runs_and_writes_files(tmp_path: Path, finished: Any) -> None:
    result = finished.invoke("compare", finished.results, "--csv", tmp_path / "c.csv", "--plot", tmp_path / "c.svg")
    assert result.exit_code == 0, result.stderr
    assert "On local: ship student · onnx" in result.stdout
    assert (tmp_path / "c.csv").read_text().startswith("name,recipe,stage,")
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    assert "student · onnx" in finished.invoke("compare", "tiny").stdout  # below --runs, by its name


def test_what_is_not_comparable_is_said(tmp_path: Path, finished: Any) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    document = json.loads((finished.results / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps({**document, "recipe": "copy"}))
    assert finished.invoke("compare", finished.results, copy).stderr == ""
    rows = [{**row, "limits": {"p90_ms": 5}} for row in document["rows"]]
    (copy / "report.json").write_text(json.dumps({**document, "recipe": "copy", "data": "other", "rows": rows}))
    result = finished.invoke("compare", finished.results, copy)
    assert result.stderr == (
        "note: these runs are on different data, so that their accuracies say little beside each other\n"
        "note: local had other limits in another run; each file is judged by those of its own\n"
    )
    assert "within its limits" not in result.stdout


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
