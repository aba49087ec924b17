import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

import runtime
from runtime import bench, measure
from runtime.__main__ import main
from runtime.arguments import parser
from runtime.bundle import write_checksums
from runtime.comparison import processes_of
from runtime.errors import DataError
from runtime.server import ServerPlan, ServerResult, Trial

ROOT = Path(runtime.__file__).parent.parent


@pytest.fixture
def tiny_plans(monkeypatch):
    plan = measure.BenchPlan(quick=True, seconds=0.01, warm_up_seconds=0.01, warm_up_most_seconds=0.05)
    monkeypatch.setattr(measure, "QUICK", plan)
    monkeypatch.setattr(measure, "FULL", measure.BenchPlan(**{**vars(plan), "quick": False}))


def test_bench_prints_a_table_and_writes_the_result(bundle_folder, tmp_path, capsys, tiny_plans):
    output = tmp_path / "out" / "bench.json"
    assert main(["bench", str(bundle_folder), "--quick", "--batch", "8", "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("tiny: onnx (fp32, ")
    assert "QUICK" in captured.out
    for word in ("p50", "p90", "p99", "min", "mean", "max", "throughput", "cold start", "drift"):
        assert word in captured.out
    assert "p99.9" not in captured.out or json.loads(output.read_text())["latency"]["calls"] >= 6636
    assert "measuring: at least 662 calls" in captured.err
    assert f"wrote {output}" in captured.err
    document = json.loads(output.read_text())
    assert (document["kind"], document["quick"], document["batch"]) == ("bench", True, 8)


def test_several_formats_are_measured_in_turn_and_shown_each(write_bundle, build_model, tmp_path, capsys):
    model = build_model().SerializeToString()
    entry = {"file": "model.onnx", "size_bytes": len(model), "precision": "fp32", "opset": 20, "ir_version": 10}
    folder = write_bundle(tmp_path / "two", model=model, formats={"onnx": entry, "fp16": entry})
    options = ["--seconds", "0.02", "--calls", "100", "--processes", "2", "--format", "onnx", "--format", "fp16"]
    output = tmp_path / "bench.json"
    assert main(["bench", str(folder), *options, "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert "measuring: process 2 of 2, 50 calls and 0.01 s at least" in captured.err
    assert [line.split(" (")[0] for line in captured.out.splitlines() if line.startswith("tiny: ")] == [
        "tiny: onnx",
        "tiny: fp16",
    ]
    document = json.loads(output.read_text())
    assert document["kind"] == "benches"
    assert [each["format"] for each in document["results"]] == ["onnx", "fp16"]
    assert all(len(each["processes"]) == 2 for each in document["results"])


def test_offline_takes_the_largest_verified_batch_and_counts_wall_time(bundle_folder, capsys):
    words = ["--scenario", "offline", "--seconds", "0.04", "--processes", "2", "--json"]
    assert main(["bench", str(bundle_folder), *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["scenario"], document["batch"]) == ("offline", 8)
    rows = 8 * document["latency"]["calls"]
    assert document["throughput_rows_per_s"] == pytest.approx(rows / document["seconds"])
    assert document["seconds"] > 0.04
    assert not any("was not verified" in note for note in document["notes"])


def test_a_server_is_asked_for_the_rate_of_its_bound(bundle_folder, monkeypatch, capsys):
    plans = []

    def stepped(calls, plan, *, say):
        plans.append(plan)
        calls[0]()
        best = Trial(640.0, 700, 1, 1, np.full(700, 2_000_000, dtype=np.uint64))
        return ServerResult(plan, 1000.0, best, (best,))

    monkeypatch.setattr(bench, "largest_rate", stepped)
    words = ["--quick", "--scenario", "server", "--bound-ms", "2.5", "--percentile", "99.9"]
    assert main(["bench", str(bundle_folder), *words, "--json"]) == 0
    assert plans == [ServerPlan(2_500_000, Fraction(999, 1000), 3.0)]
    document = json.loads(capsys.readouterr().out)
    assert (document["scenario"], document["throughput_rows_per_s"]) == ("server", 640.0)
    assert (document["server"]["rate_per_s"], document["server"]["over"]) == (640.0, 1)
    assert document["latency"]["calls"] == document["samples"]["count"] == 700
    assert "energy" not in document
    with pytest.raises(DataError, match="a result of a server"):
        processes_of(document, "bench.json")
    assert main(["bench", str(bundle_folder), *words]) == 0
    assert "640 rows/s, the largest rate of random arrivals with 99.9 % within 2.5 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenario", "server"], "needs a bound of latency"),
        (["--bound-ms", "3"], "--bound-ms and --percentile are of --scenario server"),
        (["--scenario", "server", "--bound-ms", "3", "--processes", "5"], "are not of --scenario server"),
        (["--power-mode", "15W"], "power mode '15W' is asked for, and this device says none"),
    ],
)
def test_options_that_do_not_fit_are_refused(bundle_folder, capsys, monkeypatch, words, message):
    monkeypatch.setenv("PATH", "")
    assert main(["bench", str(bundle_folder), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "soon"])
def test_seconds_that_are_none_are_refused(bundle_folder, capsys, seconds):
    with pytest.raises(SystemExit):
        main(["bench", str(bundle_folder), "--seconds", seconds])
    assert "is not a number above 0" in capsys.readouterr().err


def test_json_is_all_there_is_on_stdout(bundle_folder, capsys, tiny_plans):
    for verb in ("bench", "accuracy", "inspect"):
        assert main([verb, str(bundle_folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == verb


def test_accuracy_of_the_samples(bundle_folder, capsys):
    assert main(["accuracy", str(bundle_folder), "--batch", "5"]) == 0
    out = capsys.readouterr().out
    assert "91.67 % (95 % interval 74.15 % to 97.68 %)" in out
    assert "22 of 24 rows" in out
    assert "100.00 % with the reference (24 of 24 rows)" in out
    assert "most often confused" in out


def test_accuracy_of_given_rows_with_limit_and_reference(bundle_folder, tmp_path, samples, capsys):
    data, output = tmp_path / "rows.npz", tmp_path / "accuracy.json"
    np.savez(data, **{name: samples[name] for name in ("inputs", "labels", "row_ids")})
    arguments = ["accuracy", str(bundle_folder), "--data", str(data), "--output", str(output)]
    assert main(arguments) == 0
    assert "reference" not in capsys.readouterr().out
    assert main([*arguments, "--limit", "10", "--reference", str(output)]) == 0
    assert "10 of 10 rows" in capsys.readouterr().out
    document = json.loads(output.read_text())
    assert document["total"] == 10
    assert document["agreement"]["equal"] == 10


def test_inspect_shows_the_essentials(bundle_folder, capsys):
    assert main(["inspect", str(bundle_folder)]) == 0
    out = capsys.readouterr().out
    for text in (
        "tiny (stage student)",
        "input uint8 [N, 4, 3, 1] NHWC",
        "ai.onnx 20",
        "ant,bee,cat",
        "IR version",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["bench"], "BUNDLE"),
        (["bench", "x", "--threads", "0"], "'0' is not a whole number of at least 1"),
        (["bench", "x", "--batch", "many"], "'many' is not a whole number"),
        (["melt", "x"], "invalid choice"),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_input_is_one_message_and_exit_2(bundle_folder, tmp_path, capsys):
    (tmp_path / "broken.npz").write_bytes(b"PK")
    cases = [
        (["inspect", str(tmp_path / "nothing")], "does not exist"),
        (["bench", str(bundle_folder), "--format", "int8"], "no format 'int8'"),
        (["accuracy", str(bundle_folder), "--data", str(tmp_path / "broken.npz")], "not a whole .npz"),
        (["accuracy", str(bundle_folder), "--data", str(tmp_path / "no.npz")], "cannot be read"),
        (["bench", str(bundle_folder), "--output", str(tmp_path)], "is a folder"),
        (
            ["bench", str(bundle_folder), "--output", str(bundle_folder / "labels.txt" / "x")],
            "not a folder that",
        ),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert message in captured.err
        assert "Traceback" not in captured.err


@pytest.mark.parametrize("verb", ["bench", "accuracy", "inspect"])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_the_bundle_exits_with_2(write_bundle, build_model, tmp_path, capsys, verb, location):
    model = build_model()
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    folder = write_bundle(tmp_path / "bundle", model=model.SerializeToString())
    assert main([verb, str(folder)]) == 2
    assert f"wants its data from '{location}', outside the model's folder" in capsys.readouterr().err


def test_truncated_model_exits_with_2(bundle_folder, capsys):
    path = bundle_folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:200])
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    manifest["formats"]["onnx"]["size_bytes"] = 200
    (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
    write_checksums(bundle_folder)  # an exporter that was cut off, not a damaged copy
    for verb in ("bench", "accuracy", "inspect"):
        assert main([verb, str(bundle_folder)]) == 2
        assert "model.onnx: not a whole ONNX model" in capsys.readouterr().err


def test_engine_error_exits_with_1(write_bundle, build_model, tmp_path, capsys):
    folder = write_bundle(tmp_path / "bundle", model=build_model(ir_version=99).SerializeToString())
    assert main(["bench", str(folder)]) == 1
    assert "cannot load this model" in capsys.readouterr().err


def test_missing_engine_exits_with_2(bundle_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["bench", str(bundle_folder), "--processes", "1"]) == 2
    assert "pip install 'edgefold[onnxruntime]'" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["inspect", str(tmp_path), "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: " in err


def test_interrupt_exits_with_130(bundle_folder, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.bench.warm_up", interrupt)
    assert main(["bench", str(bundle_folder), "--processes", "1"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_result_is_printed_before_a_write_that_fails(bundle_folder, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("runtime.files.write_json", full)
    assert main(["accuracy", str(bundle_folder), "--output", str(tmp_path / "a.json")]) == 1
    captured = capsys.readouterr()
    assert "22 of 24 rows" in captured.out
    assert "No space left" in captured.err


def test_reader_that_leaves_early_causes_no_traceback(bundle_folder):
    command = f"{sys.executable} -m runtime inspect {bundle_folder} --json | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_console_without_utf8_shows_what_it_can(write_bundle, tmp_path):
    folder = write_bundle(tmp_path / "bundle", name="größe")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "inspect", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xf6\\xdfe" in done.stdout


def test_every_verb_has_a_sentence_and_a_working_example(capsys):
    for verb in ("bench", "accuracy", "inspect"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        text = capsys.readouterr().out
        examples = text.split("example:\n")[1].strip().splitlines()
        assert examples[0].startswith(f"python -m runtime {verb} bundle")
        for example in examples:
            options = parser().parse_args(example.split()[3:])
            assert options.verb == verb
