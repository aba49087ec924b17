"""A bundle's formats run by the device's runner, at every batch size, against the logits of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import export.verify
from export.bundle import write_bundle
from export.parity import GATES, Gate
from export.verify import batches, require_parity, verify_bundle, verify_format
from runtime.bundle import Bundle, open_bundle
from runtime.errors import ExportError, GateError, UsageError
from runtime.runners.choice import EngineChoice

SIZES = (1, 8, 64)


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder)


class FakeRunner:
    """Answers with `logits_of(batch)`, and keeps the size of every batch it got."""

    engine, version, notes = "fake", "0", ()

    def __init__(self, logits_of: Callable[[np.ndarray], np.ndarray]) -> None:
        self.logits_of = logits_of
        self.sizes: list[int] = []
        self.notes: tuple[str, ...] = ()

    def takes_batch(self, size: int) -> bool:
        return True

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.sizes.append(len(batch))
        return self.logits_of(batch)

    def infer_outputs(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": self.infer(batch)}


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[np.ndarray], np.ndarray]], FakeRunner]:
    """Put a runner of our own in the engine's place."""

    def put(logits_of: Callable[[np.ndarray], np.ndarray]) -> FakeRunner:
        runner = FakeRunner(logits_of)

        @contextmanager
        def open_runner(bundle: Bundle, format: str, threads: int, choice: EngineChoice) -> Iterator[FakeRunner]:
            yield runner

        monkeypatch.setattr(export.verify, "open_runner", open_runner)
        return runner

    return put


def pixel_logits(batch: np.ndarray) -> np.ndarray:
    """Logits (N, 3): the first three pixel values, so a test knows what each row must give."""
    return batch.reshape(len(batch), -1)[:, :3].astype(np.float32)


def verify_pixels(
    bundle: Bundle, parts: dict[str, Any], rows: int = 300, sizes: tuple[int, ...] = SIZES, **options: Any
) -> Any:
    inputs = parts["inputs"][:rows]
    return verify_format(bundle, "onnx", inputs, pixel_logits(inputs), parts["labels"][:rows], sizes, **options)


def test_exported_model_passes_the_fp32_gate_at_every_batch_size(bundle: Bundle, parts: dict[str, Any]) -> None:
    report = verify_format(bundle, "onnx", parts["inputs"], parts["logits"], parts["labels"], SIZES)
    assert report.passed
    assert (report.precision, report.rows, report.gate) == ("fp32", 300, GATES["fp32"])
    assert list(report.by_batch_size) == [1, 8, 64]
    assert report.extremes_finite == {0: True, 255: True}
    assert report.comparison.top1_agreement == 1.0
    assert report.comparison.accuracy == report.comparison.reference_accuracy == 0.9
    assert report.comparison.max_error_over_std is not None
    assert report.comparison.max_error_over_std < 1e-5
    require_parity(report)


def test_report_is_plain_data(bundle: Bundle, parts: dict[str, Any]) -> None:
    report = verify_format(bundle, "onnx", parts["inputs"], parts["logits"], parts["labels"], SIZES)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data == report.to_json()
    assert data["passed"] is True
    assert data["gate"] == {"max_error_over_std": 1e-4, "top1_agreement": 1.0, "metric_drop_points": 0.0}
    assert set(data["by_batch_size"]) == {"1", "8", "64"}


def test_other_reference_misses_gates_without_raising_and_require_parity_names_each(
    bundle: Bundle, parts: dict[str, Any]
) -> None:
    shifted = np.roll(parts["logits"], 1, axis=1)
    report = verify_format(bundle, "onnx", parts["inputs"], shifted, shifted.argmax(axis=1), (8,))
    assert not report.passed
    with pytest.raises(GateError) as caught:
        require_parity(report)
    assert caught.value.exit_code == 3
    said = caught.value.message
    assert "format onnx (fp32)" in said
    assert "batch 8: max error / std is" in said
    assert "allowed 0.0001" in said
    assert "batch 8: top-1 agreement is 0.00 %, allowed 100 % or more" in said
    assert "batch 8: accuracy drops by 100.00 points, allowed 0" in said


def test_worst_rows_and_classes_are_of_every_batch_size(bundle: Bundle, parts: dict[str, Any], run_with: Any) -> None:
    """Row 5 is wrong by 9 in single calls, row 7 by 4 in batches of eight."""
    inputs = parts["inputs"][:16]
    broken = {1: (5, 9.0), 8: (7, 4.0)}

    def logits_of(batch: np.ndarray) -> np.ndarray:
        logits = pixel_logits(batch)
        row, error = broken.get(len(batch), (0, 0.0))
        logits[(batch == inputs[row]).reshape(len(batch), -1).all(axis=1), 2] += error
        return logits

    run_with(logits_of)
    ids = np.arange(100, 116)
    labels = pixel_logits(inputs).argmax(axis=1)
    report = verify_format(bundle, "onnx", inputs, pixel_logits(inputs), labels, (1, 8), row_ids=ids)
    std = pixel_logits(inputs).std()
    worst = [(each.row_id, each.error_over_std) for each in report.worst_rows[:3]]
    assert worst == [(105, pytest.approx(9 / std)), (107, pytest.approx(4 / std)), (100, 0.0)]
    assert len(report.worst_rows) == 8
    assert sum(each.rows for each in report.by_class) == 16
    assert all(each.reference_correct == each.rows for each in report.by_class)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data == report.to_json()
    assert len(data["worst_rows"][0]["logits"]) == 3


def test_a_form_that_ignores_its_input_fails_by_name(bundle: Bundle, parts: dict[str, Any], run_with: Any) -> None:
    run_with(lambda batch: np.full((len(batch), 3), 127, np.float32))
    report = verify_pixels(bundle, parts, sizes=(8,), gate=Gate(1e9, 0.0, 100.0))
    assert report.reasons == ("batch 8: every input gets the same logits, and the reference tells inputs apart",)


