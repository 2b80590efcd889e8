"""Orders of hits: pure. Reciprocal rank fusion of several orders, and a bound on how many come from one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
RRF_K: Final = 60  # Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet ... (SIGIR 2009)


def fused(*orders: Sequence[Key]) -> list[tuple[Key, float]]:
    """Keys with the sum of ``1 / (60 + rank)`` over the orders that have them, ranks from 1; the largest first.

    Of equal ones the earlier in the first order comes first.
    """
    scores: dict[Key, float] = {}
    for order in orders:
        for rank, key in enumerate(order, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])


def bounded(items: Iterable[Item], group: Callable[[Item], Hashable], most: int | None) -> list[Item]:
    """The items in their order, at most that many of a group; all of them where ``most`` is None."""
    seen: Counter[Hashable] = Counter()
    kept = []
    for item in items:
        seen[group(item)] += 1
        if most is None or seen[group(item)] <= most:
            kept.append(item)
    return kept
