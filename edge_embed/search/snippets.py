"""The part of a text that shows why it was found: pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from edge_embed.search.types import Snippet

_WORD: Final = re.compile(r"\w+")
_SEPARATE: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # scripts whose words have no spaces
_STOP: Final = frozenset(
    {
        "a", "an", "and", "are", "as", "at", "be", "by", "can", "did", "do", "does", "for", "from", "has", "have",
        "how", "i", "in", "is", "it", "my", "of", "on", "or", "that", "the", "this", "to", "was", "were", "what",
        "when",
        "where", "which", "who", "why", "with", "you",
    }
)  # fmt: skip
_SHORTEST_STEM: Final = 4


def snippet(text: str, query: str, width: int = 240) -> Snippet:
    """The stretch of a text with the most words of a query, in one line, and where in it these stand.

    Args:
        text: what was found.
        query: what was asked.
        width: most characters.
    """
    flat = " ".join(text.split())
    wanted = _stems(query)
    places = [
        (match.start() + start, match.start() + stop, stem)
        for match in _WORD.finditer(flat)
        for start, stop, stem in _pieces(match[0])
        if any(_alike(stem, other) for other in wanted)
    ]
    start = _best_start(flat, places, width)
    stop = min(len(flat), start + width)
    if stop < len(flat):
        stop = max(flat.rfind(" ", start + width // 2, stop), start + width // 2) if " " in flat[start:stop] else stop
    before, after = "…" if start else "", "…" if stop < len(flat) else ""
    shift = len(before) - start
    marks = tuple((a + shift, b + shift) for a, b, _ in places if start <= a and b <= stop)
    return Snippet(before + flat[start:stop] + after, marks)


def _best_start(flat: str, places: list[tuple[int, int, str]], width: int) -> int:
    """Where the stretch begins that has the most different words; the beginning, where none has any."""
    best, start = 0, 0
    for index, (first, _, _) in enumerate(places):
        inside = {stem for a, b, stem in places[index:] if b <= first + width * 3 // 4}
        if len(inside) > best:
            best, start = len(inside), first
    if start < width // 2:
        return 0
    start -= width // 8
    return flat.rfind(" ", 0, start) + 1


def _stems(query: str) -> set[str]:
    found = {stem for match in _WORD.finditer(query) for _, _, stem in _pieces(match[0])}
    return (found - _STOP) or found


def _pieces(word: str) -> list[tuple[int, int, str]]:
    """A word folded; of a script without spaces each of its characters."""
    if _SEPARATE.search(word):
        return [(place, place + 1, character) for place, character in enumerate(word)]
    return [(0, len(word), _folded(word))]


def _folded(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _alike(a: str, b: str) -> bool:
    """Whether two folded words are the same but for a short ending."""
    if a == b:
        return True
    shorter = min(len(a), len(b))
    if shorter < _SHORTEST_STEM:
        return False
    common = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    return common >= max(_SHORTEST_STEM, shorter - 2) and max(len(a), len(b)) - common <= 4
