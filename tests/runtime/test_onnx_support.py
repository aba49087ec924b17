import pytest

from runtime.onnx_file import OnnxHeader
from runtime.onnx_support import READS, refusal


def header(ir_version, opset):
    return OnnxHeader(ir_version, {"": opset}, {})


def test_later_versions_never_read_less():
    reads = [READS[version] for version in sorted(READS)]
    assert reads == sorted(reads, key=lambda each: (each.ir_version, each.opset))


@pytest.mark.parametrize(
    ("ir_version", "opset", "version", "why", "install"),
    [
        (10, 22, "1.19.2", "cannot read opset 22 (it reads up to 21)", "'onnxruntime>=1.21'"),
        (10, 20, "1.17.3", "cannot read IR 10 (it reads up to 9)", "'onnxruntime>=1.18'"),
        (11, 23, "1.15.1", "cannot read IR 11 (it reads up to 9) and opset 23", "'onnxruntime>=1.23'"),
        (40, 90, "1.24.1", "cannot read IR 40", "--upgrade onnxruntime"),
    ],
)
def test_a_file_that_is_too_new_names_the_version_that_reads_it(ir_version, opset, version, why, install):
    said, remedy = refusal(header(ir_version, opset), version)
    assert said.startswith(f"onnxruntime {version} ")
    assert why in said
    assert remedy == f"pip install {install}"


@pytest.mark.parametrize("version", ["1.18.0", "1.31.1", "2.0.0", "1.24.1", "local build"])
def test_what_is_read_or_unknown_is_no_finding(version):
    assert refusal(header(10, 20), version) is None


def test_the_installed_engine_agrees(build_model):
    onnxruntime = pytest.importorskip("onnxruntime")
    minor = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if minor not in READS:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} is newer than the table")
    most = READS[minor].ir_version
    load = onnxruntime.InferenceSession
    load(build_model(ir_version=most).SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=f"max supported IR version: {most}"):
        load(build_model(ir_version=most + 1).SerializeToString(), providers=["CPUExecutionProvider"])
