import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from runtime.__main__ import main
from runtime.bundle import CHECKSUMS, bundle_checksum, open_bundle, write_checksums
from runtime.errors import BundleError, UsageError

FILES = ["manifest.json", "model.onnx", "samples.npz", "labels.txt", CHECKSUMS]


def change_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_checksums(folder)


def test_open_reads_every_field(bundle, bundle_folder, samples):
    assert bundle.name == "tiny"
    assert bundle.class_names == ("ant", "bee", "cat")
    assert bundle.input.shape == (4, 3, 1)
    assert bundle.outputs[0].name == "logits"
    assert bundle.batch_sizes == (1, 8)
    assert bundle.metrics == {"test_accuracy": 0.9, "test_rows": 24}
    assert bundle.file_of("onnx") == bundle_folder / "model.onnx"
    assert bundle.formats["onnx"].opset == 20
    rows = bundle.samples()
    for name, array in samples.items():
        np.testing.assert_array_equal(getattr(rows, name), array)


def test_checksums_are_those_of_sha256sum(bundle_folder, bundle):
    lines = (bundle_folder / CHECKSUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "labels.txt",
        "manifest.json",
        "model.onnx",
        "samples.npz",
    ]
    digest = hashlib.sha256((bundle_folder / "labels.txt").read_bytes()).hexdigest()
    assert lines[0] == f"{digest}  labels.txt"
    whole = hashlib.sha256((bundle_folder / CHECKSUMS).read_bytes()).hexdigest()
    assert bundle_checksum(bundle_folder) == whole == bundle.checksum


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_is_found_and_named(bundle_folder, file, capsys):
    path = bundle_folder / file
    content = path.read_bytes()
    # Every byte of the small files, about a hundred of the large ones; a low and a high bit.
    for position in range(0, len(content), max(1, len(content) // 100) if file != CHECKSUMS else 1):
        for mask in (0x01, 0x80, 0x20):
            damaged = bytearray(content)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(BundleError) as caught:
                open_bundle(bundle_folder)
            assert file in caught.value.message
    assert main(["inspect", str(bundle_folder)]) == 2
    captured = capsys.readouterr()
    assert file in captured.err
    assert captured.out == ""
    path.write_bytes(content)
    open_bundle(bundle_folder)


@pytest.mark.parametrize("replacement", [b" ", b"*", b"\r", b"\x0b", b"A", b"."])
def test_no_single_replaced_byte_of_the_list_is_overlooked(bundle_folder, replacement):
    path = bundle_folder / CHECKSUMS
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = content[:position] + replacement + content[position + 1 :]
        if damaged != content:
            path.write_bytes(damaged)
            with pytest.raises(BundleError):
                open_bundle(bundle_folder)


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(bundle_folder, file):
    (bundle_folder / file).unlink()
    with pytest.raises(BundleError, match=file.replace(".", r"\.")):
        open_bundle(bundle_folder)


def test_truncated_file_is_named(bundle_folder):
    path = bundle_folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.onnx is altered"):
        open_bundle(bundle_folder)


def test_extra_file_is_ignored(bundle_folder):
    (bundle_folder / "notes.txt").write_text("mine")
    assert open_bundle(bundle_folder).name == "tiny"


def test_file_altered_after_opening_is_found(bundle):
    (bundle.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx is altered"):
        bundle.read_bytes("model.onnx")


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:secret", "./labels.txt", "a//b", ""],
)
def test_path_escape_is_refused_in_list_and_manifest(bundle_folder, path, tmp_path):
    (tmp_path / "secret").write_text("s")
    shutil.copytree(bundle_folder, tmp_path / "second")
    with open(bundle_folder / CHECKSUMS, "a") as file:
        file.write(f"{hashlib.sha256(b's').hexdigest()}  {path}\n")
    with pytest.raises(BundleError, match=r"plain path inside the bundle|expected '<sha256"):
        open_bundle(bundle_folder)
    change_manifest(tmp_path / "second", lambda manifest: manifest.update(labels=path))
    with pytest.raises(BundleError, match=r"manifest\.json names .* plain path inside"):
        open_bundle(tmp_path / "second")


def test_symlink_out_of_the_bundle_is_refused(bundle_folder, tmp_path):
    target = tmp_path / "labels.txt"
    (bundle_folder / "labels.txt").rename(target)
    os.symlink(target, bundle_folder / "labels.txt")
    with pytest.raises(BundleError, match="through a symlink"):
        open_bundle(bundle_folder)
    with pytest.raises(BundleError, match="through a symlink"):
        write_checksums(bundle_folder)


def test_symlink_within_the_bundle_and_to_it_is_fine(bundle_folder, tmp_path):
    (bundle_folder / "labels.txt").rename(bundle_folder / "names.txt")
    os.symlink("names.txt", bundle_folder / "labels.txt")
    os.symlink(bundle_folder, tmp_path / "latest")
    write_checksums(bundle_folder)
    assert open_bundle(tmp_path / "latest").classes == 3


def test_special_file_is_refused_not_waited_for(bundle_folder):
    (bundle_folder / "labels.txt").unlink()
    os.mkfifo(bundle_folder / "labels.txt")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(bundle_folder)


def test_file_the_manifest_names_must_be_in_the_list(bundle_folder):
    path = bundle_folder / CHECKSUMS
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "model.onnx" not in line))
    with pytest.raises(BundleError, match=r"model\.onnx is not listed"):
        open_bundle(bundle_folder)


