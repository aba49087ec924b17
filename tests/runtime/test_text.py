"""Texts to ids: the same ones for ever, and for any text."""

from __future__ import annotations

import json
import unicodedata
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.text import VERSION, HashedNgrams

# Any character that Python can hold, lone surrogates and unassigned ones among them.
ANY_TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF), max_size=300)


def naive_ids(featuriser: HashedNgrams, tokens: list[str]) -> list[int]:
    """The definition, written the long way round."""
    grams = [tokens[i : i + n] for n in range(1, featuriser.ngrams + 1) for i in range(len(tokens) - n + 1)]
    hashes = [zlib.crc32(" ".join(gram).encode("utf-8", "surrogatepass")) for gram in grams]
    return [1 + value % (featuriser.buckets - 1) for value in hashes][: featuriser.length]


def test_golden_ids() -> None:
    # Written down once. A bundle on a device and the model inside it depend on them: another hash, token or order is
    # another VERSION.
    assert VERSION == 1
    assert HashedNgrams().ids("A moving, honest film.") == GOLDEN
    assert HashedNgrams(ngrams=1).ids("Don’t naïve 東京 5") == GOLDEN_UNICODE
    assert HashedNgrams(buckets=100, ngrams=3, lowercase=False).ids("A a A") == GOLDEN_THREE


GOLDEN = [4023, 24297, 17703, 27671, 17070, 32748, 30798, 3818, 25831, 11050, 26944]
GOLDEN_UNICODE = [1196, 11145, 26430, 13587]
GOLDEN_THREE = [36, 46, 36, 85, 93, 36]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It 's n't BAD -- it's good!", ["it", "'", "s", "n't", "bad", "-", "-", "it's", "good", "!"]),
        ("snake_case 3.14 naïve", ["snake_case", "3", ".", "14", "naïve"]),
        ("東京タワー、すごい", ["東京タワー", "、", "すごい"]),
        ("it’s 'quoted'", ["it’s", "'", "quoted", "'"]),
        ("\t\n \u00a0\u2003", []),
        ("", []),
    ],
)
def test_tokens_are_words_and_single_signs(text: str, tokens: list[str]) -> None:
    assert HashedNgrams().tokens(text) == tokens


def test_case_is_kept_where_asked() -> None:
    assert HashedNgrams(lowercase=False).tokens("Ab ÀÉ") == ["Ab", "ÀÉ"]
    assert HashedNgrams().ids("GOOD Film") == HashedNgrams().ids("good film")
    assert HashedNgrams(lowercase=False).ids("GOOD") != HashedNgrams(lowercase=False).ids("good")


def test_both_ways_of_writing_an_accent_are_one() -> None:
    composed, apart = (unicodedata.normalize(form, "café déjà") for form in ("NFC", "NFD"))
    assert composed != apart
    assert HashedNgrams().ids(composed) == HashedNgrams().ids(apart)


@given(ANY_TEXT, st.integers(2, 1 << 24), st.integers(1, 8), st.integers(1, 40), st.booleans())
def test_any_text_gives_the_ids_of_the_definition(
    text: str, buckets: int, ngrams: int, length: int, lowercase: bool
) -> None:
    featuriser = HashedNgrams(buckets, ngrams, length, lowercase)
    (row,) = featuriser.encode([text])
    assert (row.dtype, row.shape) == (np.int32, (length,))
    assert row.min() >= 0
    assert row.max() < buckets
    expected = naive_ids(featuriser, featuriser.tokens(text))
    assert featuriser.ids(text) == expected
    assert row[: len(expected)].tolist() == expected
    assert not row[len(expected) :].any()


def test_padding_is_no_ngrams_id() -> None:
    ids = HashedNgrams(buckets=2, length=10).encode(["a b c"])
    assert ids.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0, 0, 0]]


def test_a_long_text_keeps_its_words_and_loses_its_pairs() -> None:
    words = [f"w{i}" for i in range(10)]
    full, short = HashedNgrams(length=19), HashedNgrams(length=12)
    assert short.ids(" ".join(words)) == full.ids(" ".join(words))[:12]
    assert full.ids(" ".join(words))[:10] == HashedNgrams(ngrams=1).ids(" ".join(words))


def test_a_very_long_text_is_cut() -> None:
    (row,) = HashedNgrams().encode(["word " * 300_000])
    assert (row == HashedNgrams(ngrams=1).ids("word")[0]).all()


def test_no_texts_and_empty_texts() -> None:
    assert HashedNgrams(length=7).encode([]).shape == (0, 7)
    assert HashedNgrams(length=7).encode(["", "  "]).tolist() == [[0] * 7] * 2


def test_json_gives_the_same_back() -> None:
    featuriser = HashedNgrams(1000, 3, 20, False)
    written = json.loads(json.dumps(featuriser.to_json()))
    assert HashedNgrams.from_json(written) == featuriser
    assert written == {
        "kind": "hashed_ngrams", "version": 1, "buckets": 1000, "ngrams": 3, "length": 20, "lowercase": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "words"}, "kind is 'words'"),
        ({"version": 2}, "this edgefold reads 'hashed_ngrams', version 1"),
        ({"buckets": "many"}, "buckets is 'many', expected a whole number from 2 to 16,777,216"),
        ({"buckets": 1}, "buckets is 1"),
        ({"ngrams": 0}, "ngrams is 0"),
        ({"length": True}, "length is True"),
        ({"length": 1 << 17}, "length is 131072"),
        ({"lowercase": 1}, "lowercase is 1, expected true or false"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        HashedNgrams.from_json({**HashedNgrams().to_json(), **change})


@pytest.mark.parametrize("value", [None, [], "hashed_ngrams", 3])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="expected an object"):
        HashedNgrams.from_json(value)


def test_a_missing_option_is_named() -> None:
    value = HashedNgrams().to_json()
    del value["length"]
    with pytest.raises(UsageError, match="length missing"):
        HashedNgrams.from_json(value)
