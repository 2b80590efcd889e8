"""HTML: what a reader of the page sees, a section for each heading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from edge_embed.search.extract import ExtractError
from edge_embed.search.types import Section

# Not read: programs, styles, and what surrounds a page's text on every page of a site.
_LEFT_OUT: Final = {
    "script", "style", "noscript", "template", "svg", "math", "canvas", "iframe", "object", "nav", "aside", "form",
    "button", "select", "head", "dialog",
}  # fmt: skip
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_INLINE: Final = {
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
}  # fmt: skip
_PARAGRAPHS: Final = {
    "p",
    "div",
    "section",
    "article",
    "ul",
    "ol",
    "table",
    "blockquote",
    "pre",
    "figure",
    "main",
    "dl",
}
_SPACE: Final = re.compile(r"[ \t\r\f\n\xa0]+")


def read(data: bytes, name: str) -> Iterator[Section]:
    """The sections of a page; its title stands above all of them.

    Raises:
        ExtractError: nothing in it is a page.
    """
    del name
    yield from sections(data)


def sections(data: bytes | str, above: tuple[str, ...] = ()) -> Iterator[Section]:
    """The same of a page, or a part of one, that stands under other headings."""
    from lxml import etree, html

    if not data.strip():
        return
    if isinstance(data, bytes):
        encoding = _encoding(data)
        parser = html.HTMLParser(encoding=encoding, no_network=True, remove_comments=True, remove_pis=True)
    else:
        data, parser = data.encode("utf-8", "replace"), html.HTMLParser(encoding="utf-8", no_network=True)
    try:
        tree = html.document_fromstring(data, parser=parser)
    except (etree.LxmlError, ValueError) as error:
        raise ExtractError(f"is no HTML: {error}") from None
    title = _clean(" ".join(tree.xpath("//head/title//text()")[:1]))
    yield from _Walk((*above, title) if title else above).sections(tree)


class _Walk:
    """Goes through a page and gathers text until a heading comes."""

    def __init__(self, above: tuple[str, ...]) -> None:
        self._above = above
        self._path: list[tuple[int, str]] = []
        self._parts: list[str] = []

    def sections(self, tree: Any) -> Iterator[Section]:
        # With a stack of its own: pages of strangers nest deeper than Python calls may.
        waiting: list[tuple[Any, bool]] = [(tree, False)]
        while waiting:
            if len(waiting) > 1_000_000:
                raise ExtractError("has more elements than a page can have")
            node, left = waiting.pop()
            tag = node.tag if isinstance(node.tag, str) else ""
            if left:
                self._parts.append(("" if tag == "br" else _after(tag)) + (node.tail or ""))
                continue
            if not tag or tag in _LEFT_OUT:
                self._parts.append(" " + (node.tail or ""))
                continue
            if tag in _HEADINGS:
                yield from self._flush()
                level = _HEADINGS[tag]
                self._path = [entry for entry in self._path if entry[0] < level]
                title = _clean(" ".join(node.itertext()))
                if title:
                    self._path.append((level, title))
                self._parts.append(node.tail or "")
                continue
            raw = node.text or ""
            self._parts.append(_after(tag) + (raw if tag == "pre" else _SPACE.sub(" ", raw)))
            waiting.append((node, True))
            waiting += [(child, False) for child in reversed(node)]
        yield from self._flush()

    def _flush(self) -> Iterator[Section]:
        lines = (_SPACE.sub(" ", line).strip() for line in "".join(self._parts).split("\n"))
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        self._parts = []
        if text:
            titles = [title for _, title in self._path]
            if self._above and titles and titles[0] == self._above[-1]:
                del titles[0]
            yield Section(text, (*self._above, *titles))


def _after(tag: str) -> str:
    """What separates an element from its neighbours."""
    if tag in _INLINE:
        return ""
    return "\n\n" if tag in _PARAGRAPHS else "\n" if tag not in ("td", "th") else " "


def _encoding(data: bytes) -> str | None:
    """UTF-8 where the bytes are; else None, and the parser goes by what the page declares."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    return "utf-8"


def _clean(text: str) -> str:
    return _SPACE.sub(" ", text).strip()
