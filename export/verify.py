"""Parity: proof that a deployable form still is the model that was trained. Needs neither torch nor onnx.

Running and comparing (`export.parity`) are two steps, and results are plain data. A missed gate is a result
too: it is written down like any other, and `require_parity` turns it into an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.parity import Comparison, Gate, compare, gate_of, looser, worst
from runtime.bundle import Bundle, open_bundle
from runtime.errors import BundleError, ExportError, GateError, UsageError
from runtime.manifest import FormatFile
from runtime.rows import shortened
from runtime.runners import open_runner, runs_on
from runtime.runners.base import Runner
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.table import LARGEST_NUMBER, MISSING, HashedColumns

WANTED_ROWS = 256  # fewer show little about a one-percent gate


@dataclass(frozen=True)
class ParityReport:
    """One format, on one engine, against its reference at every batch size of the profile.

    comparison: the worst over the batch sizes, number by number.
    extremes_finite: whether inputs all of one value (0, the largest) gave finite outputs, by that value; of a table by
    the value of its numbers.
    notes: what limits the result, missed gates apart.
    engine: name and version.
    """

    format: str
    precision: str
    rows: int
    gate: Gate
    comparison: Comparison
    by_batch_size: Mapping[int, Comparison]
    extremes_finite: Mapping[int, bool]
    notes: tuple[str, ...] = ()
    choice: EngineChoice = DEFAULT
    engine: str = ""

    @property
    def name(self) -> str:
        """What tells the report from those of other formats and engines: `int8`, `int8@openvino`."""
        return self.choice.key(self.format)

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every missed gate, with the batch size at which it was missed."""
        compared = [f"batch {size}: {why}" for size, each in self.by_batch_size.items() for why in each.reasons]
        infinite = [value for value, finite in self.extremes_finite.items() if not finite]
        return (*compared, *(f"inputs all {value}: outputs are not finite" for value in infinite))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "engine": {"name": self.engine, "chosen": self.choice.to_json()},
            "precision": self.precision,
            "rows": self.rows,
            "batch_sizes": list(self.by_batch_size),
            "gate": dataclasses.asdict(self.gate),
            "comparison": self.comparison.to_json(),
            "by_batch_size": {str(size): each.to_json() for size, each in self.by_batch_size.items()},
            "extremes_finite": {str(value): ok for value, ok in self.extremes_finite.items()},
            "notes": list(self.notes),
            "reasons": list(self.reasons),
            "passed": self.passed,
        }


def verify_format(
    bundle: Bundle,
    format: str,
    inputs: np.ndarray,
    reference_logits: np.ndarray,
    labels: np.ndarray,
    batch_sizes: Sequence[int],
    *,
    gate: Gate | None = None,
    threads: int = 1,
    choice: EngineChoice = DEFAULT,
) -> ParityReport:
    """Run a format of `bundle` with the device's own runner and compare it with the reference.

    inputs (N, *shape) real rows, reference_logits (N, C), labels (N,). At each of `batch_sizes` every row
    runs, in full batches and in a partial one, and where the length is dynamic once more in batches as long
    as their longest text; inputs that are all zero and all at the top of their range must give finite
    outputs. `gate` stands in for the format's own, which is that of its precision unless the bundle says another.
    Raises BundleError, ExportError or EngineError where there is nothing to compare; a missed gate is only reported.
    """
    form = bundle.format(format)
    precision = form.precision
    gate = gate or _gate(form, choice)
    if not len(inputs) or not batch_sizes or len(inputs) != len(reference_logits):
        raise ExportError(
            f"{bundle.path}: {len(inputs)} inputs, {len(reference_logits)} rows of reference logits, "
            f"batch sizes {list(batch_sizes)}; expected as many inputs as rows, and at least one of each"
        )
    compared: dict[int, Comparison] = {}
    with open_runner(bundle, format=format, threads=threads, choice=choice) as runner:
        for size in batch_sizes:
            compared[size] = worst(
                [
                    compare(reference_logits, _infer_all(infer, inputs, reference_logits, size), labels, gate)
                    for infer in _ways_to_infer(runner, bundle)
                ]
            )
        finite = {
            int(extreme.flat[0]): _finite(runner.infer_outputs(extreme))
            for extreme in _extreme_inputs(bundle, max(batch_sizes))
        }
    return ParityReport(
        format=format,
        precision=precision,
        rows=len(inputs),
        gate=gate,
        comparison=worst(list(compared.values())),
        by_batch_size=compared,
        extremes_finite=finite,
        notes=(*runner.notes, *_notes(inputs, reference_logits)),
        choice=choice,
        engine=f"{runner.engine} {runner.version}",
    )


