"""Lengths of time as people and programs write them. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

from edge_embed.errors import InvalidOptionError

_UNITS: Final = {
    "ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3,
    "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_NUMBER: Final = r"\d{1,15}(?:\.\d{1,15})?"
_PART: Final = re.compile(rf"({_NUMBER})({'|'.join(_UNITS)})", re.ASCII)
_PLAIN: Final = re.compile(rf"[+-]?{_NUMBER}", re.ASCII)
_LONGEST: Final = 100  # characters


def seconds_of(value: str | float) -> float:
    """Seconds, from a number of them or from a text: ``300``, ``5m``, ``1h30m``, ``250ms``.

    Below 0, with a unit or without, is for ever, as Ollama's clients and ours mean it.

    Args:
        value: the units of a text are those of Go's durations, which Ollama takes, and ``d`` for days. Only a number
            that stands alone goes without: the 30 of ``1h30`` could be minutes as well.

    Returns:
        0 or more; infinity for ever.

    Raises:
        InvalidOptionError: it is not a length of time.
    """
    total = _of_text(value.strip().lower()) if isinstance(value, str) else _of_number(value)
    if total is None:
        raise InvalidOptionError(f"{str(value)[:40]!r} is not a time", hint="give seconds, or 5m, 1h30m; -1 for ever")
    return math.inf if total < 0 else total


def _of_number(value: float) -> float | None:
    try:
        seconds = float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.inf
    return None if math.isnan(seconds) else seconds


def _of_text(text: str) -> float | None:
    if len(text) > _LONGEST:
        return None
    if _PLAIN.fullmatch(text):
        return float(text)
    sign, parts = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    total, at = 0.0, 0
    while at < len(parts):
        part = _PART.match(parts, at)
        if part is None:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return sign * total if parts else None
