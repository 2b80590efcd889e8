"""Entries of a GGUF's metadata: a key, a value, and the type that it is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One entry of the GGUF's metadata; ``kind`` is the type of the value, or of an array's items."""

    key: str
    value: Any
    kind: GGUFValueType


def uint(key: str, value: int) -> KeyValue:
    """A uint32 entry."""
    return KeyValue(key, value, GGUFValueType.UINT32)


def real(key: str, value: float) -> KeyValue:
    """A float32 entry."""
    return KeyValue(key, value, GGUFValueType.FLOAT32)


def flag(key: str, value: bool) -> KeyValue:
    """A bool entry."""
    return KeyValue(key, value, GGUFValueType.BOOL)


def text(key: str, value: str) -> KeyValue:
    """A string entry."""
    return KeyValue(key, value, GGUFValueType.STRING)


def texts(key: str, values: list[str]) -> KeyValue:
    """An array of strings."""
    return KeyValue(key, values, GGUFValueType.STRING)
