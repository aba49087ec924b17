"""Parity: proof that a deployable form still is the model that was trained. Needs neither torch nor onnx.

Running and comparing (`export.parity`) are two steps, and results are plain data. A missed gate is a result
too: it is written down like any other, and `require_parity` turns it into an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.engines import FP32_GATE
from export.parity import (
    ClassCount,
    Comparison,
    Gate,
    WorstRow,
    by_class,
    compare,
    gate_of,
    looser,
    worst,
    worst_rows,
)
from runtime.bundle import Bundle, open_bundle
from runtime.errors import (
    BundleError,
    DeviceError,
    EdgefoldError,
    ExportError,
    GateError,
    MissingExtraError,
    UsageError,
)
from runtime.manifest import FormatFile
from runtime.rows import shortened
from runtime.runners import open_runner, runs_on
from runtime.runners.base import Runner
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.table import LARGEST_NUMBER, MISSING, HashedColumns

WANTED_ROWS = 256  # fewer show little about a one-percent gate
WORST_ROWS = 8  # that a report names


@dataclass(frozen=True)
class ParityReport:
    """One format, on one engine, against its reference at every batch size of the profile.

    comparison: the worst over the batch sizes, number by number.
    extremes_finite: whether inputs all of one value (0, the largest) gave finite outputs, by that value; of a table by
    the value of its numbers.
    by_class, worst_rows: of the logits that were worst for each row, at any batch size.
    notes: what limits the result, missed gates apart. not_run: what this machine lacks to run the file itself, where
    its arithmetic was compared by other means. engine: name and version.
    """

    format: str
    precision: str
    rows: int
    gate: Gate
    comparison: Comparison
    by_batch_size: Mapping[int, Comparison]
    extremes_finite: Mapping[int, bool]
    by_class: tuple[ClassCount, ...] = ()
    worst_rows: tuple[WorstRow, ...] = ()
    notes: tuple[str, ...] = ()
    not_run: str | None = None
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
            "by_class": [dataclasses.asdict(each) for each in self.by_class],
            "worst_rows": [_as_lists(dataclasses.asdict(each)) for each in self.worst_rows],
            "notes": list(self.notes),
            "reasons": list(self.reasons),
            "passed": self.passed,
            "not_run": self.not_run,
        }


@dataclass(frozen=True)
class NotRun:
    """A format that no engine here can run: neither passed nor failed. reason: what it needs."""

    format: str
    precision: str
    reason: str
    choice: EngineChoice = DEFAULT

    @property
    def name(self) -> str:
        return self.choice.key(self.format)

    def to_json(self) -> dict[str, Any]:
        return {"format": self.name, "precision": self.precision, "not_run": self.reason, "passed": None}


def cases_of(bundle: Bundle, choices: Sequence[EngineChoice]) -> list[tuple[str, EngineChoice]]:
    """Return every format of the bundle with each of `choices`, told apart by their results' names, that runs it."""
    different = {choice.label: choice for choice in choices}.values()
    return [
        (format, choice)
        for format in bundle.formats
        for choice in different
        if choice == DEFAULT or runs_on(format, choice)
    ]


def verify_formats(
    bundle: Bundle,
    inputs: np.ndarray,
    reference_logits: np.ndarray,
    labels: np.ndarray,
    *,
    row_ids: np.ndarray | None = None,
    threads: int = 1,
    cases: Sequence[tuple[str, EngineChoice]] | None = None,
) -> list[ParityReport | NotRun]:
    """Compare every format of the bundle with the reference at its batch sizes, as `verify_format` does.

    cases: formats with what each runs on; every format on its own engine if left out.
    What needs another machine or a package that is not here is said and not compared. Raises what the first format's
    engine raises where none can be run.
    """
    reports: list[ParityReport | NotRun] = []
    obstacles: list[DeviceError | MissingExtraError] = []
    for format, choice in cases if cases is not None else cases_of(bundle, [DEFAULT]):
        options: dict[str, Any] = {"row_ids": row_ids, "threads": threads, "choice": choice}
        try:
            rows = (inputs, reference_logits, labels)
            reports.append(verify_format(bundle, format, *rows, bundle.batch_sizes, **options))
        except (DeviceError, MissingExtraError) as error:
            obstacles.append(error)
            reason = _reason(bundle, format, error)
            reports.append(NotRun(format, bundle.format(format).precision, reason, choice))
    if len(obstacles) == len(reports):
        raise obstacles[0]
    return reports


