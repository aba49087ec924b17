import contextlib
import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import BundleError
from runtime.onnx_file import onnx_header_from_bytes, read_onnx_header, refuse_external_data

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(max_size=12)


def external_tensor(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def model_with(*, nodes=(), initializers=(), sparse=(), functions=()) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    graph.sparse_initializer.extend(sparse)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, functions=list(functions)
    )


def header_of(model: onnx.ModelProto):
    return onnx_header_from_bytes(model.SerializeToString(), "model.onnx")


@QUICK
@given(
    ir_version=st.integers(1, 2**63 - 1),
    opsets=st.dictionaries(text.filter(lambda domain: domain != "ai.onnx"), st.integers(1, 2**63 - 1), max_size=4),
    metadata=st.dictionaries(text, text, max_size=4),
    locations=st.lists(text, max_size=4),
)
def test_header_is_what_onnx_wrote(ir_version, opsets, metadata, locations):
    model = model_with(initializers=[external_tensor(f"t{i}", each) for i, each in enumerate(locations)])
    opsets = {**opsets, "": 20}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    model.ir_version = ir_version
    helper.set_model_props(model, metadata)
    header = header_of(model)
    assert (header.ir_version, header.opsets, header.metadata) == (ir_version, opsets, metadata)
    assert [each.location for each in header.external_tensors] == locations
    assert header.external_data == tuple(dict.fromkeys(locations))


def test_default_domain_has_two_spellings(build_model):
    model = build_model()
    model.opset_import[0].domain = "ai.onnx"
    assert header_of(model).opset == 20


def test_weights_inside_the_file_are_not_external(build_model):
    assert header_of(build_model()).external_data == ()


def subgraph_node() -> onnx.NodeProto:
    constant = helper.make_node("Constant", [], ["c"], value=external_tensor("deep", "deep.bin"))
    branch = helper.make_graph([constant], "then", [], [])
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    return helper.make_node("If", ["x"], ["y"], else_branch=helper.make_graph([inner], "else", [], []))


def sparse_tensor() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        values=external_tensor("values", "values.bin"), indices=external_tensor("indices", "indices.bin")
    )


def training_model() -> onnx.ModelProto:
    model = model_with()
    part = model.training_info.add()
    part.algorithm.initializer.append(external_tensor("t", "step.bin"))
    part.initialization.initializer.append(external_tensor("t", "start.bin"))
    return model


