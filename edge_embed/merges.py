"""The merges that a SentencePiece model's scores stand for. Pure: tokens and numbers in, pairs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def merges_by_score(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first, and for one token by the ids of its halves.

    Only lengths that tokens have are tried: a token of 100,000 characters would otherwise be cut in as many places.

    Args:
        ids: token -> id, of the tokens that texts are made of; of equal scores the first counts as the better.
        scores: by id.
    """
    lengths = {len(token) for token in ids}
    in_order = sorted(lengths)
    merges: list[tuple[str, str]] = []
    for token in sorted(ids, key=lambda token: -scores[ids[token]]):
        halves = []
        for n in in_order:
            if n >= len(token):
                break
            if len(token) - n in lengths and (left := token[:n]) in ids and (right := token[n:]) in ids:
                halves.append((ids[left], left, right, ids[right]))
        merges += [(left, right) for _, left, right, _ in sorted(halves)]
    return merges
