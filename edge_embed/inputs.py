"""What callers hand over, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import cast

import numpy as np

from edge_embed.errors import InvalidOptionError, InvalidTextError
from edge_embed.prompts import checked
from edge_embed.tokenizer import Text, check_text


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


def text_or_ids(text: object, index: int, n_vocab: int) -> Text:
    """One input: a text that can be encoded, or the ids of one, all of them in the vocabulary.

    Raises:
        InvalidTextError: neither.
    """
    if not isinstance(text, (list, tuple, np.ndarray)):
        return check_text(text, index)
    ids = tuple(text.tolist() if isinstance(text, np.ndarray) else text)
    wrong = [type(i).__name__ for i in ids if isinstance(i, bool) or not isinstance(i, (int, np.integer))]
    if wrong:
        raise InvalidTextError(
            f"text {index} is a list with {wrong[0]} in it", hint="give a string, or a list of token ids"
        )
    outside = next((i for i in ids if not 0 <= i < n_vocab), None)
    if outside is not None:
        raise InvalidTextError(
            f"text {index} has the token id {outside}, and this model has ids from 0 to {n_vocab - 1}",
            hint="the ids are another tokenizer's: give the text itself",
        )
    return tuple(int(i) for i in ids)


def checked_prompts(own: object) -> dict[str, str]:
    """The prompts that a caller brings, name -> text, if they are texts that can be encoded."""
    if own is None:
        return {}
    if not isinstance(own, Mapping) or not all(isinstance(x, str) for pair in own.items() for x in pair):
        raise InvalidOptionError("prompts must map names to texts", hint='for example prompts={"query": "query: "}')
    for name, text in own.items():
        checked(name, text)
    return dict(own)
