"""Markdown: a section for each heading. The text is the source, as its author wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edge_embed.search.extract.text import decode
from edge_embed.search.types import Section

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*[\"']?(.*?)[\"']?[ \t]*$", re.MULTILINE)


def read(data: bytes, name: str) -> Iterator[Section]:
    """Sections between headings; what stands in the YAML at the top is one of its own."""
    del name
    yield from sections(decode(data))


def sections(text: str, *, first_line: int | None = 1, above: tuple[str, ...] = ()) -> Iterator[Section]:
    """The sections of Markdown.

    Args:
        text: the source.
        first_line: where it begins in its file; None where lines mean nothing.
        above: headings that it stands under.
    """
    from markdown_it import MarkdownIt

    front = _FRONT_MATTER.match(text)
    n_front = 0
    if front is not None:
        title = _TITLE.search(front[0])
        n_front = front[0].count("\n")
        yield Section(front[0].strip("-\n. "), (*above, title[1]) if title and title[1] else above, first_line)
        text = "\n" * n_front + text[front.end() :]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    lines = text.split("\n")
    path: list[tuple[int, str]] = []
    start = n_front
    for place, token in enumerate(tokens):
        if token.type != "heading_open" or token.level != 0 or token.map is None:
            continue
        yield from _section(lines, start, token.map[0], path, above, first_line)
        level = int(token.tag[1:])
        path = [entry for entry in path if entry[0] < level]
        path.append((level, _plain(tokens[place + 1].content)))
        start = token.map[1]
    yield from _section(lines, start, len(lines), path, above, first_line)


def headings(text: str) -> Iterator[tuple[int, str]]:
    """The headings of Markdown: level and title."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").parse(text)
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0:
            yield int(token.tag[1:]), _plain(tokens[place + 1].content)


def _section(
    lines: list[str], start: int, stop: int, path: list[tuple[int, str]], above: tuple[str, ...], first_line: int | None
) -> Iterator[Section]:
    while start < stop and not lines[start].strip():
        start += 1
    text = "\n".join(lines[start:stop]).rstrip()
    if text:
        heading = (*above, *(title for _, title in path))
        yield Section(text, heading, None if first_line is None else first_line + start)


def _plain(title: str) -> str:
    """A heading without the marks of links, code and emphasis."""
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return " ".join(re.sub(r"[*`]+|(?<!\w)_+|_+(?!\w)", "", title).split())
