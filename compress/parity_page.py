"""What the report shows of parity: the classes that a form loses in, and the rows that it changes most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.gallery import picture, shortened
from compress.variant_run import VariantRun
from export.parity import GATES

CLASSES_SHOWN = 10


@dataclass(frozen=True)
class ClassShare:
    """Accuracy in a class: the reference's, and the form's."""

    name: str
    rows: int
    reference: float
    form: float


@dataclass(frozen=True)
class ShownRow:
    """A row with its largest logit error, in words. picture: a PNG data address, `text` a text; "" where there is none.

    logits: (class, reference, form) of its label and of both predictions.
    """

    row_id: int
    label: str
    reference_class: str
    predicted_class: str
    error: str
    logits: tuple[tuple[str, str, str], ...]
    picture: str = ""
    text: str = ""

    @property
    def changed(self) -> bool:
        return self.reference_class != self.predicted_class


@dataclass(frozen=True)
class ParitySection:
    """One format. classes: those with the largest loss first; left_out: how many lose less, or nothing."""

    format: str
    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int
    classes: tuple[ClassShare, ...]
    left_out: int
    worst: tuple[ShownRow, ...]


def parity_sections(run: VariantRun) -> list[ParitySection]:
    """Return a section for every format that is not the reference but for rounding, or that failed."""
    parity = run.result("parity.json")
    return [
        _section(run, name, form) for name, form in (parity["formats"].items() if parity else ()) if _says_more(form)
    ]


def _says_more(form: Mapping[str, Any]) -> bool:
    if form["passed"] is None:  # not run: its row says why
        return False
    error = form["comparison"]["max_error_over_std"]
    return not form["passed"] or error is None or error > GATES["fp32"].max_error_over_std


def _section(run: VariantRun, name: str, form: Mapping[str, Any]) -> ParitySection:
    names = run.dataset.class_names
    shares = [
        ClassShare(
            names[each["label"]], each["rows"], each["reference_correct"] / each["rows"], each["correct"] / each["rows"]
        )
        for each in form.get("by_class", ())
    ]
    by_loss = sorted(shares, key=lambda share: share.form - share.reference)
    return ParitySection(
        format=name,
        passed=form["passed"],
        reasons=tuple(form["reasons"]),
        notes=tuple(form["notes"]),
        rows=form["rows"],
        classes=tuple(by_loss[:CLASSES_SHOWN]),
        left_out=max(0, len(by_loss) - CLASSES_SHOWN),
        worst=tuple(_shown(run, row, names) for row in form.get("worst_rows", ())),
    )


def _shown(run: VariantRun, row: Mapping[str, Any], names: Sequence[str]) -> ShownRow:
    error = row["error_over_std"]
    asked = dict.fromkeys((row["label"], row["reference_class"], row["predicted_class"]))
    return ShownRow(
        row_id=row["row_id"],
        label=names[row["label"]],
        reference_class=names[row["reference_class"]],
        predicted_class=names[row["predicted_class"]],
        error="not finite" if error is None else f"{error:.3g}",
        logits=tuple((names[i], _number(row["reference_logits"][i]), _number(row["logits"][i])) for i in asked),
        **_looks_of(run, row["row_id"]),
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _looks_of(run: VariantRun, row_id: int) -> dict[str, str]:
    """Return what a test row looks like, by the field of `ShownRow` that shows it."""
    test, signature = run.dataset.test, run.dataset.signature
    row = int(np.searchsorted(test.row_ids, row_id))
    if test.texts is not None:
        return {"text": shortened(test.texts[row : row + 1])[0]}
    if signature.ids is not None:
        return {}
    image = np.asarray(test.inputs[row : row + 1])[0]
    return {"picture": picture(image.transpose(1, 2, 0) if signature.layout == "NCHW" else image)}
