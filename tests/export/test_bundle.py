"""The bundle on disk: what the device reads, byte for byte the same, whole or absent."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import export.bundle
from export.bundle import OnnxForm, npz_bytes, write_bundle
from export.graph import InputSignature
from export.parity import GATES, Gate
from export.to_fp16 import fp16_from_onnx
from export.to_int8 import int8_from_onnx
from export.verify import verify_bundle
from runtime.bundle import open_bundle
from runtime.errors import ExportError
from runtime.runners import open_runner
from runtime.table import HashedColumns
from runtime.text import HashedNgrams


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_bundle_opens_with_everything_that_was_given(bundle_folder: Path, parts: dict[str, Any]) -> None:
    bundle = open_bundle(bundle_folder)
    assert (bundle.name, bundle.stage, bundle.recipe_key) == ("small", "student", "0" * 64)
    assert (bundle.classes, bundle.subclasses, bundle.class_names) == (3, 4, ("ant", "bee", "cät"))
    assert bundle.batch_sizes == (1, 8, 64)
    assert bundle.metrics == {"test_accuracy": 0.9, "test_rows": 300}
    samples = bundle.samples()
    for name in ("inputs", "labels", "row_ids", "logits"):
        np.testing.assert_array_equal(getattr(samples, name), parts[name])
    assert bundle.file_of("onnx").read_bytes() == parts["onnx"]


def test_manifest_is_that_of_format_version_1(bundle_folder: Path, parts: dict[str, Any]) -> None:
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["input"] == {"name": "input", "dtype": "uint8", "shape": [6, 5, 2], "layout": "NHWC"}
    assert manifest["outputs"] == [
        {"name": "logits", "dtype": "float32", "shape": [3]},
        {"name": "subclass_probabilities", "dtype": "float32", "shape": [12]},
    ]
    assert manifest["formats"] == {
        "onnx": {
            "file": "model.onnx",
            "size_bytes": len(parts["onnx"]),
            "precision": "fp32",
            "opset": 20,
            "ir_version": 10,
        }
    }
    assert (manifest["samples"], manifest["labels"]) == ("samples.npz", "labels.txt")
    assert (bundle_folder / "labels.txt").read_bytes() == "ant\nbee\ncät\n".encode()


def test_bundle_runs_in_the_runtime(bundle_folder: Path, parts: dict[str, Any]) -> None:
    with open_runner(open_bundle(bundle_folder)) as runner:
        logits = runner.infer(parts["inputs"][:5])
    np.testing.assert_allclose(logits, parts["logits"][:5], atol=1e-5)


def test_same_parts_give_the_same_bytes_at_any_time(tmp_path: Path, parts: dict[str, Any], monkeypatch: Any) -> None:
    write_bundle(tmp_path / "a", **parts)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    transposed = {
        **parts,
        "inputs": np.asfortranarray(parts["inputs"]),
        "labels": parts["labels"].astype(np.int32),
    }
    write_bundle(tmp_path / "b", **transposed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_npz_carries_no_date_and_reads_back() -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.float32([[1.5]])}
    data = npz_bytes(arrays)
    read = np.load(io.BytesIO(data), allow_pickle=False)
    assert read.files == ["a", "b"]
    np.testing.assert_array_equal(read["a"], arrays["a"])
    assert {entry.date_time for entry in read.zip.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_array_of_objects_should_fail() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        npz_bytes({"a": np.array([{}], dtype=object)})


def test_rewriting_replaces_the_old_bundle_whole(bundle_folder: Path, parts: dict[str, Any]) -> None:
    (bundle_folder / "left-over.engine").write_bytes(b"old")
    write_bundle(bundle_folder, **{**parts, "name": "newer"})
    assert open_bundle(bundle_folder).name == "newer"
    assert not (bundle_folder / "left-over.engine").exists()
    assert [each.name for each in bundle_folder.parent.iterdir()] == ["bundle"]


def test_failure_on_the_way_keeps_the_old_bundle(bundle_folder: Path, parts: dict[str, Any], monkeypatch: Any) -> None:
    before = contents(bundle_folder)

    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export.bundle, "write_checksums", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle_folder, **{**parts, "name": "newer"})
    assert contents(bundle_folder) == before
    assert [each.name for each in bundle_folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": 4}, "class_names has 3 names"),
        ({"class_names": ("ant", "b\nee", "cat")}, r"'b\\nee' does not fit on one line"),
        ({"class_names": ("ant", "", "cat")}, "'' does not fit on one line"),
        ({"metrics": {"test_accuracy": float("nan")}}, "metric test_accuracy is nan"),
        ({"labels": np.full(300, 3)}, "labels outside 0 to 2"),
        ({"row_ids": np.zeros(300)}, "occur more than once"),
        ({"logits": np.zeros((300, 12))}, "logits has shape"),
        ({"inputs": np.zeros((300, 6, 5, 2), np.float32)}, "dtype float32, expected uint8"),
        ({"onnx": b"\xff\xff\xff\xff"}, "not ONNX"),
        ({"signature": InputSignature((2, 6, 5), layout="NCHW")}, r"takes input \('batch', 6, 5, 2\)"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
    ],
)
def test_parts_that_do_not_belong_together_should_fail(
    tmp_path: Path, parts: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        write_bundle(tmp_path / "bundle", **{**parts, **change})
    assert not list(tmp_path.iterdir())
    assert ".part" not in str(caught.value)


def test_the_featuriser_of_a_text_model_must_be_there_and_fit(tmp_path: Path, parts: dict[str, Any]) -> None:
    of_images, ids = parts["signature"], InputSignature.of_ids(6, 50)
    for signature, text in [
        (of_images, HashedNgrams()),
        (ids, None),
        (ids, HashedNgrams(50, 2, 7)),
        (ids, HashedNgrams(51, 2, 6)),
    ]:
        with pytest.raises(ExportError, match="expected the one that fits it"):
            write_bundle(tmp_path / "bundle", **{**parts, "signature": signature, "text": text})
    assert not (tmp_path / "bundle").exists()


def test_the_featuriser_of_a_table_must_be_there_and_fit(tmp_path: Path, parts: dict[str, Any]) -> None:
    rows, columns = InputSignature.of_table(2, 4, 50), HashedColumns(2, 4, 50)
    for signature, featurisers in [
        (parts["signature"], {"table": columns}),
        (InputSignature.of_ids(6, 50), {"text": HashedNgrams(50, 2, 6), "table": columns}),
        (rows, {}),
        (rows, {"text": HashedNgrams(50, 2, 6)}),
        (rows, {"table": HashedColumns(3, 3, 50)}),
        (rows, {"table": HashedColumns(2, 4, 51)}),
    ]:
        with pytest.raises(ExportError, match="expected the one that fits it"):
            write_bundle(tmp_path / "bundle", **{**parts, "signature": signature, **featurisers})
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_images_says_nothing_of_text_or_tables(bundle_folder: Path) -> None:
    assert {"text", "table"}.isdisjoint(json.loads((bundle_folder / "manifest.json").read_text()))
    assert (open_bundle(bundle_folder).text, open_bundle(bundle_folder).table) == (None, None)


def test_packed_form_lies_beside_the_other(tmp_path: Path, parts: dict[str, Any]) -> None:
    write_bundle(tmp_path / "bundle", **parts, forms=[OnnxForm("packed", parts["onnx"])])
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.file_of("packed").name == "model.packed.onnx"
    assert list(bundle.formats) == ["onnx", "packed"]
    assert (bundle.format("packed").precision, bundle.format("onnx").precision) == ("packed", "fp32")
    assert bundle.file_of("packed").read_bytes() == parts["onnx"]


def test_packed_model_with_other_outputs_is_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    other = onnx.load_model_from_string(parts["onnx"])
    del other.graph.output[1]
    with pytest.raises(ExportError, match=r"the packed model gives .*logits.*; expected .*subclass_probabilities"):
        write_bundle(tmp_path / "bundle", **parts, forms=[OnnxForm("packed", other.SerializeToString())])
    assert not (tmp_path / "bundle").exists()


def test_every_precision_has_a_file_and_int8_a_gate_of_its_own(tmp_path: Path, parts: dict[str, Any]) -> None:
    made = int8_from_onnx(parts["onnx"], parts["inputs"], parts["inputs"], parts["labels"], gate=GATES["int8"])
    gate = Gate(max_error_over_std=0.2, top1_agreement=0.9, metric_drop_points=5.0)
    forms = [OnnxForm("fp16", fp16_from_onnx(parts["onnx"])), OnnxForm("int8", made.model, gate)]
    write_bundle(tmp_path / "bundle", **parts, forms=forms)
    bundle = open_bundle(tmp_path / "bundle")
    assert {name: (form.file, form.precision, form.opset) for name, form in bundle.formats.items()} == {
        "onnx": ("model.onnx", "fp32", 20),
        "fp16": ("model.fp16.onnx", "fp16", 20),
        "int8": ("model.int8.onnx", "int8", 20),
    }
    assert bundle.formats["int8"].gate == {"max_error_over_std": 0.2, "top1_agreement": 0.9, "metric_drop_points": 5.0}
    reports = verify_bundle(tmp_path / "bundle")
    assert [report.gate for report in reports] == [GATES["fp32"], GATES["fp16"], gate]
    assert all(report.passed for report in reports)


def test_another_form_gives_the_same_outputs(tmp_path: Path, parts: dict[str, Any]) -> None:
    fewer = onnx.load_model_from_string(parts["onnx"])
    del fewer.graph.output[1]
    with pytest.raises(ExportError, match=r"the fp16 model gives .*; expected .*, as the other form does"):
        write_bundle(tmp_path / "bundle", **parts, forms=[OnnxForm("fp16", fewer.SerializeToString())])
