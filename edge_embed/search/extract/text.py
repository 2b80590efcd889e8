"""Plain text: UTF-8, or what a byte order mark says. Other encodings are refused, because they would be guesses."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Final

from edge_embed.search.extract import ExtractError
from edge_embed.search.types import Section

_MARKS: Final = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LOOKED_AT, _FEW = 8192, 8  # characters of the beginning; control characters that a text may have there
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def decode(data: bytes) -> str:
    """The text of bytes, with line ends as ``\\n``.

    Raises:
        ExtractError: it is no text, or in an encoding that nothing names.
    """
    encoding, start = next(((name, len(mark)) for mark, name in _MARKS if data.startswith(mark)), ("utf-8", 0))
    try:
        text = str(memoryview(data)[start:], encoding)
    except UnicodeDecodeError as error:
        if b"\x00" in data[:_LOOKED_AT]:
            raise ExtractError("is binary, not text") from None
        raise ExtractError(
            f"is not UTF-8: byte {start + error.start + 1} is 0x{data[start + error.start]:02x}; convert it, "
            "e.g. with `iconv -f LATIN1 -t UTF-8`"
        ) from None
    head = text[:_LOOKED_AT]
    if len(_CONTROL.findall(head)) > max(_FEW, len(head) // 50):
        raise ExtractError("is binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read(data: bytes, name: str) -> Iterator[Section]:
    """One section: how plain text is structured nobody says."""
    del name
    yield Section(decode(data), line=1)
