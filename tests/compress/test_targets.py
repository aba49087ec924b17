from __future__ import annotations

import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress import on_target
from compress.commands import targets as on_targets
from compress.link import command_of
from compress.on_target import accuracy_drop_points, formats_on, missed_limits
from compress.targets import Limits, Target, find_target, read_targets
from runtime.errors import MissingExtraError, RecipeError, UsageError

PI = """
pi4:
  host: pi4.local
  user: pi
  python: /home/pi/venv/bin/python
  threads: 4
  formats: [onnx, int8]
  limits: {p90_ms: 5, size_kb: 300, accuracy_drop_points: 0.5}
phone: {serial: emulator-5554, threads: 2}
"""


def targets_file(folder: Path, text: str) -> Path:
    path = folder / "targets.yaml"
    path.write_text(text)
    return path


def test_devices_by_name(tmp_path: Path) -> None:
    targets = read_targets(targets_file(tmp_path, PI))
    assert list(targets) == ["pi4", "phone"]
    assert targets["pi4"] == Target(
        host="pi4.local",
        user="pi",
        python="/home/pi/venv/bin/python",
        threads=4,
        formats=("onnx", "int8"),
        limits=Limits(p90_ms=5.0, size_kb=300.0, accuracy_drop_points=0.5),
    )
    assert find_target("phone", tmp_path / "targets.yaml").serial == "emulator-5554"


def test_an_unknown_device_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"targets\.yaml has no target 'p4'\nDid you mean 'pi4'\? Known: local, pi4, phone\."
    ):
        find_target("p4", targets_file(tmp_path, PI))


def test_this_machine_is_a_target_that_no_file_names(finished: Any, tmp_path: Path) -> None:
    none = tmp_path / "none.yaml"
    options = ("--target", "local", "--targets", none, "--json")
    bench = finished.invoke("bench", finished.bundle, "--quick", "--threads", "2", *options)
    assert bench.exit_code == 0, bench.stderr
    result = json.loads(bench.stdout)["local"]["onnx"]
    assert (result["target"]["name"], result["engine"]["threads"], result["quick"]) == ("local", 2, True)
    assert result["target"]["python"] == platform.python_version()
    accuracy = json.loads(finished.invoke("accuracy", finished.bundle, *options).stdout)["local"]["onnx"]
    expected = json.loads((finished.results / "accuracy.onnx.json").read_text())
    assert accuracy["predictions"] == expected["predictions"]
    assert "host_agreement" not in accuracy
    doctor = json.loads(finished.invoke("doctor", *options).stdout)
    assert any(each["what"] == "onnxruntime" and each["usable"] for each in doctor["local"])
    of_bundle = json.loads(finished.invoke("doctor", "--bundle", finished.bundle, "--json").stdout)
    assert any(each["what"] == "format onnx" and each["usable"] for each in of_bundle["local"])
    with pytest.raises(UsageError, match=r"no target 'lokal'\nDid you mean 'local'\? Known: local, pi4, phone\."):
        find_target("lokal", targets_file(tmp_path, PI))


def test_named_data_has_the_classes_of_the_recipe(finished: Any) -> None:
    # The recipe makes two classes of ten digits, and its model can be judged on nothing else.
    result = finished.invoke("accuracy", finished.bundle, "--data", "digits", "--limit", "100", "--json")
    assert result.exit_code == 0, result.stderr
    assert "the classes of digits are regrouped as in the recipe of the model" in result.stderr
    found = json.loads(result.stdout)
    expected = json.loads((finished.results / "accuracy.onnx.json").read_text())
    assert found["total"] == 100
    assert found["predictions"] == {row: expected["predictions"][row] for row in found["predictions"]}
    assert found["accuracy"] > 0.8


