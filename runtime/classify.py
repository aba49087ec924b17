"""Texts, or lines of a table, through one model of a bundle: from the words or fields to the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import EngineError, UsageError
from runtime.featuriser import Featuriser
from runtime.rows import shortened
from runtime.runners.base import Runner
from runtime.table import HashedColumns

SCHEMA_VERSION = 1
_BATCH = 256


@dataclass(frozen=True)
class Classified:
    """The most probable class of a text, or of a table's line; `probabilities` are of all classes, in their order."""

    text: str
    class_name: str
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float:
        return max(self.probabilities)


def classify(runner: Runner, texts: Sequence[str]) -> list[Classified]:
    """Run `texts` as the bundle's featuriser writes them. Raises UsageError for a bundle of images."""
    featuriser = featuriser_of(runner.bundle)
    found = []
    size = runner.rows_at_once(_BATCH)
    for first in range(0, len(texts), size):
        batch = texts[first : first + size]
        rows = shortened(featuriser.encode(batch), runner.bundle)
        logits = runner.infer(rows).astype(np.float64)  # (N, C)
        if not np.isfinite(logits).all():
            raise EngineError(f"{runner.path}: logits that are not finite; verify the bundle before using it")
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        names = [runner.bundle.class_names[c] for c in shares.argmax(axis=1)]
        found += [Classified(*each) for each in zip(batch, names, map(tuple, shares.tolist()), strict=True)]
    return found


def featuriser_of(bundle: Bundle) -> Featuriser | HashedColumns:
    """Return what makes the model's input of a text or a line. Raises UsageError where the bundle takes images."""
    featuriser = bundle.text or bundle.table
    if featuriser is None:
        shape = ", ".join(map(str, bundle.input.shape))
        raise UsageError(
            f"{bundle.path}: takes images ({bundle.input.dtype} [N, {shape}]), and `classify` is for text and tables",
            remedy="Give images as rows of an .npz: python -m runtime accuracy BUNDLE --data ROWS.npz",
        )
    return featuriser


def document_of(runner: Runner, classified: Sequence[Classified]) -> dict[str, Any]:
    bundle = runner.bundle
    return {
        "kind": "classify",
        "schema_version": SCHEMA_VERSION,
        **bundle.identity,
        "format": runner.format,
        "engine": {"name": runner.engine, "version": runner.version, "threads": runner.threads},
        "class_names": list(bundle.class_names),
        "texts": [
            {
                "text": each.text,
                "class": each.class_name,
                "probability": each.probability,
                "probabilities": list(each.probabilities),
            }
            for each in classified
        ],
    }
