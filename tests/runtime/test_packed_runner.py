"""The packed form on the device: with its operators, and what is said where they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ops_builds
import packed_models
import pytest

from runtime.bundle import Bundle, open_bundle, write_checksums
from runtime.errors import BundleError, EngineError, MissingExtraError
from runtime.runners import open_runner

LIBRARY = "EDGEFOLD_OPS_LIBRARY"
EXPECTED_NOTE = "packed does not run here: "


@pytest.fixture(scope="module")
def model():
    return packed_models.image_classifier()


@pytest.fixture
def bundle_of(write_bundle, tmp_path: Path):
    """Return a function that writes a bundle whose only form, or second one, is packed; logits are a line of ones."""

    def make(model, *, portable: bool) -> Bundle:
        data = model.SerializeToString()
        rng = np.random.default_rng(0)
        arrays = {
            "inputs": rng.integers(0, 256, (4, 9, 7, 3), dtype=np.uint8),
            "labels": np.zeros(4, np.int64),
            "row_ids": np.arange(4),
            "logits": np.zeros((4, packed_models.CLASSES), np.float32),
        }
        form = {"size_bytes": len(data), "opset": 17, "ir_version": 8}
        formats = {"packed": {"file": "model.onnx", "precision": "packed", **form}}
        if portable:
            formats["onnx"] = {"file": "model.onnx", "precision": "fp32", **form}
        names = [str(number) for number in range(packed_models.CLASSES)]
        folder = write_bundle(
            tmp_path / "packed",
            model=data,
            arrays=arrays,
            formats=formats,
            classes=packed_models.CLASSES,
            class_names=names,
            input={"name": "image", "dtype": "uint8", "shape": [9, 7, 3], "layout": "NHWC"},
            outputs=[{"name": "logits", "dtype": "float32", "shape": [packed_models.CLASSES]}],
        )
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names))
        write_checksums(folder)
        return open_bundle(folder)

    return make


@pytest.fixture
def with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY, str(ops_builds.operators()))


def test_packed_model_runs_with_its_operators(with_library, bundle_of, model) -> None:
    bundle = bundle_of(model, portable=False)
    rows = bundle.samples().inputs
    with open_runner(bundle, "packed", threads=2) as runner:
        logits = runner.infer(rows)
        np.testing.assert_array_equal(logits, np.concatenate([runner.infer(row[None]) for row in rows]))
    assert logits.shape == (4, packed_models.CLASSES)
    assert logits.std() > 0
    with open_runner(bundle, "best") as best:
        assert (best.format, best.notes) == ("packed", ())
        np.testing.assert_array_equal(best.infer(rows), logits)


def test_missing_library_names_the_portable_form(monkeypatch, bundle_of, model) -> None:
    monkeypatch.setenv(LIBRARY, "/nowhere/ops.so")
    bundle = bundle_of(model, portable=True)
    with pytest.raises(MissingExtraError, match=r"'/nowhere/ops\.so', which is no file") as caught:
        open_runner(bundle, "packed")
    assert "Or run --format onnx: the same model on standard operators" in caught.value.remedy
    assert LIBRARY in caught.value.remedy  # what would mend it stays


def test_without_a_portable_form_none_is_named(monkeypatch, bundle_of, model) -> None:
    monkeypatch.setenv(LIBRARY, "/nowhere/ops.so")
    bundle = bundle_of(model, portable=False)
    for format in ("packed", "best"):
        with pytest.raises(MissingExtraError) as caught:
            open_runner(bundle, format)
        assert "--format" not in caught.value.remedy


def test_file_that_is_no_library_is_an_engine_error(monkeypatch, bundle_of, model, tmp_path: Path) -> None:
    (tmp_path / "ops.so").write_bytes(b"not a library at all")
    monkeypatch.setenv(LIBRARY, str(tmp_path / "ops.so"))
    with pytest.raises(EngineError, match=r"ops\.so") as caught:
        open_runner(bundle_of(model, portable=True), "packed")
    assert "Or run --format onnx" in caught.value.remedy


def test_best_falls_back_with_a_note(monkeypatch, write_bundle, build_model, tmp_path: Path) -> None:
    model = build_model().SerializeToString()
    form = {"file": "model.onnx", "size_bytes": len(model), "opset": 20, "ir_version": 10}
    formats = {"onnx": {"precision": "fp32", **form}, "packed": {"precision": "packed", **form}}
    bundle = open_bundle(write_bundle(tmp_path / "both", model=model, formats=formats))
    monkeypatch.setenv(LIBRARY, "/nowhere/ops.so")
    with open_runner(bundle, "best") as runner:
        assert runner.format == "onnx"
        (note,) = runner.notes
        assert note.startswith(EXPECTED_NOTE)
        assert "/nowhere/ops.so" in note
    with open_runner(bundle, "onnx") as runner:
        assert runner.notes == ()


def test_newer_operators_than_these_are_refused(with_library, bundle_of, model) -> None:
    newer = type(model)()
    newer.CopyFrom(model)
    next(each for each in newer.opset_import if each.domain == "edgefold").version = 2
    with pytest.raises(BundleError, match="needs version 2 of the operators 'edgefold', and this edgefold has 1"):
        open_runner(bundle_of(newer, portable=False), "packed")