@given(count=st.integers(1, 300), batch_size=st.integers(1, 70))
def test_batches_run_every_row_full_and_partial(count: int, batch_size: int) -> None:
    cuts = batches(count, batch_size)
    rows = np.concatenate(cuts)
    assert (rows[:count] == np.arange(count)).all()
    assert ((rows >= 0) & (rows < count)).all()
    *full, last = cuts
    assert {len(cut) for cut in full} <= {batch_size}
    assert any(len(cut) == batch_size for cut in cuts)
    assert batch_size == 1 or 0 < len(last) < batch_size


def test_runner_sees_every_batch_size_a_partial_batch_and_the_extremes(
    bundle: Bundle, parts: dict[str, Any], run_with: Any
) -> None:
    runner = run_with(pixel_logits)
    report = verify_pixels(bundle, parts, rows=256)
    assert report.passed
    assert report.notes == ()
    assert set(runner.sizes) == {
        1,
        8,
        4,
        64,
        32,
    }  # 256 rows leave no rest at 8 and 64, so half a batch runs again
    assert runner.sizes[-2:] == [64, 64]
    assert list(report.by_batch_size) == list(SIZES)


def test_few_rows_are_said_and_still_fill_the_largest_batch(
    bundle: Bundle, parts: dict[str, Any], run_with: Any
) -> None:
    runner = run_with(pixel_logits)
    report = verify_pixels(bundle, parts, rows=5)
    assert report.passed
    assert report.rows == 5
    assert report.notes == ("compared on only 5 real inputs; 256 are wanted",)
    assert 64 in runner.sizes


def test_error_at_one_batch_size_only_is_found(bundle: Bundle, parts: dict[str, Any], run_with: Any) -> None:
    run_with(lambda batch: pixel_logits(batch) + (1.0 if len(batch) == 8 else 0.0))
    report = verify_pixels(bundle, parts)
    assert [size for size, each in report.by_batch_size.items() if not each.passed] == [8]
    assert not report.passed
    assert not report.comparison.passed


@pytest.mark.parametrize("wrong", [1000.0, np.nan, np.inf])
def test_error_only_in_rows_that_ran_twice_is_found(
    bundle: Bundle, parts: dict[str, Any], run_with: Any, wrong: float
) -> None:
    run_with(lambda batch: pixel_logits(batch) + np.float32(wrong if len(batch) == 32 else 0.0))
    report = verify_pixels(bundle, parts, rows=256, sizes=(64,))
    assert not report.passed
    assert np.isfinite(wrong) == (report.comparison.max_error_over_std is not None)
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("value", [0, 255])
def test_extreme_input_with_infinite_logits_is_refused(
    bundle: Bundle, parts: dict[str, Any], run_with: Any, value: int
) -> None:
    def logits_of(batch: np.ndarray) -> np.ndarray:
        extreme = (batch == value).all(axis=(1, 2, 3))
        return np.where(extreme[:, None], np.float32(np.inf), pixel_logits(batch))

    run_with(logits_of)
    report = verify_pixels(bundle, parts)
    assert report.reasons == (f"inputs all {value}: outputs are not finite",)
    with pytest.raises(GateError, match=f"inputs all {value}"):
        require_parity(report)


def test_given_gate_stands_in_for_the_precision_s(bundle: Bundle, parts: dict[str, Any], run_with: Any) -> None:
    run_with(lambda batch: pixel_logits(batch) + 1.0)
    assert not verify_pixels(bundle, parts).passed
    assert verify_pixels(bundle, parts, gate=Gate(0.1, 1.0, 0.0)).passed


def test_reference_that_ignores_its_input_is_noted(bundle: Bundle, parts: dict[str, Any], run_with: Any) -> None:
    run_with(lambda batch: np.tile(np.float32([1, 2, 3]), (len(batch), 1)))
    reference = np.tile(np.float32([1, 2, 3]), (300, 1))
    report = verify_format(bundle, "onnx", parts["inputs"], reference, parts["labels"], (8,))
    assert report.passed
    assert "same logits" in report.notes[0]


def test_verify_bundle_compares_with_its_own_samples(bundle_folder: Path) -> None:
    (report,) = verify_bundle(bundle_folder)
    assert (report.format, report.rows, report.passed) == ("onnx", 300, True)


def test_verify_bundle_finds_samples_of_another_model(tmp_path: Path, parts: dict[str, Any]) -> None:
    write_bundle(tmp_path / "bundle", **{**parts, "logits": parts["logits"] + np.float32(0.01)})
    (report,) = verify_bundle(tmp_path / "bundle")
    assert not report.passed


def test_verify_bundle_needs_neither_torch_nor_onnx(bundle_folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from export.verify import verify_bundle\n"
        "(report,) = verify_bundle(sys.argv[1]); print(report.passed)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_impossible_requests_should_fail(bundle: Bundle, parts: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no format 'int8'"):
        verify_format(bundle, "int8", parts["inputs"], parts["logits"], parts["labels"], SIZES)
    with pytest.raises(ExportError, match="300 inputs, 299 rows of reference logits"):
        verify_format(bundle, "onnx", parts["inputs"], parts["logits"][1:], parts["labels"], SIZES)
    with pytest.raises(ExportError, match=r"batch sizes \[\]"):
        verify_format(bundle, "onnx", parts["inputs"], parts["logits"], parts["labels"], ())
    with pytest.raises(ExportError, match=r"gave logits of shape \(6, 3\); expected \(6, 12\)"):
        verify_format(bundle, "onnx", parts["inputs"][:4], np.zeros((4, 12)), parts["labels"][:4], (4,))
