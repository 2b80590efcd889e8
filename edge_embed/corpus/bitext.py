"""Texts of one language and their translations in another, found by their vectors.

Cosines alone favour texts that lie near everything. A pair is scored by the ratio of its cosine to the mean of both
texts' cosines with their nearest neighbours (Artetxe and Schwenk, Margin-based Parallel Corpus Mining, ACL 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_embed.corpus.neighbours import Advance, Int64Array, nearest
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array

NEIGHBOURS = 4  # the paper's


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and its translation.

    Attributes:
        source: where the one stands.
        target: where the other stands.
        score: the margin; 1 is no nearer than neighbours are.
        cosine: of their vectors.
    """

    source: int
    target: int
    score: float
    cosine: float


def aligned(
    sources: Float32Array, targets: Float32Array, *, k: int = NEIGHBOURS, advance: Advance | None = None
) -> list[Pair]:
    """Pairs that choose each other, the best first; every text is in at most one.

    Args:
        sources, targets: unit vectors ``[n, d]`` and ``[m, d]``.
        k: neighbours that a cosine is compared with, and candidates of each text.
        advance: is told how many texts of both sides are done.

    Raises:
        InvalidOptionError: ``k``, or vectors of two sizes.
    """
    if k < 1:
        raise InvalidOptionError(f"{k} neighbours", hint="give 1 or more; 4 is usual")
    if sources.shape[1:] != targets.shape[1:]:
        raise InvalidOptionError(
            f"the sources' vectors have {sources.shape[1]} values, the targets' {targets.shape[1]}",
            hint="embed both with one model and the same options",
        )
    if not len(sources) or not len(targets):
        return []
    there, there_cosines = nearest(sources, targets, k, advance)
    back, back_cosines = nearest(targets, sources, k, advance)
    near_source, near_target = there_cosines.mean(axis=1), back_cosines.mean(axis=1)
    forward, forward_score, cosine = _best(there, there_cosines, near_source, near_target)
    backward, _, _ = _best(back, back_cosines, near_target, near_source)
    chosen = [i for i in range(len(sources)) if backward[forward[i]] == i]
    chosen.sort(key=lambda i: (-forward_score[i], i))
    return [Pair(i, int(forward[i]), float(forward_score[i]), float(cosine[i])) for i in chosen]


def _best(
    indices: Int64Array, cosines: Float32Array, own: Float32Array, others: Float32Array
) -> tuple[Int64Array, Float32Array, Float32Array]:
    """Of each row's candidates the one with the largest margin: where it stands, margin and cosine."""
    beside = (own[:, None] + others[indices]) / 2
    scores = cosines / np.where(np.abs(beside) > 1e-6, beside, 1e-6)
    rows, best = np.arange(len(scores)), scores.argmax(axis=1)
    return indices[rows, best], scores[rows, best], cosines[rows, best]