def test_file_listed_twice_is_refused(bundle_folder):
    path = bundle_folder / CHECKSUMS
    path.write_text(path.read_text() + path.read_text().splitlines(True)[0])
    with pytest.raises(BundleError, match=r"line 5.*listed twice"):
        open_bundle(bundle_folder)


FORM = {"file": "model.onnx", "size_bytes": 1, "precision": "fp32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2, this edgefold reads 1"),
        ({"format_version": None}, "'format_version' is missing"),
        ({"classes": None}, "'classes' is missing"),
        ({"classes": "3"}, 'classes is "3", expected an integer >= 1'),
        ({"classes": True}, "classes is true, expected an integer"),
        ({"subclasses": 0}, "subclasses is 0, expected an integer >= 1"),
        ({"class_names": ["a", "b"]}, "class_names has 2 names, classes is 3"),
        ({"class_names": ["ant", "bee", "cow"]}, "are not the class_names"),
        ({"class_names": "ant"}, 'class_names is "ant", expected a list'),
        ({"input": []}, r"input is \[\], expected an object"),
        (
            {"input": {"name": "input", "dtype": "object", "shape": [1]}},
            'input.dtype is "object", expected one of uint8',
        ),
        (
            {"input": {"name": "input", "dtype": "uint8", "shape": [4, 0]}},
            r"input\.shape\[1\] is 0, expected an integer >= 1",
        ),
        ({"outputs": []}, r"first output is no output, expected class logits of shape \[3\]"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": [6]}]}, r"'logits' of shape \[6\]"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
        ({"formats": {}}, "formats is empty"),
        (
            {"formats": {"onnx": {"file": "model.onnx", "size_bytes": 1, "precision": "fp32"}}},
            r"formats\.onnx\.size_bytes is 1, but model\.onnx has",
        ),
        (
            {"formats": {"onnx": {**FORM, "gate": {"max_error_over_std": 0.1, "top1_agreement": 1}}}},
            r"'formats\.onnx\.gate\.metric_drop_points' is missing",
        ),
        ({"metrics": {"test_accuracy": "high"}}, r"metrics\.test_accuracy is \"high\", expected a number"),
    ],
)
def test_manifest_errors_name_key_value_and_expectation(write_bundle, tmp_path, change, message):
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(write_bundle(tmp_path / "bundle", **change))
    assert str(tmp_path / "bundle") in caught.value.message


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'{"a": NaN}', b"\xff", b"[]"])
def test_manifest_that_is_no_json_object(bundle_folder, content):
    (bundle_folder / "manifest.json").write_bytes(content)
    write_checksums(bundle_folder)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(bundle_folder)


def test_unknown_manifest_keys_are_ignored(write_bundle, tmp_path):
    assert open_bundle(write_bundle(tmp_path / "bundle", colour="red")).name == "tiny"


def test_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is a file"):
        open_bundle(tmp_path / "file")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)


def test_unknown_format_names_the_near_one(bundle):
    with pytest.raises(UsageError, match="no format 'onx' in this bundle; it has onnx\nDid you mean 'onnx'"):
        bundle.file_of("onx")


def test_damaged_samples_are_bundle_errors(write_bundle, tmp_path, samples):
    cases = {
        "labels missing": {name: array for name, array in samples.items() if name != "labels"},
        "logits missing": {name: array for name, array in samples.items() if name != "logits"},
        "not finite at row ids 100, 101, .* and 14 more": {**samples, "logits": np.full((24, 3), np.nan)},
        "not a whole .npz": {**samples, "labels": np.array([object()] * 24)},
    }
    for index, (message, arrays) in enumerate(cases.items()):
        if "logits" in arrays:
            arrays["logits"] = arrays["logits"].astype(np.float32)
        folder = write_bundle(tmp_path / str(index), arrays=arrays)
        with pytest.raises(BundleError, match=message):
            open_bundle(folder).samples()
