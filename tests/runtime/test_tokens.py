"""Texts as tokens: what the tokenizer says, cut and filled up; what a manifest may say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders

from compress.datasets.tokenizer import TokenizerSpec
from runtime.errors import DataError, UsageError
from runtime.featuriser import featuriser_from_json
from runtime.manifest import TensorSpec
from runtime.text import HashedNgrams
from runtime.tokens import Tokens, without_tail

CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in ("bert", "albert", "roberta"):
        tiny_encoders.write(folder / kind, kind=kind)  # type: ignore[arg-type]
    return folder


def tokens(folders: Path, kind: str = "bert", length: int = 8) -> Tokens:
    return TokenizerSpec(name=str(folders / kind), length=length).featuriser()


def ids_of(made: Tokens, *pieces: str) -> list[int]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(made.definition)
    found = [tokenizer.token_to_id(piece) for piece in pieces]
    assert None not in found
    return found


def test_a_row_is_the_tokenizers_ids_with_its_special_tokens(folders: Path) -> None:
    made = tokens(folders)
    film, moving, a, unknown = ids_of(made, "film", "moving", "a", "[UNK]")
    rows = made.encode(["A moving film", "", "a \u4e00 film", "film " * 20])
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [CLS, a, moving, film, SEP, 0, 0, 0],
        [CLS, SEP, 0, 0, 0, 0, 0, 0],
        [CLS, a, unknown, film, SEP, 0, 0, 0],
        [CLS, *[film] * 6, SEP],  # cut off, with its end
    ]


def test_words_in_pieces(folders: Path) -> None:
    made = tokens(folders)
    assert made.encode(["films"])[0, :4].tolist() == [CLS, *ids_of(made, "film", "##s"), SEP]


def test_padding_is_the_tokenizers_own(folders: Path) -> None:
    assert [tokens(folders, kind).padding for kind in ("bert", "albert", "roberta")] == [0, 0, 1]
    rows = tokens(folders, "roberta").encode(["a film"])
    assert rows[0, 4:].tolist() == [1, 1, 1, 1]
    assert without_tail(rows, 1).shape == (1, 4)
    assert without_tail(np.full((2, 5), 1, np.int32), 1).shape == (2, 1)


def test_lone_surrogates_are_texts(folders: Path) -> None:
    assert tokens(folders).encode(["a \ud800 film"]).shape == (1, 8)


def test_a_definition_that_is_another_or_none_is_refused(folders: Path) -> None:
    made = tokens(folders)
    document = made.to_json()
    again = featuriser_from_json(document)
    assert again == made
    with pytest.raises(UsageError, match=r"tokenizer\.json was not read"):
        again.encode(["a film"])
    with pytest.raises(UsageError, match="another tokenizer than the one that made the ids"):
        Tokens(8, 60, 0, made.sha256, definition=b"{}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 9}, "version 9; this edgefold reads"),
        ({"file": "../tokenizer.json"}, "file is '../tokenizer.json', expected 'tokenizer.json'"),
        ({"padding": 999}, "padding is 999, expected a whole number from 0 to 94"),
        ({"length": True}, "length is True"),
        ({"sha256": 3}, "sha256 is 3, expected text"),
    ],
)
def test_what_a_manifest_may_not_say(folders: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        featuriser_from_json({**tokens(folders).to_json(), **change})


def test_a_missing_key_is_named(folders: Path) -> None:
    document = tokens(folders).to_json()
    del document["padding"]
    with pytest.raises(UsageError, match="padding missing"):
        featuriser_from_json(document)


def test_n_grams_are_read_as_ever() -> None:
    made = HashedNgrams(buckets=9)
    assert featuriser_from_json(made.to_json()) == made
    assert (made.vocabulary, made.padding, made.files) == (9, 0, ())


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a tokenizer that this version of tokenizers reads"):
        TokenizerSpec(name=str(tmp_path)).featuriser()


def test_a_tokenizer_without_padding_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer\.json: no padding token"):
        TokenizerSpec(name=str(tmp_path)).featuriser()
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "b"}}')
    assert TokenizerSpec(name=str(tmp_path)).featuriser().padding == 1


def test_a_dynamic_axis_takes_what_is_shorter() -> None:
    fixed, free = TensorSpec("input", "int32", (8,), "NL"), TensorSpec("input", "int32", (8,), "NL", "L")
    assert [fixed.takes((size,)) for size in (0, 1, 8, 9)] == [False, False, True, False]
    assert [free.takes((size,)) for size in (0, 1, 8, 9)] == [False, True, True, False]
    assert not free.takes((8, 1))
    assert (fixed.in_words(), free.in_words()) == ("[N, 8]", "[N, <=8]")
