import pytest

from runtime.onnx_file import OnnxHeader
from runtime.onnx_support import LEAST_OPSETS, READS, refusal

RECIPE = {"edgefold.name": "quickstart", "edgefold.recipe": "name: quickstart\nstages:\n  student: {}\n"}


def header(ir_version, opset, metadata=None, **domains):
    return OnnxHeader(ir_version, {"": opset, **domains}, metadata or {})


def test_later_versions_never_read_less():
    reads = [READS[version] for version in sorted(READS)]
    assert reads == sorted(reads, key=lambda each: (each.ir_version, each.opset))


@pytest.mark.parametrize(
    ("ir_version", "opset", "version", "why", "install"),
    [
        (10, 22, "1.19.2", "cannot read opset 22 (it reads up to 21)", "'onnxruntime>=1.21'"),
        (10, 20, "1.17.3", "cannot read IR 10 (it reads up to 9)", "'onnxruntime>=1.18'"),
        (11, 23, "1.15.1", "cannot read IR 11 (it reads up to 9) and opset 23", "'onnxruntime>=1.23'"),
        (9, 19, "1.15.1", "cannot read opset 19 (it reads up to 18)", "'onnxruntime>=1.16'"),
        (8, 17, "1.11.1", "cannot read opset 17 (it reads up to 16)", "'onnxruntime>=1.12'"),
        (8, 15, "1.6.0", "cannot read IR 8 (it reads up to 7) and opset 15 (it reads up to 13)", "'onnxruntime>=1.9'"),
        (40, 90, "1.24.1", "cannot read IR 40", "--upgrade onnxruntime"),
    ],
)
def test_a_file_that_is_too_new_names_the_version_that_reads_it(ir_version, opset, version, why, install):
    refused = refusal(header(ir_version, opset), version)
    assert refused.why.startswith(f"onnxruntime {version} ")
    assert why in refused.why
    assert refused.install == f"pip install {install}"


@pytest.mark.parametrize("version", ["1.18.0", "1.31.1", "2.0.0", "1.24.1", "local build"])
def test_what_is_read_or_unknown_is_no_finding(version):
    assert refusal(header(10, 20), version) is None


@pytest.mark.parametrize(
    ("version", "metadata", "command"),
    [
        ("1.17.3", RECIPE, "edgefold export quickstart --opset 17 (or `opset: 17` in the recipe's export)"),
        ("1.16.3", {**RECIPE, "edgefold.name": "quickstart@0.02@opset19"},
         "edgefold export quickstart --scale 0.02 --opset 17 (or `opset: 17` in the recipe's export)"),
        ("1.10.0", RECIPE, "edgefold export quickstart --opset 15 (or `opset: 15` in the recipe's export)"),
        ("1.7.0", {"edgefold.name": "mine", "edgefold.recipe": "name: mine\nweights: {}\n"},
         "edgefold export --weights ... --opset 13"),
        ("1.14.1", {}, "opset 17"),
    ],
)  # fmt: skip
def test_the_export_for_an_old_engine_is_offered_beside_its_upgrade(version, metadata, command):
    refused = refusal(header(10, 20, metadata), version)
    assert refused.export == command
    assert refused.remedy("/opt/python").startswith(
        "/opt/python -m pip install 'onnxruntime>=1.18', or export it again"
    )
    assert refused.remedy().endswith(f": {command}")


@pytest.mark.parametrize(
    ("form", "opset", "version"), [("bf16", 22, "1.20.1"), ("int4", 21, "1.17.3"), ("qonnx", 20, "1.8.1"),
                                   ("onnx", 20, "1.6.0")]
)  # fmt: skip
def test_what_no_earlier_opset_has_is_not_offered(form, opset, version):
    refused = refusal(header(10, opset, RECIPE), version, form)
    assert refused.export == ""
    assert refused.remedy() == refused.install


def test_formats_of_later_opsets_are_written_by_nothing_earlier():
    assert {form: least for form, (least, _) in LEAST_OPSETS.items()} == {"bf16": 22, "int4": 21, "qonnx": 15}


def test_packed_models_need_an_engine_that_takes_their_operators():
    refused = refusal(header(8, 17, RECIPE, edgefold=1), "1.16.3", "packed")
    assert "it is too old for their library" in refused.why
    assert (refused.install, refused.export) == ("pip install 'onnxruntime>=1.17'", "")
    assert refusal(header(9, 20, RECIPE, edgefold=1), "1.17.0", "packed") is None


def test_a_version_that_crashes_on_a_form_is_refused_for_it():
    refused = refusal(header(8, 17, RECIPE), "1.14.1", "fp16")
    assert refused.why == "onnxruntime 1.14.1 cannot read float16 on a CPU (it crashes)"
    assert (refused.install, refused.export) == ("pip install 'onnxruntime>=1.15'", "")
    assert refusal(header(8, 17, RECIPE), "1.14.1", "onnx") is None
    assert refusal(header(8, 17, RECIPE), "1.15.1", "fp16") is None
    assert refusal(header(10, 20, RECIPE), "1.14.1", "fp16").export == ""


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
