"""Cosines of many vectors with many others, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from edge_embed.errors import InvalidOptionError
from edge_embed.types import AnyArray, Float32Array

BLOCK = 2048  # rows that are compared at once: 16 MB of cosines
Int64Array = npt.NDArray[np.int64]
Advance = Callable[[int], None]


def unit(vectors: AnyArray) -> Float32Array:
    """Vectors ``[n, d]`` of any type as float32 of length 1; one that is all zeros stays so.

    Raises:
        InvalidOptionError: one of them is not finite.
    """
    rows: Float32Array = np.array(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths))
    if len(wrong):
        raise InvalidOptionError(f"vector {wrong[0]} is not finite", hint="embed the texts again")
    rows /= np.where(lengths > 0, lengths, 1)
    return rows


def blocks(n: int) -> Iterator[slice]:
    """The rows 0 to n, in order."""
    for first in range(0, n, BLOCK):
        yield slice(first, min(first + BLOCK, n))


def nearest(
    asked: Float32Array, others: Float32Array, k: int, advance: Advance | None = None
) -> tuple[Int64Array, Float32Array]:
    """For each row the ``k`` others with the largest cosine (all, where there are fewer), the largest first.

    Args:
        asked: unit vectors ``[n, d]``.
        others: unit vectors ``[m, d]``.
        k: how many.
        advance: is told how many rows are done.

    Returns:
        Indices int64 and cosines float32, ``[n, min(k, m)]``.
    """
    k = min(k, len(others))
    indices = np.empty((len(asked), k), dtype=np.int64)
    cosines = np.empty((len(asked), k), dtype=np.float32)
    for rows in blocks(len(asked)):
        best_i = np.empty((rows.stop - rows.start, 0), dtype=np.int64)
        best_c = np.empty((rows.stop - rows.start, 0), dtype=np.float32)
        for columns in blocks(len(others)):
            found = asked[rows] @ others[columns].T
            some = _largest(found, k)
            best_c = np.concatenate([best_c, np.take_along_axis(found, some, axis=1)], axis=1)
            best_i = np.concatenate([best_i, some + columns.start], axis=1)
            chosen = np.lexsort((best_i, -best_c), axis=1)[:, :k]  # of equal ones the first
            best_c, best_i = (np.take_along_axis(x, chosen, axis=1) for x in (best_c, best_i))
        indices[rows], cosines[rows] = best_i, best_c
        if advance is not None:
            advance(rows.stop - rows.start)
    return indices, cosines


def _largest(found: Float32Array, k: int) -> Int64Array:
    """Columns of the ``k`` largest of each row, in any order."""
    if k >= found.shape[1]:
        return np.broadcast_to(np.arange(found.shape[1]), found.shape)
    return np.argpartition(-found, k - 1, axis=1)[:, :k] if k else np.empty((len(found), 0), dtype=np.int64)
