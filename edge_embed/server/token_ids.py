"""Token ids of another tokenizer than the model's, made texts again.

Some clients cut texts into tokens of OpenAI's models before they send them, whatever model they talk to. Their ids mean
other tokens here, or none. A table of those tokens, one file that such clients have on their disk already, is all that
is needed to have the texts back.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edge_embed.errors import RequestShapeError, ServerSettingsError

ENCODINGS: Final = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
"""Encodings by name, and what tiktoken calls their tables in its cache: the SHA-1 of their addresses."""


class TokenTable:
    """The tokens of an encoding.

    Attributes:
        name: of the encoding.
    """

    def __init__(self, name: str, tokens: Mapping[int, bytes]) -> None:
        self.name, self._tokens = name, tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids stand for. A letter that was cut apart at an end becomes U+FFFD.

        Raises:
            RequestShapeError: an id that the encoding does not have.
        """
        try:
            return b"".join([self._tokens[i] for i in ids]).decode("utf-8", "replace")
        except KeyError as error:
            raise RequestShapeError(
                f"the token id {error.args[0]} is none of {self.name}", param="input", hint="send texts instead"
            ) from None


def read_table(encoding: str) -> TokenTable:
    """The table of an encoding.

    Args:
        encoding: one of ``ENCODINGS``, found where tiktoken keeps what it has downloaded; or a ``.tiktoken`` file.

    Raises:
        ServerSettingsError: it is not there, or is no such table. Nothing is downloaded.
    """
    path = Path(encoding)
    if encoding in ENCODINGS:
        path = _cache() / ENCODINGS[encoding]
        if not path.is_file():
            raise ServerSettingsError(
                f"the table of {encoding} is not on this machine: {path} is missing",
                hint=f"run `python -c 'import tiktoken; tiktoken.get_encoding(\"{encoding}\")'` where there is a "
                "network, or give the path of a .tiktoken file",
            )
    try:
        entries = [line.split() for line in path.read_bytes().splitlines() if line]
        table = {int(rank): base64.b64decode(token, validate=True) for token, rank in entries}
    except (OSError, ValueError, binascii.Error) as error:
        raise ServerSettingsError(
            f"{path} is not a table of tokens: {error}", hint=f"known encodings: {', '.join(ENCODINGS)}"
        ) from None
    if not table or min(table) < 0:
        raise ServerSettingsError(f"{path} is not a table of tokens: it has none", hint="give a .tiktoken file")
    return TokenTable(path.stem if path == Path(encoding) else encoding, table)


def _cache() -> Path:
    """Where tiktoken keeps tables, by its own rules."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if os.environ.get(name):
            return Path(os.environ[name])
    return Path(tempfile.gettempdir()) / "data-gym-cache"
