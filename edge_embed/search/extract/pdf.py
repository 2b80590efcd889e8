"""PDF: the text of each page. Pages that are pictures have none; nothing is recognized in them."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

from edge_embed.search.extract import ExtractError
from edge_embed.search.types import Section


def read(data: bytes, name: str) -> Iterator[Section]:
    """A section for each page, under the entries of the outline that begin on it or before.

    Raises:
        ExtractError: it is damaged, encrypted, or holds no text.
    """
    del name
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        document = PdfReader(io.BytesIO(data))
        if document.is_encrypted and not document.decrypt(""):
            raise ExtractError("is encrypted")
        headings = _headings(document)
        title = _title(document)
        above: tuple[str, ...] = (title,) if title else ()
        current: tuple[str, ...] = ()
        n_texts = 0
        for number, page in enumerate(document.pages):
            current = headings.get(number, current)
            text = _joined(page.extract_text())
            if text:
                n_texts += 1
                yield Section(text, (*above, *current), page=number + 1)
    except (ExtractError, MemoryError):
        raise
    except (PyPdfError, RecursionError) as error:
        raise ExtractError(f"is no sound PDF: {error}") from None
    except Exception as error:  # what a damaged file makes of the library's assumptions
        raise ExtractError(f"is no sound PDF: {type(error).__name__}: {error}") from None
    if not n_texts:
        raise ExtractError("holds no text: its pages are pictures, or empty")


def _title(document: Any) -> str:
    metadata = document.metadata
    title = metadata.title if metadata is not None else None
    return " ".join(title.split()) if isinstance(title, str) else ""


def _headings(document: Any) -> dict[int, tuple[str, ...]]:
    """The first entry of the outline on each page that has one, with those above it; none where it is broken."""
    found: dict[int, tuple[str, ...]] = {}

    def walk(entries: list[Any], above: tuple[str, ...]) -> None:
        last = above
        for entry in entries:
            if isinstance(entry, list):
                walk(entry, last)
                continue
            page = document.get_destination_page_number(entry)
            last = (*above, " ".join(str(entry.title).split()))
            if page is not None and page >= 0:
                found.setdefault(page, last)

    try:
        walk(document.outline, ())
    except Exception:
        return {}
    return found


def _joined(text: str) -> str:
    """The text of a page with words that were divided at a line's end put together."""
    text = re.sub(r"(?<=[^\W\d_])-\n(?=[a-zß-ÿ])", "", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()