def function_model() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=external_tensor("f", "function.bin"))
    function = helper.make_function("own", "F", [], ["c"], [constant], [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("a", external_tensor("a", "default.bin")))
    return model_with(functions=[function])


@pytest.mark.parametrize(
    ("model", "locations"),
    [
        (model_with(initializers=[external_tensor("w", "weights.bin")]), {"weights.bin"}),
        (model_with(sparse=[sparse_tensor()]), {"values.bin", "indices.bin"}),
        (model_with(nodes=[subgraph_node()]), {"deep.bin"}),
        (
            model_with(
                nodes=[
                    helper.make_node("A", [], ["a"], many=[external_tensor("m", "many.bin")]),
                    helper.make_node("B", [], ["b"], sparse=sparse_tensor()),
                    helper.make_node("C", [], ["c"], graphs=[subgraph_node().attribute[0].g]),
                ]
            ),
            {"many.bin", "values.bin", "indices.bin", "deep.bin"},
        ),
        (training_model(), {"step.bin", "start.bin"}),
        (function_model(), {"function.bin", "default.bin"}),
    ],
    ids=["initializer", "sparse initializer", "nested subgraph", "attribute lists", "training", "function"],
)
def test_external_data_is_found_wherever_a_tensor_can_lie(model, locations):
    assert set(header_of(model).external_data) == locations


def test_data_location_alone_and_entries_alone_both_count():
    flagged = TensorProto(name="flag", data_location=TensorProto.EXTERNAL)
    listed = external_tensor("entries", "x.bin")
    listed.data_location = TensorProto.DEFAULT
    header = header_of(model_with(initializers=[flagged, listed]))
    assert [(each.name, each.location) for each in header.external_tensors] == [
        ("flag", ""),
        ("entries", "x.bin"),
    ]


def test_deep_nesting_does_not_exhaust_the_stack():
    # Written by hand: protobuf itself refuses to nest this deep.
    graph = b""
    for _ in range(5000):
        attribute = b"\x32" + varint(len(graph)) + graph  # AttributeProto.g = 6
        node = b"\x2a" + varint(len(attribute)) + attribute  # NodeProto.attribute = 5
        graph = b"\x0a" + varint(len(node)) + node  # GraphProto.node = 1
    data = b"\x08\x0a" + b"\x3a" + varint(len(graph)) + graph + b"\x42\x02\x10\x14"
    assert onnx_header_from_bytes(data, "deep").external_data == ()


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_truncation_inside_the_graph_is_an_error_at_every_byte(build_model):
    data = build_model().SerializeToString()
    for length in range(data.index(b"bias") + 50):
        with pytest.raises(BundleError, match="cut"):
            onnx_header_from_bytes(data[:length], "cut")


def test_truncation_after_the_graph_is_an_error_or_the_same_header(build_model):
    model = build_model()
    model.metadata_props.clear()
    data = model.SerializeToString()
    whole = onnx_header_from_bytes(data, "m")
    for length in range(len(data)):
        try:
            assert onnx_header_from_bytes(data[:length], "m") == whole
        except BundleError:
            continue


@QUICK
@given(data=st.data())
def test_mutated_bytes_never_raise_anything_else(data, build_model):
    content = bytearray(build_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    accept_or_refuse(bytes(content))


@QUICK
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(content):
    accept_or_refuse(content)


def accept_or_refuse(content: bytes) -> None:
    with contextlib.suppress(BundleError):
        header = onnx_header_from_bytes(content, "model")
        assert header.ir_version > 0
        assert header.opset > 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "lacks an IR version and a graph and a default operator set"),
        (b"\x08", "ends inside a number"),
        (b"\x08" + b"\xff" * 11, "longer than 64 bits"),
        (b"\x3a\x05abc", "ends 2 bytes too early"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x01", "field number 0"),
        (b"\x0a\x01a", "should be a number"),
        (b"\x08\x0a\x38\x01\x42\x02\x10\x14", "should be a message"),
    ],
)
def test_damage_is_named(content, reason):
    with pytest.raises(BundleError, match=f"broken.*{reason}"):
        onnx_header_from_bytes(content, "broken")


def test_missing_file_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match=r"gone\.onnx cannot be read"):
        read_onnx_header(tmp_path / "gone.onnx")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/passwd", "absolute path"),
        ("C:\\secret.bin", "absolute path"),
        ("\\\\server\\share", "absolute path"),
        ("../secret.bin", r"goes up by '\.\.'"),
        ("a/../../secret.bin", r"goes up by '\.\.'"),
        ("a\\..\\..\\secret.bin", r"goes up by '\.\.'"),
        ("link.bin", "through a symlink"),
        ("beside.bin", "a file beside the model"),
    ],
)
def test_external_data_is_refused_with_its_way_out(tmp_path, location, reason):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    header = header_of(model_with(initializers=[external_tensor("inside", "a.bin"), external_tensor("w", location)]))
    with pytest.raises(BundleError, match=reason) as caught:
        refuse_external_data(header, folder / "model.onnx")
    assert ("'w'" in caught.value.message) == (location != "beside.bin")  # the worst one is named first


def test_header_of_a_file(tmp_path, build_model):
    onnx.save(build_model(), tmp_path / "m.onnx")
    header = read_onnx_header(tmp_path / "m.onnx")
    assert (header.ir_version, header.opset) == (10, 20)
    assert header.metadata == {"name": "tiny", "classes": "ant,bee,cat"}


def test_large_weights_are_skipped_not_parsed(build_model):
    model = build_model()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2_000_000, np.float32), "large"))
    assert header_of(model).opset == 20
