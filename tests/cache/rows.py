"""Rows whose bytes follow from their number, and a cache for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_embed.cache import EmbeddingCache
from edge_embed.types import Encoding

WIDTH = 256
ROW = 4 * WIDTH


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def row(number: int, size: int = ROW) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def numbers(cache: EmbeddingCache, upto: int) -> list[int]:
    """Which of the rows 0..upto-1 are there, each with its own bytes."""
    found = cache.get([key(i) for i in range(upto)])
    assert all(data == row(int.from_bytes(k, "big"), len(data)) for k, data in found.items())
    return sorted(int.from_bytes(k, "big") for k in found)


def encoding(*ids: int, n_first: int = 0) -> Encoding:
    return Encoding(np.array(ids, dtype=np.int32), len(ids), n_first)


BASE: dict[str, Any] = {"model": "a" * 64, "lora": None, "pooling": "mean", "causal": False}
