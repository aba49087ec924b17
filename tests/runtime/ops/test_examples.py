"""The example programs, built and run on a bundle's packed model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import ops_builds
import packed_models
import pytest

LABELS = ["ant", "bee", "cat", "dog", "elk"]
EXAMPLE = ops_builds.OPS / "example"


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return packed_models.image_classifier()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return packed_models.random_images(8)


@pytest.fixture(scope="module")
def folder(model, images, tmp_path_factory) -> Path:
    """A folder with what the examples read of a bundle, and the images."""
    folder = tmp_path_factory.mktemp("bundle")
    onnx.save(model, folder / "model.packed.onnx")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    for i, image in enumerate(images):
        packed_models.write_image(folder / f"{i}.ppm", image)
    return folder


@pytest.fixture(scope="module")
def expected(model, images) -> list[tuple[str, float]]:
    logits = packed_models.classify_images(model, images)[0]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return [(LABELS[row.argmax()], row.max()) for row in probabilities]


def image_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ppm"))


def check_lines(printed: str, expected: list[tuple[str, float]], folder: Path) -> None:
    lines = [line.split("\t") for line in printed.splitlines()]
    assert [line[0] for line in lines] == [label for label, _ in expected]
    assert len({line[0] for line in lines}) > 1
    np.testing.assert_allclose([float(line[1]) for line in lines], [each for _, each in expected], rtol=1e-4)
    assert [line[2] for line in lines] == [str(path) for path in image_files(folder)]


def classify_in_cpp(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        ops_builds.examples() / "classify",
        "--onnxruntime", ops_builds.onnxruntime_library(), "--ops", ops_builds.operators(), *arguments,
    ]  # fmt: skip
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_cpp_classifies_image_files(folder, expected):
    done = classify_in_cpp(folder, *image_files(folder))
    assert done.returncode == 0, done.stderr
    check_lines(done.stdout, expected, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P6\n7 9\n255\n" + bytes(100), "the file ends before its last pixel"),
        (b"P5\n7 9\n255\n" + bytes(63), "the image is 9x7x1 (height, width, channels), the model takes 9x7x3"),
        (b"P6\n7 9\n65535\n" + bytes(378), "its brightest value is not 255"),
        (b"P6\n99999999999999999999 9\n255\n", "a number of its header is above 65535"),
        (b"P3\n7 9\n255\n", "neither a binary PGM (P5) nor a binary PPM (P6) file"),
        (b"", "neither a binary PGM"),
        (b"P6\n# no end", "its header is not that of a PGM or PPM file"),
    ],
)
def test_cpp_says_what_is_wrong_with_an_image(folder, tmp_path, content, message):
    (tmp_path / "image").write_bytes(content)
    done = classify_in_cpp(folder, tmp_path / "image")
    assert done.returncode == 1
    assert message in done.stderr


def test_cpp_says_what_is_wrong_with_a_bundle(tmp_path):
    done = classify_in_cpp(tmp_path, tmp_path / "image")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/labels.txt: cannot be opened\n")


def test_c_runs_a_model_on_raw_input(model, images, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "input").write_bytes(images[:1].tobytes())
    done = subprocess.run(
        [ops_builds.examples() / "run", ops_builds.onnxruntime_library(), ops_builds.operators(),
         tmp_path / "model.onnx", tmp_path / "input"],
        capture_output=True, env={**os.environ, "EDGEFOLD_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"".join(each.tobytes() for each in packed_models.classify_images(model, images[:1]))


def test_python_classifies_image_files(folder, expected):
    done = ops_builds.run(sys.executable, EXAMPLE / "classify.py", ops_builds.operators(), folder, *image_files(folder))
    check_lines(done.stdout, expected, folder)


def classify_in_node(library: object, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["node", EXAMPLE / "node" / "classify.js", ops_builds.examples() / "edgefold_node.node", *arguments]
    environment = {**os.environ, "NODE_PATH": str(ops_builds.node_modules()), "EDGEFOLD_OPS_LIBRARY": str(library)}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


def test_node_classifies_image_files(folder, expected):
    done = classify_in_node(ops_builds.operators(), folder, *image_files(folder))
    assert done.returncode == 0, done.stderr
    check_lines(done.stdout, expected, folder)


def test_node_says_that_the_library_cannot_be_loaded(folder):
    done = classify_in_node(folder / "none.so", folder, *image_files(folder))
    assert done.returncode == 1
    assert "none.so cannot be loaded" in done.stderr
