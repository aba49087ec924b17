"""The tokenizer of an encoder, from its `tokenizer.json`: how a recipe names it, and what it becomes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from compress.kinds import Spec
from compress.pretrained import TOKENIZER, TOKENIZER_CONFIG, file_of
from runtime.errors import DataError, MissingExtraError
from runtime.files import sha256_of_bytes
from runtime.tokens import LONGEST, Tokens, tokenizer_from_definition

# What the authors of encoders call the padding token, where no file says it.
PADDING_TOKENS = ("[PAD]", "<pad>")


class TokenizerSpec(Spec):
    """A tokenizer by the name of its encoder, or a local folder (`compress.pretrained`).

    length: ids a text, at most; a longer one loses its end.
    """

    name: Annotated[str, Field(min_length=1)]
    length: Annotated[int, Field(ge=2, le=LONGEST)] = 128

    def featuriser(self, *, network: bool = True) -> Tokens:
        """Return what makes the ids. Raises DataError where it is not found, MissingExtraError without its library."""
        try:
            path = file_of(self.name, TOKENIZER, network=network)
        except DataError as error:
            raise DataError(error.message, f"{error.remedy}\n{_HOW_TO_SAVE}") from None
        state = path.stat()
        return _tokens(path, state.st_size, state.st_mtime_ns, self.length)

    def if_here(self) -> Tokens | None:
        """Return what makes the ids, None where that cannot be told without a network or the library."""
        try:
            return self.featuriser(network=False)
        except (DataError, MissingExtraError):
            return None


@functools.lru_cache(maxsize=16)
def _tokens(path: Path, size: int, changed_ns: int, length: int) -> Tokens:
    definition = path.read_bytes()
    tokenizer = tokenizer_from_definition(definition, str(path))
    return Tokens(
        length=length,
        vocabulary=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        padding=_padding(tokenizer, path),
        sha256=sha256_of_bytes(definition),
        definition=definition,
    )


def _padding(tokenizer: Any, path: Path) -> int:
    """Return the id of the padding token: the tokenizer's own, else the one of its config, else a usual one."""
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    names = (_configured(path.with_name(TOKENIZER_CONFIG)), *PADDING_TOKENS)
    ids = [tokenizer.token_to_id(name) for name in names if name]
    found = next((each for each in ids if each is not None), None)
    if found is None:
        raise DataError(f"{path}: no padding token", f'Name it in {TOKENIZER_CONFIG}: {{"pad_token": ...}}.')
    return int(found)


def _configured(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get("pad_token")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    return token.get("content") if isinstance(token, dict) else token


_HOW_TO_SAVE = (
    "A folder with another form of tokenizer gets a tokenizer.json by\n"
    "python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
)
