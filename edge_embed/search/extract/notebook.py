"""Jupyter notebooks: the cells of text as Markdown, and those of code under the heading that they stand below."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edge_embed.search.extract import ExtractError, markdown
from edge_embed.search.extract.text import decode
from edge_embed.search.types import Section


def read(data: bytes, name: str) -> Iterator[Section]:
    """The sections of a notebook; what its cells printed is left out.

    Raises:
        ExtractError: it is no notebook.
    """
    del name
    try:
        found: Any = json.loads(decode(data))
        cells = (
            found["cells"] if "cells" in found else [cell for sheet in found["worksheets"] for cell in sheet["cells"]]
        )
        sources = [(str(cell["cell_type"]), _source(cell)) for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExtractError(f"is no notebook: {type(error).__name__}: {error}") from None
    path: tuple[str, ...] = ()
    levels: dict[int, str] = {}
    for cell_type, source in sources:
        if not source.strip():
            continue
        if cell_type == "markdown":
            for level, title in markdown.headings(source):
                levels = {known: name for known, name in levels.items() if known < level} | {level: title}
            above = path
            path = tuple(levels[level] for level in sorted(levels))
            own = next(iter(markdown.headings(source)), None)
            yield from markdown.sections(source, first_line=None, above=above if own is None else ())
        else:
            yield Section(source, path)


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return "".join(source) if isinstance(source, list) else str(source)
