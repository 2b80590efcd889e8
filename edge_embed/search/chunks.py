"""Sections to chunks: pure. A chunk is a stretch of one section, cut where the text pauses, that the model takes whole.

A section's text is divided at its lines and sentences, and where one of these is too long by itself, at words, then
anywhere. As many parts as fit make a chunk; in its second half it ends at the strongest pause, an empty line before a
line's end before a sentence's. The next chunk begins with the last whole parts of the one before, as overlap allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from edge_embed.search.types import HEADING_SEPARATOR, Chunk, Section

Count = Callable[[Sequence[str]], list[int]]

MIN_ROOM: Final = 16  # tokens of a chunk that are its text's own
# Where sentences end: with quotes and brackets that close behind it, and in scripts without spaces
_SENTENCE: Final = re.compile(
    r"[.!?\u2026][\"'\u201d\u2019\xbb)\]]*\s+|[\u3002\uff01\uff1f\uff61][\u201d\u2019\u300d\u300f\uff09]*\s*|[;:]\s+"
)
_WORD: Final = re.compile(r"\s+")
_LONG_LINE: Final = 4096  # characters: a tokenizer is asked about no more at once
_SPARSE: Final = 16  # characters that count as a token at least: for some tokenizers a line of base64 is one unknown
# How strong a pause is.
_NOWHERE, _BEHIND_WORD, _BEHIND_SENTENCE, _BEHIND_LINE, _BEHIND_PARAGRAPH = range(5)


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a text that stays whole: where it begins and ends, how it ends, its tokens."""

    start: int
    stop: int
    pause: int
    n_tokens: int


def chunks(sections: Iterable[Section], count: Count, size: int, overlap: int) -> Iterator[Chunk]:
    """The chunks of a file, in order.

    Args:
        sections: from ``extract``.
        count: texts -> tokens of each, with prompt and special tokens, as the model will count them.
        size: most tokens of a chunk, counted so; room for ``MIN_ROOM`` beside an empty text's.
        overlap: most tokens that a chunk has in common with the one before.
    """
    around = count([""])[0]
    for section in sections:
        heading, n_heading = _heading(section.heading, count, around, size - around)
        room = size - around - n_heading
        # Tokens at seams may join otherwise than they were counted: what is too large is cut smaller.
        yield from _of_section(section, heading, count, around, size, room, overlap)


