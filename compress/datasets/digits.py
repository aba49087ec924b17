"""`digits`: scikit-learn's bundled scans with values 0 to 16 (E. Alpaydin, C. Kaynak, UCI 1998)."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from compress.datasets.base import Declaration, Int64Array, Split, Stored, UInt8Array, unit_normalization
from compress.datasets.holdout import with_test, with_test_rows
from compress.kinds import Spec
from export.graph import InputSignature

ROWS = 1797
CLASS_NAMES = tuple(str(digit) for digit in range(10))


class Digits(Spec):
    """scikit-learn's bundled digit scans, 1,797 images of 8×8 grey; needs no files.

    Test is a fixed stratified fifth; a row id is the index in the bundled file.
    """

    kind = "digits"

    def declare(self) -> Declaration:
        return Declaration(
            classes=10,
            class_names=CLASS_NAMES,
            signature=InputSignature(shape=(8, 8, 1)),
            normalization=unit_normalization(1, scale=1 / 16),
            rows=with_test_rows({"train": ROWS}),
        )

    def inspect(self, root: Path | None) -> Declaration:
        return self.declare()

    def fingerprint(self, root: Path | None) -> str:
        # Of the values and not of the file: scikit-learn may pack the same scans differently.
        images, labels = _scans()
        return hashlib.sha256(b"digits 1\n" + images.tobytes() + labels.tobytes()).hexdigest()

    def read(self, root: Path | None, *, cache: Path | None, allowed_bad_rows: int) -> Stored:
        images, labels = _scans()
        rows = Split(images, labels, None, np.arange(len(labels), dtype=np.int64))
        return Stored(
            name=self.kind,
            class_names=CLASS_NAMES,
            normalization=unit_normalization(1, scale=1 / 16),
            fingerprint=self.fingerprint(root),
            splits=with_test({"train": rows}, self.kind),
        )


@functools.cache
def _scans() -> tuple[UInt8Array, Int64Array]:
    """Return images uint8 (1797, 8, 8, 1) and labels int64 (1797,)."""
    from sklearn.datasets import load_digits  # here: a second to import, and only this source needs it

    bunch = load_digits()
    return bunch.images.astype(np.uint8)[..., np.newaxis], bunch.target.astype(np.int64)
