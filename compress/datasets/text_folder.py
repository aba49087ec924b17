"""A folder of parquet files of texts: what `text_parquet` and the named text sets share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Int32Array, Int64Array, signature_of_text
from compress.datasets.cache import cached_rows
from compress.datasets.labelled_parquet import LabelledParquet
from compress.datasets.parquet_files import Shards
from compress.kinds import Spec
from runtime.text import LARGEST, SMALLEST, VERSION, HashedNgrams


class Features(Spec):
    """How a text becomes ids (`runtime.text`). buckets: distinct ids; ngrams: longest n-gram; length: ids a text."""

    buckets: Annotated[int, Field(ge=SMALLEST["buckets"], le=LARGEST["buckets"])] = HashedNgrams.buckets
    ngrams: Annotated[int, Field(ge=SMALLEST["ngrams"], le=LARGEST["ngrams"])] = HashedNgrams.ngrams
    length: Annotated[int, Field(ge=SMALLEST["length"], le=LARGEST["length"])] = HashedNgrams.length
    lowercase: bool = HashedNgrams.lowercase

    def featuriser(self) -> HashedNgrams:
        return HashedNgrams(self.buckets, self.ngrams, self.length, self.lowercase)


@dataclass(frozen=True)
class TextFolder(LabelledParquet):
    """A text is bad where it is null or no UTF-8; an empty one is a text without words."""

    text_column: str = "text"
    featuriser: HashedNgrams = field(default_factory=HashedNgrams)

    def input_column_in_words(self) -> str:
        return f"'{self.text_column}' (text)"

    def fingerprint(self) -> str:
        # The featuriser's options are part of a stage's settings, its version is not.
        return hashlib.sha256(f"text {VERSION}\n{super().fingerprint()}\n".encode()).hexdigest()

    def inspect(self) -> Declaration:
        """Return what the files say at a glance: the label column and the row counts."""
        names = self.labels.names
        return Declaration(len(names), names, signature_of_text(self.featuriser), None, self.rows)

    def stored(self, shards: Shards, labels: Int64Array, bad: dict[int, str], cache: Path | None) -> StoredRows:
        texts = list(shards.texts(self.text_column))
        shape = (len(texts), self.featuriser.length)
        inputs, bad_texts = cached_rows(cache, self._cache_key(shards), shape, np.int32, lambda: self._encode(texts))
        kept = np.array([text if isinstance(text, str) else "" for text in texts], dtype=np.object_)
        return StoredRows(inputs, labels, {**bad, **bad_texts}, kept)

    def _encode(self, texts: Sequence[str | bytes | None]) -> tuple[Int32Array, dict[int, str]]:
        bad = {row: _reason(text) for row, text in enumerate(texts) if not isinstance(text, str)}
        return self.featuriser.encode([text if isinstance(text, str) else "" for text in texts]), bad

    def _cache_key(self, shards: Shards) -> str:
        description = {
            "featuriser": self.featuriser.to_json(),
            "files": list(shards.hashes),
            "text_column": self.text_column,
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _reason(text: bytes | str | None) -> str:
    return "text is null" if text is None else "text is not UTF-8"
