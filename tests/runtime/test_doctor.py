import importlib
import json
import sys
import types

import pytest

from runtime import doctor
from runtime.__main__ import main
from runtime.bundle import write_checksums
from runtime.cuda import CudaDevice
from runtime.doctor import examine, findings_text
from runtime.energy import read_counters
from runtime.errors import UsageError


@pytest.fixture
def engines(monkeypatch):
    """Return a function that says which modules are installed, by version; None for one that is broken."""

    def installed(**versions):
        find = importlib.util.find_spec
        known = {"numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: find(name) if name not in known else True if name in versions else None,
        )
        real = importlib.import_module

        def load(name):
            if name not in known:
                return real(name)
            if versions[name] is None:
                raise ImportError("first line\nlibgomp.so.1: no such file")
            return types.SimpleNamespace(__version__=versions[name], get_available_providers=lambda: ["CPU"])

        monkeypatch.setattr(importlib, "import_module", load)

    return installed


def found(*arguments, **options):
    return {each.what: each for each in examine(*arguments, **options)}


def test_what_is_there_and_what_is_missing_with_its_command(engines):
    engines(onnxruntime="1.19.2")
    findings = found()
    assert (findings["onnxruntime"].usable, findings["onnxruntime"].found) == (True, "1.19.2")
    assert findings["numpy"].remedy == f"{sys.executable} -m pip install numpy"
    assert (findings["numpy"].needed, findings["numpy"].usable) == (True, False)
    assert (findings["openvino"].needed, findings["openvino"].usable) == (False, False)
    assert findings["providers of onnxruntime"].found == "CPU"
    assert "an engine" not in findings
    text = findings_text(list(findings.values()))
    assert f"{sys.executable} -m pip install numpy" in text
    assert text.count("NO ") == 1


def test_no_engine_at_all_is_a_lack(engines):
    engines(numpy="2.0")
    assert found()["an engine"].needed
    assert found()["an engine"].remedy.endswith("-m pip install onnxruntime")


def test_an_engine_that_does_not_load_says_why(engines):
    engines(numpy="2.0", onnxruntime=None)
    finding = found()["onnxruntime"]
    assert (finding.usable, finding.found) == (False, "cannot be loaded: libgomp.so.1: no such file")
    assert finding.remedy.endswith("--force-reinstall onnxruntime")


def test_an_engine_that_is_to_be_used_has_to_be_there(engines, monkeypatch):
    gpu = CudaDevice("Orin", "sm87")
    monkeypatch.setattr(doctor, "driver_version", lambda: "540.4.0")

    def needed(engine, *devices):
        monkeypatch.setattr(doctor, "cuda_devices", lambda: devices)
        return {each.what: each for each in examine(engine=engine) if each.needed and not each.usable}

    engines(numpy="2.0", onnxruntime="1.20.0")
    assert needed(None) == {}
    lacks = needed("tensorrt", gpu)
    assert list(lacks) == ["tensorrt"]
    assert lacks["tensorrt"].remedy == f"{sys.executable} -m pip install tensorrt"
    assert needed("tensorrt_rtx", gpu)["tensorrt_rtx"].remedy.endswith("-m pip install tensorrt-rtx")
    assert list(needed("openvino")) == ["openvino"]
    engines(numpy="2.0", tensorrt_rtx="1.7.1")
    assert needed("tensorrt", gpu) == {}  # it builds engines as well
    assert found(None, (), "tensorrt")["a GPU of NVIDIA's"].found == "Orin (sm87), driver 540.4.0"
    # Without a GPU TensorRT is no engine.
    lacks = needed("tensorrt")
    assert list(lacks) == ["a GPU of NVIDIA's", "an engine"]
    assert lacks["a GPU of NVIDIA's"].found == "no CUDA device"


def test_a_provider_that_is_to_be_used_has_to_be_there() -> None:
    pytest.importorskip("onnxruntime")
    assert found(provider="cpu")["provider cpu"].found == "CPUExecutionProvider"
    lack = found(provider="coreml" if sys.platform != "darwin" else "xnnpack")
    (finding,) = [each for name, each in lack.items() if name.startswith("provider ")]
    assert finding.needed
    assert not finding.usable
    assert "this build of onnxruntime" in finding.found
    plugin = found(provider="qnn")["provider qnn"]
    assert (plugin.needed, plugin.usable, plugin.remedy) == (True, False, "pip install onnxruntime-qnn")
    with pytest.raises(UsageError, match=r"provider is 'cuba', expected cpu, cuda"):
        examine(provider="cuba")


def test_formats_that_an_old_engine_cannot_read(engines, write_bundle, build_model, tmp_path):
    newer = build_model(opset=22).SerializeToString()
    formats = {
        "onnx": {"file": "model.onnx", "size_bytes": len(build_model().SerializeToString()), "precision": "fp32"},
        "bf16": {"file": "model.bf16.onnx", "size_bytes": len(newer), "precision": "bf16"},
    }
    formats = {name: {**each, "opset": 20, "ir_version": 10} for name, each in formats.items()}
    folder = write_bundle(tmp_path / "bundle", formats=formats)
    (folder / "model.bf16.onnx").write_bytes(newer)
    write_checksums(folder)
    engines(numpy="2.0", onnxruntime="1.19.2")
    findings = found(folder)
    assert findings["format onnx"].usable
    assert findings["format bf16"].found == "onnxruntime 1.19.2 cannot read opset 22 (it reads up to 21)"
    assert findings["format bf16"].remedy == (f"{sys.executable} -m pip install 'onnxruntime>=1.21', or measure onnx")
    assert "format bf16" not in {each.what for each in examine(folder, ("onnx",))}
    assert not any(each.what.startswith("format") for each in examine(folder, engine="openvino"))
    engines(numpy="2.0", onnxruntime="1.17.0")
    assert found(folder)["format onnx"].remedy.endswith(
        "'onnxruntime>=1.18', or export it again for this engine: opset 17"
    )


def test_what_it_says_of_power(engines, command, tmp_path, monkeypatch):
    engines(numpy="2.0")
    monkeypatch.setattr("runtime.doctor._RAPL", str(tmp_path))
    assert found()["counters of energy"].usable is bool(read_counters())
    assert not {"power mode", "power of rails", "gpu"} & set(found())
    (tmp_path / "intel-rapl:0").mkdir()
    if not any(name.startswith("RAPL") for name in read_counters()):
        assert found()["counters of RAPL"].remedy.endswith(f"sudo chmod a+r {tmp_path}/intel-rapl:*/energy_uj")
    command("nvpmodel", "NV Power Mode: 15W")
    command("tegrastats", "RAM 1/2MB CPU [1%@2] VDD_IN 4093mW/4463mW VDD_SOC 1mW/1mW")
    assert found()["power mode"].found == "15W"
    assert "VDD_IN, VDD_SOC" in found()["power of rails"].found


def test_the_command(bundle_folder, tmp_path, capsys):
    assert main(["doctor", "--bundle", str(bundle_folder), "--output", str(tmp_path / "doctor.json")]) == 0
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert document["kind"] == "doctor"
    named = {each["what"]: each["usable"] for each in document["findings"]}
    assert [named[each] for each in ("numpy", "onnxruntime", "format onnx")] == [True] * 3
    assert "reads it" in capsys.readouterr().out