def test_every_problem_of_a_file_comes_at_once_with_its_line(tmp_path: Path) -> None:
    text = (
        PI.replace("threads: 4", "thread: 4").replace("p90_ms: 5", "p90_ms: fast").replace("serial: emulator-5554,", "")
    )
    with pytest.raises(RecipeError) as caught:
        read_targets(targets_file(tmp_path, text))
    message = str(caught.value)
    assert "targets.yaml: 3 problems" in message
    assert "line 6: pi4.thread: unknown key\n           Did you mean 'threads'?" in message
    assert "line 8: pi4.limits.p90_ms: came 'fast', expected a number" in message
    assert "line 9: phone: Value error, expected either host (ssh) or serial (adb)" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("- pi4", "expected a mapping of names to devices"),
        ("local: {host: here}", "line 1: local: is this machine, and always there"),
        ("pi4: {host: -oProxyCommand=evil}", "line 1: pi4.host: came '-oProxyCommand=evil'"),
        ("pi4: {host: 'a b'}", "line 1: pi4.host: came 'a b'"),
        ("pi4: {host: a, user: -l}", "line 1: pi4.user: came '-l'"),
        ("pi4: {host: a, serial: b}", "expected either host (ssh) or serial (adb)"),
        ("pi4: {serial: b, user: pi}", "user, port and ssh_config are of ssh"),
        ("pi4: {host: a, engine: tensort}", "line 1: pi4.engine: came 'tensort', expected 'onnxruntime', 'openvino'"),
        ("pi4: {host: a, engine: tensort}", "Did you mean 'tensorrt'?"),
        ("pi4: {host: a, engine: tensorrt, provider: cuda}", "provider cuda with engine tensorrt: providers are those"),
        ("pi4: {host: a, limits: {p90_ms: -1}}", "came -1, expected more than 0"),
    ],
)
def test_what_cannot_be_a_target_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_targets(targets_file(tmp_path, text))
    assert said in str(caught.value)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read: No such file.*\nWrite one, such as `pi4: \{host"):
        read_targets(tmp_path / "targets.yaml")


def test_ssh_never_asks_and_never_trusts_an_unknown_host() -> None:
    command = command_of(Target(host="pi4", user="pi", port=2222, python="/opt/my python/bin/python3"))
    assert command[0] == "ssh"
    assert command[-3:-1] == ["--", "pi4"]
    assert "BatchMode=yes" in command
    assert "StrictHostKeyChecking=yes" in command
    assert command[command.index("-p") + 1] == "2222"
    assert command[command.index("-l") + 1] == "pi"
    assert command[-1].startswith("'/opt/my python/bin/python3' -c ")


def test_adb_reaches_a_device_by_its_serial() -> None:
    command = command_of(Target(serial="emulator-5554"))
    assert command[:5] == ["adb", "-s", "emulator-5554", "shell", "-T"]
    assert command[5].startswith("python3 -c ")


def test_the_command_line_s_engine_takes_the_place_of_a_target_s(tmp_path: Path) -> None:
    file = targets_file(tmp_path, "a: {host: a, engine: openvino, precision: bf16, threads: 2}\nb: {host: b}\n")
    assert on_targets._targets(["a"], file, {"threads": None})["a"].choice.label == "openvino-bf16"
    given = on_targets._targets(["a", "b"], file, {"provider": "cuda", "threads": 4})
    assert [(each.choice.to_json(), each.threads) for each in given.values()] == [({"provider": "cuda"}, 4)] * 2
    with pytest.raises(UsageError, match="precision bf16 without engine openvino"):
        on_targets._targets(["a"], file, {"precision": "bf16"})


def test_formats_that_the_engine_does_not_run_are_left_out_and_named() -> None:
    bundle: Any = SimpleNamespace(path="bundle", formats=dict.fromkeys(("onnx", "fp16", "packed", "int8_cpu", "int8")))
    target = Target(host="a", engine="tensorrt")
    lines: list[str] = []
    assert formats_on("a", target, bundle, (), lines.append) == ("onnx", "fp16", "int8")
    assert lines == ["a: left out, for tensorrt does not run it: packed, int8_cpu"]
    lines.clear()
    some = target.model_copy(update={"formats": ("fp16",)})
    assert formats_on("a", some, bundle, (), lines.append) == ("fp16",)
    assert formats_on("a", Target(host="a"), bundle, (), lines.append) == tuple(bundle.formats)
    assert lines == []
    with pytest.raises(UsageError, match="target a runs tensorrt, which runs none of packed of bundle"):
        formats_on("a", target.model_copy(update={"formats": ("packed",)}), bundle, ())


def bench(p90_ms: float | None, size_bytes: int) -> dict:
    percentiles = {"p50": {"measured_ms": 1.0}}
    if p90_ms is not None:
        percentiles["p90"] = {"measured_ms": p90_ms}
    return {"size_bytes": size_bytes, "latency": {"percentiles": percentiles}}


def test_limits_are_judged_by_what_was_measured() -> None:
    limits = Limits(p50_ms=1.0, p90_ms=5.0, size_kb=300.0)
    assert missed_limits(limits, bench(5.0, 300_000), None) == ()
    assert missed_limits(limits, bench(5.1, 300_001), None) == (
        "p90_ms is 5.1, allowed 5",
        "size_kb is 300.001, allowed 300",
    )
    assert missed_limits(limits, bench(None, 1), None) == ("p90_ms was not measured (allowed 5)",)
    drop = Limits(accuracy_drop_points=0.5)
    assert missed_limits(drop, bench(1.0, 1), None) == ("accuracy_drop_points was not measured (allowed 0.5)",)
    assert missed_limits(drop, bench(1.0, 1), {"correct": 989, "total": 1000, "torch_correct": 995}) == (
        "accuracy_drop_points is 0.6, allowed 0.5",
    )
    assert accuracy_drop_points({"correct": 989, "total": 1000, "torch_correct": 985}) == pytest.approx(-0.4)


def test_the_power_mode_goes_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    class Refusing:
        def __enter__(self) -> Refusing:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def run(self, *words: object) -> None:
            asked.append(words)
            raise UsageError("target orin: the device is in power mode 'MAXN', expected '15W'")

    monkeypatch.setattr(on_target, "formats_on", lambda *_: ("onnx",))
    monkeypatch.setattr(on_target, "_device", lambda *_: Refusing())
    target = find_target("orin", targets_file(tmp_path, "orin: {host: orin, power_mode: 15W}"))
    with pytest.raises(UsageError, match="power mode 'MAXN'"):
        on_target.bench_on_target("orin", target, None, notify=print)  # type: ignore[arg-type]
    assert "--power-mode=15W" in asked[0]
    assert "--batch" not in asked[0]  # it is the scenario's own, unless it was given


def test_a_device_that_lacks_what_every_measurement_needs_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(name: str, *_: object, **__: object) -> list[dict[str, object]]:
        usable = name == "phone"
        numpy = {
            "what": "numpy",
            "usable": usable,
            "found": "?",
            "remedy": "python -m pip install numpy",
            "needed": True,
        }
        other = {"what": "openvino", "usable": False, "found": "?", "remedy": "", "needed": False}
        return [numpy, other]

    monkeypatch.setattr(on_targets, "doctor_on_target", found)
    file = targets_file(tmp_path, PI)
    on_targets.doctor(["phone"], file, bundle=None, as_json=False)
    assert "pip install" not in capsys.readouterr().out
    with pytest.raises(MissingExtraError, match=r"^target pi4 lacks numpy\n"):
        on_targets.doctor(["phone", "pi4"], file, bundle=None, as_json=False)
    assert "numpy: python -m pip install numpy" in capsys.readouterr().out