def _of_section(
    section: Section, heading: str, count: Count, around: int, size: int, room: int, overlap: int
) -> Iterator[Chunk]:
    made = [
        _chunk(section, heading, start, stop)
        for start, stop in _spans(section.text, count, around, room, min(overlap, room // 2))
        if section.text[start:stop].strip()
    ]
    for chunk, n_tokens in zip(made, count([chunk.text for chunk in made]), strict=True):
        if n_tokens <= size or room <= 1:
            yield chunk
        else:
            part = Section(chunk.text[chunk.body :], section.heading, chunk.line, chunk.page)
            yield from _of_section(part, heading, count, around, size, room * 3 // 4, 0)


def _chunk(section: Section, heading: str, start: int, stop: int) -> Chunk:
    text = section.text[start:stop]
    start += len(text) - len(text.lstrip("\n"))  # the first line keeps its indentation
    line = None if section.line is None else section.line + section.text.count("\n", 0, start)
    before = f"{heading}\n" if heading else ""
    return Chunk(before + text.strip("\n").rstrip(), heading, len(before), line, section.page)


def _heading(parts: tuple[str, ...], count: Count, around: int, room: int) -> tuple[str, int]:
    """The headings in one line and their tokens: as many of the innermost as take a quarter of the room."""
    for first in range(len(parts)):
        heading = HEADING_SEPARATOR.join(" ".join(part.split()) for part in parts[first:] if part.strip())
        if len(heading) <= _LONG_LINE:
            n_tokens = count([f"{heading}\n"])[0] - around + 1
            if heading and n_tokens <= room // 4:
                return heading, n_tokens
    return "", 0


def _spans(text: str, count: Count, around: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Where the chunks of a text begin and end."""
    parts = _parts(text, count, around, room, max(overlap, room // 8))
    first = 0
    while first < len(parts):
        total, end = 0, first
        while end < len(parts) and (end == first or total + parts[end].n_tokens <= room):
            total += parts[end].n_tokens
            end += 1
        if end < len(parts):
            end = _best_end(parts, first, end, total)
        yield parts[first].start, parts[end - 1].stop
        if end == len(parts):
            return
        shared, start = 0, end
        while start - 1 > first and shared + parts[start - 1].n_tokens <= overlap:
            start -= 1
            shared += parts[start].n_tokens
        first = start


def _best_end(parts: list[_Part], first: int, end: int, total: int) -> int:
    """One behind the last part of a chunk: at the strongest pause, of equal ones the last, of its second half."""
    best, left = end, total
    for place in range(end, first, -1):
        if parts[place - 1].pause > parts[best - 1].pause:
            best = place
        left -= parts[place - 1].n_tokens
        if left < total / 2:
            break
    return best


def _parts(text: str, count: Count, around: int, room: int, wanted: int) -> list[_Part]:
    """The text in stretches of at most ``wanted`` tokens where it pauses often enough, never more than ``room``."""
    spans = list(_lines(text))
    counted = _counted(text, spans, count, around)
    for limit, divide in ((wanted, _sentences), (room, _words)):
        spans = []
        kept: dict[tuple[int, int], int] = {}
        for part in counted:
            if part.n_tokens > limit:
                spans += divide(text, part)
            else:
                spans.append((part.start, part.stop, part.pause))
                kept[part.start, part.stop] = part.n_tokens
        counted = _counted(text, spans, count, around, kept)
    while any(part.n_tokens > room and part.stop - part.start > 1 for part in counted):
        spans = [
            span
            for part in counted
            for span in (_halves(part) if part.n_tokens > room else [(part.start, part.stop, part.pause)])
        ]
        counted = _counted(text, spans, count, around)
    return counted


def _counted(
    text: str,
    spans: list[tuple[int, int, int]],
    count: Count,
    around: int,
    known: dict[tuple[int, int], int] | None = None,
) -> list[_Part]:
    known = known or {}
    new = [(start, stop) for start, stop, _ in spans if (start, stop) not in known]
    counts = count([text[start:stop] for start, stop in new]) if new else []
    found = {span: n_tokens - around for span, n_tokens in zip(new, counts, strict=True)}
    return [
        _Part(start, stop, pause, max(known.get((start, stop), found.get((start, stop), 0)), (stop - start) // _SPARSE))
        for start, stop, pause in spans
    ]


def _lines(text: str) -> Iterator[tuple[int, int, int]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        pause = _BEHIND_LINE
        while end < len(text) and (blank := re.compile(r"[ \t]*\n").match(text, end)):
            end, pause = blank.end(), _BEHIND_PARAGRAPH
        while end - start > _LONG_LINE:
            cut = text.rfind(" ", start + _LONG_LINE // 2, start + _LONG_LINE) + 1 or start + _LONG_LINE
            yield start, cut, _BEHIND_WORD if text[cut - 1] == " " else _NOWHERE
            start = cut
        if end > start:
            yield start, end, pause
        start = end


def _divided(text: str, part: _Part, pattern: re.Pattern[str], pause: int) -> Iterator[tuple[int, int, int]]:
    cuts = [match.end() for match in pattern.finditer(text, part.start, part.stop) if match.end() < part.stop]
    edges = [part.start, *cuts, part.stop]
    for start, stop in pairwise(edges):
        yield start, stop, part.pause if stop == part.stop else pause


def _sentences(text: str, part: _Part) -> Iterator[tuple[int, int, int]]:
    return _divided(text, part, _SENTENCE, _BEHIND_SENTENCE)


def _words(text: str, part: _Part) -> Iterator[tuple[int, int, int]]:
    return _divided(text, part, _WORD, _BEHIND_WORD)


def _halves(part: _Part) -> list[tuple[int, int, int]]:
    middle = (part.start + part.stop) // 2
    if part.stop - part.start < 2:
        return [(part.start, part.stop, part.pause)]
    return [(part.start, middle, _NOWHERE), (middle, part.stop, part.pause)]
