"""A folder of parquet files of texts: what `text_parquet` and the named text sets share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from compress.datasets.bad_rows import StoredRows
from compress.datasets.base import Declaration, Int32Array, Int64Array, signature_of_text
from compress.datasets.cache import cached_rows
from compress.datasets.labelled_parquet import LabelledParquet
from compress.datasets.parquet_files import Shards
from compress.datasets.tokenizer import TokenizerSpec
from compress.kinds import Spec
from export.graph import InputSignature
from runtime import tokens
from runtime.featuriser import Featuriser
from runtime.text import LARGEST, SMALLEST, VERSION, HashedNgrams


def _as_options(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Features(Spec):
    """How a text becomes ids: hashed n-grams (`runtime.text`), or the tokens of an encoder (`runtime.tokens`).

    buckets: distinct ids; ngrams: longest n-gram; length: ids a text. tokenizer: instead of all of these.
    """

    buckets: Annotated[int, Field(ge=SMALLEST["buckets"], le=LARGEST["buckets"])] = HashedNgrams.buckets
    ngrams: Annotated[int, Field(ge=SMALLEST["ngrams"], le=LARGEST["ngrams"])] = HashedNgrams.ngrams
    length: Annotated[int, Field(ge=SMALLEST["length"], le=LARGEST["length"])] = HashedNgrams.length
    lowercase: bool = HashedNgrams.lowercase
    tokenizer: Annotated[TokenizerSpec, BeforeValidator(_as_options)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.tokenizer is not None and (others := sorted(self.model_fields_set - {"tokenizer"})):
            raise PydanticCustomError(
                "features", "{names} stand beside tokenizer, which takes their place", {"names": ", ".join(others)}
            )
        return self

    @model_serializer(mode="wrap")
    def _what_counts(self, options: SerializerFunctionWrapHandler) -> dict[str, Any]:
        every: dict[str, Any] = options(self)
        tokenizer = every.pop("tokenizer")
        return every if tokenizer is None else {"tokenizer": tokenizer}

    def featuriser(self) -> Featuriser:
        """Return what makes the ids. Raises DataError where it is a tokenizer that is not found."""
        if self.tokenizer is not None:
            return self.tokenizer.featuriser()
        return HashedNgrams(self.buckets, self.ngrams, self.length, self.lowercase)

    def signature(self) -> InputSignature | None:
        """Return the signature of the rows, None where only a tokenizer that is not here could tell it."""
        featuriser = self.tokenizer.if_here() if self.tokenizer is not None else self.featuriser()
        return None if featuriser is None else signature_of_text(featuriser)


def fingerprint_of_texts(files: str, featuriser: Featuriser) -> str:
    """Return the sha256 hex of texts whose files have the fingerprint `files`, as a featuriser reads them.

    The options of hashed n-grams are part of a stage's settings, their version is not; a tokenizer is its content.
    """
    if isinstance(featuriser, HashedNgrams):
        return hashlib.sha256(f"text {VERSION}\n{files}\n".encode()).hexdigest()
    made = f"tokens {tokens.VERSION} {featuriser.sha256} {featuriser.padding}"
    return hashlib.sha256(f"{made}\n{files}\n".encode()).hexdigest()


@dataclass(frozen=True)
class TextFolder(LabelledParquet):
    """A text is bad where it is null or no UTF-8; an empty one is a text without words."""

    text_column: str = "text"
    featuriser: Featuriser = field(default_factory=HashedNgrams)

    def input_column_in_words(self) -> str:
        return f"'{self.text_column}' (text)"

    def fingerprint(self) -> str:
        return fingerprint_of_texts(super().fingerprint(), self.featuriser)

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