def verify_bundle(path: str | Path, *, threads: int = 1, choice: EngineChoice = DEFAULT) -> list[ParityReport]:
    """Compare every format of the bundle at `path` that runs on `choice` with the logits that its samples carry."""
    bundle = open_bundle(path)
    samples = bundle.samples()
    if samples.logits is None:
        raise BundleError(f"{bundle.path}: its samples have no expected logits")
    rows = (samples.inputs, samples.logits, samples.labels)
    formats = [format for format in bundle.formats if choice == DEFAULT or runs_on(format, choice)]
    if not formats:
        raise UsageError(f"{bundle.path}: none of {', '.join(bundle.formats)} runs on {choice.label or choice.engine}")
    return [
        verify_format(bundle, format, *rows, bundle.batch_sizes, threads=threads, choice=choice) for format in formats
    ]


def require_parity(report: ParityReport) -> None:
    """Raise GateError unless the report passed, naming each missed gate: what came and what was allowed."""
    if not report.passed:
        lines = "".join(f"\n  {reason}" for reason in report.reasons)
        raise GateError(
            f"format {report.name} ({report.precision}) misses parity gates on {report.rows} rows:{lines}",
            remedy="The files are kept for inspection; do not deploy this form.",
        )


def _gate(form: FormatFile, choice: EngineChoice) -> Gate:
    """Return the gate of a form where it is computed in its own precision, or the looser of the two."""
    own = Gate(**form.gate) if form.gate is not None else gate_of(form.precision)
    return looser(own, gate_of(choice.precision)) if choice.precision not in (None, "fp32") else own


def batches(count: int, batch_size: int) -> list[np.ndarray]:
    """Cut rows 0 to count - 1 into index arrays: full batches and, where batch_size > 1, a partial one last.

    Rows that are too few for a full batch, or that leave no partial one, are run again from the first.
    """
    rows = np.arange(max(count, batch_size)) % count
    if batch_size > 1 and len(rows) % batch_size == 0:
        rows = np.append(rows, np.arange(batch_size // 2) % count)
    return np.split(rows, range(batch_size, len(rows), batch_size))


def _infer_all(
    infer: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, reference: np.ndarray, batch_size: int
) -> np.ndarray:
    """Return logits (N, C) of all rows in batches of `batch_size`; of a row run twice, the worse ones."""
    cuts = batches(len(inputs), batch_size)
    rows, outputs = np.concatenate(cuts), np.concatenate([infer(inputs[cut]) for cut in cuts])
    if outputs.shape != (len(rows), *reference.shape[1:]):
        raise ExportError(
            f"{len(rows)} rows in batches of {batch_size} gave logits of shape {outputs.shape}; expected "
            f"{(len(rows), *reference.shape[1:])}"
        )
    logits = outputs[: len(inputs)].copy()
    with np.errstate(invalid="ignore"):  # infinity minus infinity; `compare` reports what is not finite
        for row, again in zip(rows[len(inputs) :], outputs[len(inputs) :], strict=True):
            # "not better" instead of "worse", so that NaN counts as worse.
            if not np.abs(again - reference[row]).max() <= np.abs(logits[row] - reference[row]).max():
                logits[row] = again
    return logits


def _ways_to_infer(runner: Runner, bundle: Bundle) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Batches as they are and, where the length is dynamic, without the columns after their longest text."""
    if not any(bundle.input.free):
        return [runner.infer]
    return [runner.infer, lambda batch: runner.infer(shortened(batch, bundle))]


def _finite(outputs: Mapping[str, np.ndarray]) -> bool:
    return all(bool(np.isfinite(output).all()) for output in outputs.values())


def _extreme_inputs(bundle: Bundle, batch_size: int) -> list[np.ndarray]:
    """Batches that are all zero and, for intensities (uint8) and ids of text, all at the top of their range.

    Of a table the ids are 0 under missing numbers, and at their top under the largest ones.
    """
    spec = bundle.input
    if bundle.table is not None:
        return [_filled(bundle.table, batch_size, *values) for values in ((0, 0), (MISSING, 0), (LARGEST_NUMBER, -1))]
    values = [0]
    if bundle.text is not None:
        values.append(bundle.text.vocabulary - 1)
    elif spec.dtype == "uint8":
        values.append(255)
    return [np.full((batch_size, *spec.shape), value, dtype=spec.dtype) for value in values]


def _filled(columns: HashedColumns, batch_size: int, number: int, id_: int) -> np.ndarray:
    """Return rows of one number and one id; -1 stands for the last id."""
    rows = np.full((batch_size, columns.length), number, dtype=np.int32)
    rows[:, columns.numbers :] = id_ % columns.buckets
    return rows


def _notes(inputs: np.ndarray, reference_logits: np.ndarray) -> tuple[str, ...]:
    notes = []
    if len(inputs) < WANTED_ROWS:
        notes.append(f"compared on only {len(inputs)} real inputs; {WANTED_ROWS} are wanted")
    if len(inputs) > 1 and bool((reference_logits == reference_logits[0]).all()):
        notes.append("the reference gives every input the same logits, so this comparison shows little")
    return tuple(notes)
