"""Errors about a text, counted from the beginning of the whole input where it was embedded in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edge_embed.errors import InvalidTextError, NonFiniteError, TextTooLongError


@contextlib.contextmanager
def counted_from(done: int) -> Iterator[None]:
    """Around the embedding of texts that ``done`` others come before: errors name a text by its place among all."""
    try:
        yield
    except TextTooLongError as error:
        raise TextTooLongError(error.index + done, error.n_tokens, error.limit) from None
    except NonFiniteError as error:
        raise NonFiniteError([index + done for index in error.indices]) from None
    except InvalidTextError as error:
        where = f" (counted from text {done})" if done else ""
        raise InvalidTextError(error.message + where, hint=error.hint) from None
