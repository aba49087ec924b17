"""Many threads on one session, and nodes that are wrong: an error each, and never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import ops_builds
import packed_models
import pytest

FUZZ = Path(packed_models.__file__).parent / "malformed_nodes.py"


def session_of(model: onnx.ModelProto, threads: int = 1):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ops_builds.operators()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("intra_op_threads", [1, 3])
def test_ten_threads_on_one_session(intra_op_threads):
    shape = (40, 30, 5)
    model = packed_models.image_classifier(*shape)
    session = session_of(model, intra_op_threads)
    batches = [packed_models.random_images(count, *shape, seed=count) for count in (1, 2, 3)]
    expected = [packed_models.classify_images(model, batch) for batch in batches]
    wrong: list[str] = []

    def run(caller: int) -> None:
        for i in range(60):
            at = (caller + i) % len(batches)
            came = session.run(None, {"image": batches[at]})
            if not all(np.array_equal(a, b) for a, b in zip(came, expected[at], strict=True)):
                wrong.append(f"caller {caller}, round {i}")

    callers = [threading.Thread(target=run, args=(caller,)) for caller in range(10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.parametrize("isa", ["avx512_vpopcntdq", "avx512", "avx2", "popcnt", "portable"])
def test_instruction_sets_agree_with_the_plain_reading(isa, tmp_path):
    model, images = packed_models.image_classifier(12, 33, 70), packed_models.random_images(1, 12, 33, 70)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "image").write_bytes(images.tobytes())
    done = subprocess.run(
        [ops_builds.examples() / "run", ops_builds.onnxruntime_library(), ops_builds.operators(),
         tmp_path / "model.onnx", tmp_path / "image"],
        capture_output=True, env={**os.environ, "EDGEFOLD_ISA": isa},
    )  # fmt: skip
    if b"this machine has" in done.stderr:
        pytest.skip(done.stderr.decode().strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"".join(each.tobytes() for each in packed_models.classify_images(model, images))


def test_an_instruction_set_that_is_changed_too_late_is_an_error(monkeypatch):
    import onnxruntime

    monkeypatch.delenv("EDGEFOLD_ISA", raising=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ops_builds.operators()))
    monkeypatch.setenv("EDGEFOLD_ISA", "none")
    with pytest.raises(Exception, match="EDGEFOLD_ISA names no kernels of this machine"):
        onnxruntime.InferenceSession(packed_models.image_classifier().SerializeToString(), options)


def fuzz(library: Path, count: int, seed: int, *options: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, FUZZ, library, str(count), str(seed), *options],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.returncode}\n{done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    made, refused = sum(counts["made"].values()), sum(counts["refused"].values())
    assert refused > 0.7 * made
    assert counts["by_operator"] > 0.4 * made


def test_malformed_nodes_are_answered_by_errors():
    fuzz(ops_builds.operators(), 3000, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="puts GCC's sanitizers before Python by LD_PRELOAD")
def test_malformed_nodes_are_clean_under_the_sanitizers():
    library = ops_builds.sanitized("address,undefined") / "libedgefold_ops.so"
    runtimes = [ops_builds.run("g++", f"-print-file-name=lib{name}.so").stdout.strip() for name in ("asan", "ubsan")]
    fuzz(
        library, 2000, 2, "unlimited",
        LD_PRELOAD=" ".join(runtimes), ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("isa", ["", "portable"])
def test_many_malformed_nodes_are_answered_by_errors(isa):
    fuzz(ops_builds.operators(), int(os.environ.get("EDGEFOLD_MALFORMED_NODES", "100000")), seed=1, EDGEFOLD_ISA=isa)
