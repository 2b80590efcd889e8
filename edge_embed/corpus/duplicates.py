"""Near duplicates: texts that say almost what an earlier one says.

The first of its kind is kept. A text is compared with those that are kept and with no duplicate, so a chain of small
changes does not join what lies far apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_embed.corpus.neighbours import Advance, blocks
from edge_embed.errors import InvalidOptionError
from edge_embed.types import BoolArray, Float32Array

_ROUNDING = 1e-6  # the cosine of a vector with itself may be that much below 1


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A text that is near one before it.

    Attributes:
        index: where it stands.
        of: where the nearest one stands that is kept.
        cosine: of the two.
    """

    index: int
    of: int
    cosine: float


def near_duplicates(vectors: Float32Array, threshold: float, advance: Advance | None = None) -> list[Duplicate]:
    """The texts that are not kept, in order.

    Args:
        vectors: unit vectors ``[n, d]``.
        threshold: the least cosine of duplicates, above 0 and at most 1.
        advance: is told how many texts are done.

    Raises:
        InvalidOptionError: the threshold.
    """
    if not 0 < threshold <= 1:
        raise InvalidOptionError(f"the threshold is {threshold}", hint="a cosine above 0 and at most 1, e.g. 0.95")
    kept: BoolArray = np.zeros(len(vectors), dtype=np.bool_)
    found: list[Duplicate] = []
    for rows in blocks(len(vectors)):
        own = vectors[rows]
        cosine = np.full(len(own), -np.inf, dtype=np.float32)
        of = np.zeros(len(own), dtype=np.int64)
        for columns in blocks(rows.start):
            here = np.where(kept[columns], own @ vectors[columns].T, -np.inf)
            best = here.argmax(axis=1)
            value = here[np.arange(len(own)), best]
            of = np.where(value > cosine, best + columns.start, of)
            cosine = np.maximum(cosine, value)
        among = own @ own.T
        for i in range(len(own)):
            before = np.where(kept[rows.start : rows.start + i], among[i, :i], -np.inf)
            if i and before.max() > cosine[i]:
                cosine[i], of[i] = before.max(), rows.start + before.argmax()
            if cosine[i] >= threshold - _ROUNDING:
                found.append(Duplicate(rows.start + i, int(of[i]), min(1.0, float(cosine[i]))))
            else:
                kept[rows.start + i] = True
        if advance is not None:
            advance(len(own))
    return found
