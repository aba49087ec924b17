"""Rows that cannot be used: refused with their row ids, or dropped within the recipe's budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compress.datasets.base import Int32Array, Int64Array, Split, Texts, UInt8Array
from compress.datasets.stream import ImageStream
from runtime.errors import DataError

log = logging.getLogger(__name__)

# Row ids that a message spells out; the rest is a count.
SHOWN = 20


@dataclass(frozen=True, eq=False)
class StoredRows:
    """A split as stored, bad rows included.

    inputs: as in `Split`; labels: int64 (N,); both arbitrary at the bad rows.
    bad: what is wrong with each bad row, by row id. texts: (N,) strings, None for images. hidden: int64 (N,), classes
    that refine the labels and are for analysis only, None where the source has none.
    """

    inputs: UInt8Array | Int32Array | ImageStream
    labels: Int64Array
    bad: Mapping[int, str]
    texts: Texts | None = None
    hidden: Int64Array | None = None


def usable_rows(source: str, splits: Mapping[str, StoredRows], allowed: int) -> dict[str, Split]:
    """Return the splits without their bad rows; `source` names them in messages.

    Raises DataError when there are more than `allowed` in all splits together, or a split has no row left.
    """
    count = sum(len(rows.bad) for rows in splits.values())
    report = "; ".join(_listed(name, rows.bad) for name, rows in splits.items() if rows.bad)
    if count > allowed:
        budget = f", {allowed} allowed" if allowed else ""
        raise DataError(
            f"{source}: {count:,} unusable row(s){budget}: {report}",
            remedy=f"Mend or remove these rows, or drop them with `bad_rows: {{skip_at_most: {count}}}`.",
        )
    if count:
        log.warning("%s: dropped %d unusable row(s), %d allowed: %s", source, count, allowed, report)
    return {name: _without_bad(f"{source}, split {name}", rows) for name, rows in splits.items()}


def _without_bad(where: str, rows: StoredRows) -> Split:
    row_ids = np.arange(len(rows.labels), dtype=np.int64)
    split = Split(rows.inputs, rows.labels, rows.hidden, row_ids, rows.texts)
    if rows.bad:
        split = split.take(np.flatnonzero(~np.isin(row_ids, list(rows.bad))))
    if not len(split):
        raise DataError(f"{where}: no row that can be used", remedy="Check that the files are the ones meant.")
    return split


def _listed(split: str, bad: Mapping[int, str]) -> str:
    shown = ", ".join(f"{row} ({bad[row]})" for row in sorted(bad)[:SHOWN])
    more = f" and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    return f"{split} row {shown}{more}"
