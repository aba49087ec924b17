"""Text as a row of token ids, made by the tokenizer of an encoder: the `tokenizer.json` that a bundle carries.

The file says all of it (normalisation, vocabulary, `[CLS]`, `[SEP]` and unknown words); the library `tokenizers`
carries it out, on the host and on the device. It is needed for words alone: rows of ids run without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.description import options_from_json
from runtime.errors import MissingExtraError, UsageError
from runtime.files import sha256_of_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KIND = "tokenizer"
VERSION = 1
FILE = "tokenizer.json"

LONGEST = 1 << 16
MOST_IDS = 1 << 24


@dataclass(frozen=True)
class Tokens:
    """Turns texts into ids of their tokens, with the special tokens that the tokenizer adds, cut off at `length`.

    vocabulary: number of distinct ids. padding: the id that fills rows up. sha256: of the tokenizer's definition, which
    is the content of tokenizer.json; None where it was not read, and then nothing can be encoded.
    Raises UsageError for an option that is out of its range, or a definition that is not the one of `sha256`.
    """

    length: int
    vocabulary: int
    padding: int
    sha256: str
    definition: bytes | None = field(default=None, repr=False, compare=False)

    files: ClassVar[tuple[str, ...]] = (FILE,)
    # Rows may end after the longest text of a batch: what makes them is not asked for more.
    dynamic_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounds = {"length": (2, LONGEST), "vocabulary": (2, MOST_IDS), "padding": (0, self.vocabulary - 1)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name} is {value!r}, expected a whole number from {least:,} to {most:,}")
        if self.definition is not None and sha256_of_bytes(self.definition) != self.sha256:
            raise UsageError(f"{FILE} is another tokenizer than the one that made the ids: its sha256 differs")

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return int32 (N, length): the ids of each text, filled up with `padding`.

        Raises MissingExtraError without the library, UsageError for a definition that it cannot read.
        """
        import numpy as np

        rows = np.full((len(texts), self.length), self.padding, dtype=np.int32)
        for row, text in zip(rows, self._tokenizer.encode_batch([_encodable(text) for text in texts]), strict=True):
            row[: len(text.ids)] = text.ids
        return rows

    @cached_property
    def _tokenizer(self) -> Any:
        if self.definition is None:
            raise UsageError(f"{FILE} was not read, so no text can be made into ids")
        tokenizer = tokenizer_from_definition(self.definition, FILE)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.length)
        return tokenizer

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "version": VERSION,
            "file": FILE,
            "sha256": self.sha256,
            "length": self.length,
            "vocabulary": self.vocabulary,
            "padding": self.padding,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tokens:
        """Return what `to_json` gave, without its definition. Raises UsageError where it is not that."""
        names = ("file", "length", "vocabulary", "padding", "sha256")
        options = options_from_json(value, kind=KIND, version=VERSION, names=names)
        if (file := options.pop("file")) != FILE:
            raise UsageError(f"file is {file!r}, expected {FILE!r}")
        if not isinstance(options["sha256"], str):
            raise UsageError(f"sha256 is {options['sha256']!r}, expected text")
        return cls(**options)

    def __str__(self) -> str:
        return f"tokens of {FILE}, {self.vocabulary:,} ids, padded with {self.padding}, at most {self.length} a text"


def tokenizer_from_definition(definition: bytes, origin: str) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json. Raises MissingExtraError, UsageError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"tokenizers is not installed; texts need it ({origin})",
            remedy="pip install tokenizers",
        ) from error
    try:
        return Tokenizer.from_buffer(definition)
    except Exception as error:  # the library raises bare Exception
        raise UsageError(
            f"{origin}: not a tokenizer that this version of tokenizers reads: {error}",
            remedy="pip install --upgrade tokenizers, or save the tokenizer again.",
        ) from error


def without_tail(rows: npt.NDArray[np.int32], padding: int) -> npt.NDArray[np.int32]:
    """Return rows (N, length) without the columns after the longest text; at least one is left."""
    used = (rows != padding).any(axis=0).nonzero()[0]
    return rows[:, : int(used[-1]) + 1 if len(used) else 1]


def _encodable(text: str) -> str:
    # A lone surrogate has no UTF-8, which is what the library is given; command lines and broken files have them.
    return text.encode("utf-8", "replace").decode("utf-8")