def verify_format(
    bundle: Bundle,
    format: str,
    inputs: np.ndarray,
    reference_logits: np.ndarray,
    labels: np.ndarray,
    batch_sizes: Sequence[int],
    *,
    row_ids: np.ndarray | None = None,
    gate: Gate | None = None,
    threads: int = 1,
    choice: EngineChoice = DEFAULT,
) -> ParityReport:
    """Run a format of `bundle` with the device's own runner and compare it with the reference.

    inputs (N, *shape) real rows, reference_logits (N, C), labels and row_ids (N,), by position unless given. At each of
    `batch_sizes` every row runs, in full batches and in a partial one, and where the length is dynamic once more in
    batches as long as their longest text; inputs that are all zero and all at the top of their range must give finite
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
    logits: np.ndarray | None = None
    with _open(bundle, format, threads, choice) as (runner, not_run):
        sizes = [size for size in batch_sizes if runner.takes_batch(size)]
        if not sizes:
            raise ExportError(f"{runner.path}: takes none of the batch sizes {list(batch_sizes)}")
        for size in sizes:
            cuts = _cuts(runner, len(inputs), size)
            came = [_infer_all(infer, inputs, reference_logits, cuts) for infer in _ways_to_infer(runner, bundle)]
            compared[size] = worst([compare(reference_logits, each, labels, gate) for each in came])
            for each in came:
                logits = each if logits is None else _worse_of(logits, each, reference_logits)
        finite = {
            int(extreme.flat[0]): _finite(runner.infer_outputs(extreme))
            for extreme in _extreme_inputs(bundle, max(sizes))
        }
        notes = [*runner.notes, *_notes(inputs, reference_logits)]
        if len(sizes) < len(batch_sizes):
            left_out = ", ".join(str(size) for size in batch_sizes if size not in sizes)
            notes.append(f"not compared at batch sizes outside its profiles: {left_out}")
    assert logits is not None  # there is a batch size
    return ParityReport(
        format=format,
        precision=precision,
        rows=len(inputs),
        gate=gate,
        comparison=worst(list(compared.values())),
        by_batch_size=compared,
        extremes_finite=finite,
        by_class=by_class(reference_logits, logits, labels),
        worst_rows=worst_rows(
            reference_logits, logits, labels, np.arange(len(labels)) if row_ids is None else row_ids, WORST_ROWS
        ),
        notes=tuple(notes),
        not_run=not_run,
        choice=choice,
        engine=f"{runner.engine} {runner.version}",
    )


def verify_bundle(path: str | Path, *, threads: int = 1, choice: EngineChoice = DEFAULT) -> list[ParityReport | NotRun]:
    """Compare every format of the bundle at `path` that runs on `choice` with the logits that its samples carry."""
    bundle = open_bundle(path)
    samples = bundle.samples()
    if samples.logits is None:
        raise BundleError(f"{bundle.path}: its samples have no expected logits")
    cases = cases_of(bundle, [choice])
    if not cases:
        raise UsageError(f"{bundle.path}: none of {', '.join(bundle.formats)} runs on {choice.label or choice.engine}")
    rows = (samples.inputs, samples.logits, samples.labels)
    return verify_formats(bundle, *rows, row_ids=samples.row_ids, threads=threads, cases=cases)


def require_parity(report: ParityReport | NotRun) -> None:
    """Raise GateError if the report failed, naming each missed gate: what came and what was allowed."""
    if isinstance(report, ParityReport) and not report.passed:
        lines = "".join(f"\n  {reason}" for reason in report.reasons)
        raise GateError(
            f"format {report.name} ({report.precision}) misses parity gates on {report.rows} rows:{lines}",
            remedy="The files are kept for inspection; do not deploy this form.",
        )


def _gate(form: FormatFile, choice: EngineChoice) -> Gate:
    """Return the gate of a form where it is computed in its own precision, or the looser of the two."""
    own = Gate(**form.gate) if form.gate is not None else gate_of(form.precision)
    if choice.builds and form.precision == "fp32":
        return looser(own, FP32_GATE)
    return looser(own, gate_of(choice.precision)) if choice.precision not in (None, "fp32") else own


def batches(count: int, batch_size: int) -> list[np.ndarray]:
    """Cut rows 0 to count - 1 into index arrays: full batches and, where batch_size > 1, a partial one last.

    Rows that are too few for a full batch, or that leave no partial one, are run again from the first.
    """
    rows = np.arange(max(count, batch_size)) % count
    if batch_size > 1 and len(rows) % batch_size == 0:
        rows = np.append(rows, np.arange(batch_size // 2) % count)
    return np.split(rows, range(batch_size, len(rows), batch_size))


@contextlib.contextmanager
def _open(bundle: Bundle, format: str, threads: int, choice: EngineChoice) -> Iterator[tuple[Runner, str | None]]:
    """Open the engine of a format or, of bfloat16 where there is none, its arithmetic in float32, and say why."""
    not_run = None
    try:
        opened = open_runner(bundle, format=format, threads=threads, choice=choice)
    except DeviceError as error:
        if format != "bf16" or choice.label:
            raise
        from export.widened import WidenedRunner  # needs onnx

        opened, not_run = WidenedRunner(bundle, format, threads=threads), _reason(bundle, format, error)
    with opened as runner:
        yield runner, not_run


def _reason(bundle: Bundle, format: str, error: EdgefoldError) -> str:
    """Return what an error says, without the path of the file that it is about: results travel."""
    return error.message.removeprefix(f"{bundle.file_of(format)}: ")


def _cuts(runner: Runner, count: int, batch_size: int) -> list[np.ndarray]:
    """Return `batches`, a partial one filled up where the engine takes none so small."""
    return [cut if runner.takes_batch(len(cut)) else np.resize(cut, batch_size) for cut in batches(count, batch_size)]


def _infer_all(
    infer: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, reference: np.ndarray, cuts: Sequence[np.ndarray]
) -> np.ndarray:
    """Return logits (N, C) of all rows, cut into batches in their order; of a row run twice, the worse ones."""
    rows, outputs = np.concatenate(cuts), np.concatenate([infer(inputs[cut]) for cut in cuts])
    if outputs.shape != (len(rows), *reference.shape[1:]):
        raise ExportError(
            f"{len(rows)} rows in batches of {len(cuts[0])} gave logits of shape {outputs.shape}; expected "
            f"{(len(rows), *reference.shape[1:])}"
        )
    logits, again = outputs[: len(inputs)].copy(), rows[len(inputs) :]
    # Row by row: a row may be run again more than once.
    for row, output in zip(again, outputs[len(inputs) :], strict=True):
        one = slice(row, row + 1)
        logits[one] = _worse_of(logits[one], output[None], reference[one])
    return logits


def _worse_of(logits: np.ndarray, others: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return of logits (N, C) twice, for each row, those with the larger error."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity; `compare` reports what is not finite
        error, other = (np.abs(each - reference).max(axis=1) for each in (logits, others))
    # "not better" instead of "worse", so that NaN counts as worse.
    return np.where((~(other <= error))[:, None], others, logits)


def _ways_to_infer(runner: Runner, bundle: Bundle) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Batches as they are and, where the length is dynamic, without the columns after their longest text."""
    if not any(bundle.input.free):
        return [runner.infer]
    return [runner.infer, lambda batch: runner.infer(shortened(batch, bundle))]


def _as_lists(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(each) if isinstance(each, tuple) else each for key, each in value.items()}


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
