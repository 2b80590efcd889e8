"""What callers hand over, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import cast

from edge_embed.errors import InvalidOptionError, InvalidTextError
from edge_embed.prompts import checked


def as_texts(texts: object) -> list[str]:
    """The texts, if they have an order and are not one string."""
    try:
        if isinstance(texts, (str, bytes, Mapping, Set)):
            raise TypeError
        return list(cast(Iterable[str], texts))
    except TypeError:
        raise InvalidTextError(
            f"texts are {type(texts).__name__}, not a list of strings", hint="encode() takes a single string as well"
        ) from None


def checked_prompts(own: object) -> dict[str, str]:
    """The prompts that a caller brings, name -> text, if they are texts that can be encoded."""
    if own is None:
        return {}
    if not isinstance(own, Mapping) or not all(isinstance(x, str) for pair in own.items() for x in pair):
        raise InvalidOptionError("prompts must map names to texts", hint='for example prompts={"query": "query: "}')
    for name, text in own.items():
        checked(name, text)
    return dict(own)
