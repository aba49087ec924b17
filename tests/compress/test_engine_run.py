"""Recipes with bfloat16 and TensorRT engines where neither can be run: what is built, said and not measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from compress.cli import main as edgefold
from compress.formats import TensorrtSpec
from compress.kinds import as_recipe_value
from runtime import tensorrt_library
from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.cuda import cuda_devices
from runtime.manifest import EngineRequest

RECIPE = """\
name: tiny
data: {source: digits, relabel: {modulo: 2}}
train: {epochs: 2, batch_size: 64, optimizer: {adam: {lr: 1e-2}}}
stages:
  student: {model: {small_cnn: {widths: [8, 16]}}, objective: ce}
export:
  stage: student
  formats: [onnx, bf16, {tensorrt: {from: bf16, capabilities: [sm86], profiles: [[1], [8]], workspace: 512}}]
  batch_sizes: [1, 8]
benchmark: [{local: {quick: true}}]
"""
ENGINE = "tensorrt-sm86-bf16"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(edgefold, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and a run up to the proof, made where no TensorRT is installed."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        for name in tensorrt_library.MODULES:
            patch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
        result = call("verify", folder / "tiny.yaml", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    (folder / "without.txt").write_text(result.output)
    return folder


def test_a_run_without_tensorrt_says_what_to_do_on_the_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "".join((folder / "without.txt").read_text().split())  # the terminal breaks lines where it is narrow
    bundle = open_bundle(folder / "runs/tiny/bundle")
    command = f"edgefold export engine {bundle.path}, on the device".replace(" ", "")
    assert "noTensorRTengineisbuilt:neithertensorrtnortensorrt_rtxisinstalled" in said
    assert command in said
    assert said.count(command) == 1
    assert bundle.engines == (EngineRequest("bf16", ("sm86",), None, 512, ((1,), (8,))),)
    assert main(["inspect", str(bundle.path)]) == 0
    wanted = "not built: TensorRT engine of bf16 for sm86"
    assert f"{wanted} (on the device: edgefold export engine {bundle.path})" in capsys.readouterr().out


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU, so nothing is left out")
def test_a_run_measures_what_it_can_and_says_the_rest(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgefold[rtx]' (Linux or Windows, x86-64)")
    result = call("run", folder / "tiny.yaml", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    # The stage is reused, and the engine that could not be built before is built.
    parity = json.loads((folder / "runs/tiny/parity.json").read_text())
    assert parity["passed"]
    forms = parity["formats"]
    assert list(forms) == ["onnx", "bf16", ENGINE]
    assert [form["passed"] for form in forms.values()] == [True, True, None]
    assert forms["bf16"]["not_run"].startswith("bfloat16 needs an engine of an NVIDIA GPU")
    assert any("rounded to bfloat16" in note for note in forms["bf16"]["notes"])
    assert 1e-3 < forms["bf16"]["comparison"]["max_error_over_std"] < 1e-1
    assert forms[ENGINE]["not_run"] == "needs an SM86 GPU, and this machine has no CUDA device"
    measured = {path.name for path in (folder / "runs/tiny").glob("*.json") if path.name[:5] in ("bench", "accur")}
    assert measured == {"accuracy.onnx.json", "bench.onnx.local.json"}
    rows = {row["format"]: row for row in json.loads((folder / "runs/tiny/report.json").read_text())["rows"]}
    assert [rows[form]["parity"] for form in forms] == ["passed", "passed", "not run"]
    assert rows[ENGINE]["p50_ms"] is None
    for text in (result.output, (folder / "runs/tiny/report.html").read_text()):
        assert "not run here: needs an SM86 GPU" in text
    described = json.loads((folder / "runs/tiny/bundle/model.sm86-bf16.engine.json").read_text())
    assert described["flags"]["workspace_mib"] == 512
    assert [profile["most"]["input"][0] for profile in described["profiles"]] == [1, 8]
    again = call("verify", folder / "runs/tiny/bundle")
    assert again.exit_code == 0
    assert f"{ENGINE}: not run here: needs an SM86 GPU" in again.output
    bench = call("bench", folder / "runs/tiny/bundle", "--format", ENGINE)
    assert bench.exit_code == 1


def test_engines_are_written_as_a_recipe_has_them() -> None:
    spec = TensorrtSpec(**{"from": "int8", "capabilities": ("sm86",)})  # type: ignore[arg-type]
    assert spec.request == EngineRequest("int8", ("sm86",))
    assert as_recipe_value(spec) == {
        "tensorrt": {
            "from": "int8", "capabilities": ["sm86"], "module": None, "workspace": None, "profiles": [], "via": "onnx",
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ("[onnx, {tensorrt: {from: fp16}}]", r"formats[1].from: 'fp16' is not exported"),
        ("[onnx, {tensorrt: {form: fp16}}]", "Did you mean 'from'?"),
        ("[onnx, {tensorrt: {capabilities: [sm86], module: tensorrt}}]", "tensorrt builds for the GPU that it runs on"),
        ("[onnx, tensorrt, {tensorrt: {workspace: 9}}]", "an engine of onnx for the same GPU stands above"),
        ("[onnx, {tensorrt: {capabilities: [86]}}]", "expected text"),
        ("[onnx, {tensorrt: {capabilities: [SM_86]}}]", "SM_86"),
        ("[onnx, {tensorrt: {profiles: [[]]}}]", "profiles[0]"),
        ("[onnx, bf16, bf16]", "a format stands twice"),
        ("[onnx, fp16, {tensorrt: {from: fp16, via: torch}}]", "torch-tensorrt takes the trained model"),
        ("[onnx, {tensorrt: {capabilities: [sm86], via: torch}}]", "torch-tensorrt builds for the GPU that it runs on"),
    ],
)
def test_recipes_with_engines_that_cannot_be_are_refused(tmp_path: Path, formats: str, message: str) -> None:
    lines = [f"  formats: {formats}" if "formats" in line else line for line in RECIPE.splitlines()]
    (tmp_path / "bad.yaml").write_text("\n".join(lines))
    result = call("check", tmp_path / "bad.yaml")
    assert result.exit_code == 2
    assert message in result.output


def test_binary_models_have_no_engine(tmp_path: Path) -> None:
    binary = RECIPE.replace("{small_cnn: {widths: [8, 16]}}", "binary_cnn").replace("source: digits", "source: mnist")
    (tmp_path / "bad.yaml").write_text(binary)
    result = call("check", tmp_path / "bad.yaml")
    assert result.exit_code == 2
    assert "TensorRT has no operators of one bit" in result.output
    assert "bf16 would round what signs are taken of" in result.output


def test_torch_tensorrt_is_asked_for_once_and_its_absence_said(folder: Path) -> None:
    lines = [
        "  formats: [onnx, {tensorrt: {via: torch}}]" if "formats" in line else line for line in RECIPE.splitlines()
    ]
    (folder / "torch.yaml").write_text("\n".join(lines).replace("name: tiny", "name: by-torch"))
    result = call("verify", folder / "torch.yaml", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    said = "".join(result.output.split())
    if not (folder / "runs/by-torch/torch-tensorrt.pt2").exists():
        assert said.count("notorch-tensorrt.pt2isbuilt:torch-tensorrt") == 1
    assert open_bundle(folder / "runs/by-torch/bundle").engines == ()


def test_profiles_on_the_command_line_are_checked(folder: Path) -> None:
    result = call("export", "engine", folder / "runs/tiny/bundle", "--profile", "1,x")
    assert result.exit_code == 2
    assert "expected batch sizes with commas between them, as in 1,8,64" in result.output
