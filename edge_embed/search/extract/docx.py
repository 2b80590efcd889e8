"""Word documents: paragraphs, lists and tables, a section for each heading."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from edge_embed.search.extract import ExtractError
from edge_embed.search.types import Section

# What the parts of the archive may become. An archive of a few kB can become petabytes.
MAX_UNPACKED: Final = 256 << 20
_LEVEL: Final = re.compile(r"Heading (\d)|Title")


def read(data: bytes, name: str) -> Iterator[Section]:
    """The sections of a document.

    Raises:
        ExtractError: it is damaged, encrypted, or becomes too large.
    """
    del name
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ExtractError("is encrypted, or of Word before 2007")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())  # zipfile reads no more than is declared
        if unpacked > MAX_UNPACKED:
            raise ExtractError(f"becomes {unpacked >> 20} MiB when it is unpacked; {MAX_UNPACKED >> 20} MiB are read")
        yield from _sections(data)
    except (ExtractError, MemoryError):
        raise
    except Exception as error:  # what a damaged file makes of three libraries' assumptions
        raise ExtractError(f"is no sound Word document: {type(error).__name__}: {error}") from None


def _sections(data: bytes) -> Iterator[Section]:
    from docx import Document
    from docx.table import Table

    document = Document(io.BytesIO(data))
    path: list[tuple[int, str]] = []
    parts: list[str] = []

    def flush() -> Iterator[Section]:
        text = "\n\n".join(parts).strip()
        parts.clear()
        if text:
            yield Section(text, tuple(title for _, title in path))

    for block in document.iter_inner_content():
        if isinstance(block, Table):
            parts.append("\n".join(_rows(block)))
            continue
        text = block.text.strip()
        level = _level(block)
        if level is None:
            if text:
                parts.append(text)
            continue
        yield from flush()
        path = [entry for entry in path if entry[0] < level]
        if text:
            path.append((level, " ".join(text.split())))
    yield from flush()


def _level(paragraph: Any) -> int | None:
    """The level of a heading, 0 for the title; None for other paragraphs."""
    found = _LEVEL.fullmatch(paragraph.style.name or "") if paragraph.style is not None else None
    return None if found is None else int(found[1] or 0)


def _rows(table: Any) -> Iterator[str]:
    for row in table.rows:
        cells: list[str] = []
        for cell in row.cells:
            text = " ".join(cell.text.split())
            if not cells or text != cells[-1]:  # merged cells come once for each column
                cells.append(text)
        if any(cells):
            yield " | ".join(cells)
