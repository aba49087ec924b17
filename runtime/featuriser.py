"""What makes a model's input of a text: one of the kinds that a bundle's manifest may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from runtime import tokens
from runtime.text import HashedNgrams
from runtime.tokens import Tokens

Featuriser: TypeAlias = HashedNgrams | Tokens


def featuriser_from_json(value: Any) -> Featuriser:
    """Return what `to_json` of one of the kinds gave. Raises UsageError where it is not that."""
    if isinstance(value, Mapping) and value.get("kind") == tokens.KIND:
        return Tokens.from_json(value)
    return HashedNgrams.from_json(value)
